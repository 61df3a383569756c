// Which functions compute the dot products of each quantised type. POTLUCK_FAST and POTLUCK_PLAIN name the home of
// those types that are worth code of their own on every instruction set, and of the others.

template <>
struct Fastest<BlockQ8_0> {
  static constexpr DotRounded more = POTLUCK_FAST::dot_panels<POTLUCK_FAST::FastQ8_0, baseline::dot_decoded<baseline::BlockQ8_0>>;
  static constexpr DotRounded dot = POTLUCK_FAST::dot_one_or_more<POTLUCK_FAST::OneRowQ8_0, more>;
};
template <>
struct Fastest<BlockQ6_K> {
  static constexpr DotRounded more = POTLUCK_FAST::dot_panels<POTLUCK_FAST::FastQ6_K, baseline::dot_decoded<baseline::BlockQ6_K>>;
  static constexpr DotRounded dot = POTLUCK_FAST::dot_one_or_more<POTLUCK_FAST::OneRowQ6_K, more>;
};
template <>
struct Fastest<BlockQ5_K> {
  static constexpr DotRounded dot = POTLUCK_FAST::dot_panels<POTLUCK_FAST::FastQ5_K, baseline::dot_decoded<baseline::BlockQ5_K>>;
};
template <>
struct Fastest<BlockQ4_K> {
  static constexpr DotRounded dot = POTLUCK_FAST::dot_panels<POTLUCK_FAST::FastQ4_K, baseline::dot_decoded<baseline::BlockQ4_K>>;
};
template <>
struct Fastest<BlockQ3_K> {
  static constexpr DotRounded dot = POTLUCK_FAST::dot_panels<POTLUCK_FAST::FastQ3_K, baseline::dot_decoded<baseline::BlockQ3_K>>;
};
template <>
struct Fastest<BlockIQ4_XS> {
  static constexpr DotRounded dot = POTLUCK_FAST::dot_panels<POTLUCK_FAST::FastIQ4_XS, baseline::dot_decoded<baseline::BlockIQ4_XS>>;
};
template <>
struct Fastest<BlockQ2_K> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastQ2_K, baseline::dot_decoded<baseline::BlockQ2_K>>;
};
template <>
struct Fastest<BlockQ5_1> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastQ5_1, baseline::dot_decoded<baseline::BlockQ5_1>>;
};
template <>
struct Fastest<BlockQ5_0> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastQ5_0, baseline::dot_decoded<baseline::BlockQ5_0>>;
};
template <>
struct Fastest<BlockQ4_1> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastQ4_1, baseline::dot_decoded<baseline::BlockQ4_1>>;
};
template <>
struct Fastest<BlockQ4_0> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastQ4_0, baseline::dot_decoded<baseline::BlockQ4_0>>;
};
template <>
struct Fastest<BlockIQ4_NL> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastIQ4_NL, baseline::dot_decoded<baseline::BlockIQ4_NL>>;
};
template <>
struct Fastest<BlockIQ3_S> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastIQ3_S, baseline::dot_decoded<baseline::BlockIQ3_S>>;
};
template <>
struct Fastest<BlockIQ3_XXS> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastIQ3_XXS, baseline::dot_decoded<baseline::BlockIQ3_XXS>>;
};
template <>
struct Fastest<BlockIQ2_S> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastIQ2_S, baseline::dot_decoded<baseline::BlockIQ2_S>>;
};
template <>
struct Fastest<BlockIQ2_XS> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastIQ2_XS, baseline::dot_decoded<baseline::BlockIQ2_XS>>;
};
template <>
struct Fastest<BlockIQ2_XXS> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastIQ2_XXS, baseline::dot_decoded<baseline::BlockIQ2_XXS>>;
};
template <>
struct Fastest<BlockMXFP4> {
  static constexpr DotRounded dot = POTLUCK_PLAIN::dot_panels<POTLUCK_PLAIN::FastMXFP4, baseline::dot_decoded<baseline::BlockMXFP4>>;
};
