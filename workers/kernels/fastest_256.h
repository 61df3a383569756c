// Which functions compute the dot products of each quantised type. POTLUCK_FAST and POTLUCK_PLAIN name the home of
// those types that are worth code of their own on every instruction set, and of the others.

template <>
struct Fastest<BlockQ8_0> : POTLUCK_FAST::Panels<POTLUCK_FAST::FastQ8_0> {};
template <>
struct Fastest<BlockQ6_K> : POTLUCK_FAST::Panels<POTLUCK_FAST::FastQ6_K> {};
template <>
struct Fastest<BlockQ5_K> : POTLUCK_FAST::Panels<POTLUCK_FAST::FastQ5_K> {};
template <>
struct Fastest<BlockQ4_K> : POTLUCK_FAST::Panels<POTLUCK_FAST::FastQ4_K> {};
template <>
struct Fastest<BlockQ3_K> : POTLUCK_FAST::Panels<POTLUCK_FAST::FastQ3_K> {};
template <>
struct Fastest<BlockIQ4_XS> : POTLUCK_FAST::Panels<POTLUCK_FAST::FastIQ4_XS> {};
template <>
struct Fastest<BlockQ2_K> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastQ2_K> {};
template <>
struct Fastest<BlockQ5_1> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastQ5_1> {};
template <>
struct Fastest<BlockQ5_0> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastQ5_0> {};
template <>
struct Fastest<BlockQ4_1> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastQ4_1> {};
template <>
struct Fastest<BlockQ4_0> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastQ4_0> {};
template <>
struct Fastest<BlockIQ4_NL> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastIQ4_NL> {};
template <>
struct Fastest<BlockIQ3_S> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastIQ3_S> {};
template <>
struct Fastest<BlockIQ3_XXS> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastIQ3_XXS> {};
template <>
struct Fastest<BlockIQ2_S> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastIQ2_S> {};
template <>
struct Fastest<BlockIQ2_XS> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastIQ2_XS> {};
template <>
struct Fastest<BlockIQ2_XXS> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastIQ2_XXS> {};
template <>
struct Fastest<BlockMXFP4> : POTLUCK_PLAIN::Panels<POTLUCK_PLAIN::FastMXFP4> {};
