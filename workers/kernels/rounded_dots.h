// The dot products of rounded rows by form, as many as FORMATS has. The first forms take rows as they are.
#define POTLUCK_DOT(Type, name) Fastest<Type>::dot,
static const DotRounded ROUNDED_DOTS[] = {nullptr, nullptr, nullptr, nullptr, QUANTISED_TYPES(POTLUCK_DOT)};
#undef POTLUCK_DOT
