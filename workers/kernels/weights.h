// Views of weight rows: how a matrix's rows are reached in each form. A view gives sixteen float32 lanes of
// row n from k on, k a multiple of 16. Forms in blocks have no address for a single weight, so all that a
// kernel may ask is in here:
//   BLOCK                 weights of a block; rows are whole blocks
//   load(n, k)            weights k to k + 15 of row n
//   load(n, k, count)     the row's last `count` < 16 weights, then zeros (only where BLOCK < 16)
//   prefetch(n, k)        a hint that they are wanted soon
//   from(n)               the view that begins at row n

// Each weight by itself, in a type that Lanes load.
template <class W>
struct Plain {
  static constexpr int BLOCK = 1;
  const W* w;
  int64_t stride;

  ALWAYS_INLINE Lanes load(int64_t n, int64_t k) const { return Lanes::load(w + n * stride + k); }
  ALWAYS_INLINE Lanes load(int64_t n, int64_t k, int count) const {
    return Lanes::load(w + n * stride + k, count);
  }
  ALWAYS_INLINE void prefetch(int64_t n, int64_t k) const { __builtin_prefetch(w + n * stride + k, 0, 2); }
  ALWAYS_INLINE Plain from(int64_t n) const { return {w + n * stride, stride}; }
};

// A float16 as float32, exactly. No subnormal number is computed with, so no mode of the processor matters.
static ALWAYS_INLINE float widen_half(uint16_t h) {
  const uint32_t magnitude = h & 0x7fff, sign = (uint32_t)(h & 0x8000) << 16;
  const float small = (float)(int32_t)magnitude * 0x1p-24f;
  const uint32_t exponent_shift = magnitude >= 0x7c00 ? 224u << 23 : 112u << 23;
  const uint32_t normal = (magnitude << 13) + exponent_shift;
  const uint32_t bits = magnitude < 0x400 ? __builtin_bit_cast(uint32_t, small) : normal;
  return __builtin_bit_cast(float, bits | sign);
}

// Not inlined, nor the one of 8-bit floats: copies in every size of tile would be most of the library.
static __attribute__((noinline)) void widen_sixteen(const uint16_t* from, float* to) {
  for (int i = 0; i < 16; ++i) to[i] = widen_half(from[i]);
}

struct Float16 {
  static constexpr int BLOCK = 1;
  const uint16_t* w;
  int64_t stride;

  ALWAYS_INLINE Lanes load(int64_t n, int64_t k) const {
    float wide[16];
    widen_sixteen(w + n * stride + k, wide);
    return Lanes::load(wide);
  }
  ALWAYS_INLINE Lanes load(int64_t n, int64_t k, int count) const {
    uint16_t padded[16] = {};
    std::memcpy(padded, w + n * stride + k, count * sizeof(uint16_t));
    float wide[16];
    widen_sixteen(padded, wide);
    return Lanes::load(wide);
  }
  ALWAYS_INLINE void prefetch(int64_t n, int64_t k) const { __builtin_prefetch(w + n * stride + k, 0, 2); }
  ALWAYS_INLINE Float16 from(int64_t n) const { return {w + n * stride, stride}; }
};

// 8-bit floats: a sign, four bits of exponent (bias 7), three of mantissa; all ones are NaN, there is no infinity.
// A weight is the number times the scale of its square of 128 x 128, one float32 product.
static ALWAYS_INLINE float widen_e4m3(uint8_t v) {
  const uint32_t magnitude = v & 0x7f, sign = (uint32_t)(v & 0x80) << 24;
  const float small = (float)(int32_t)magnitude * 0x1p-9f;
  const uint32_t normal = magnitude == 0x7f ? 0x7fc00000u : (magnitude << 20) + (120u << 23);
  return __builtin_bit_cast(float, (magnitude < 8 ? __builtin_bit_cast(uint32_t, small) : normal) | sign);
}

static __attribute__((noinline)) void widen_sixteen(const uint8_t* from, float* to) {
  for (int i = 0; i < 16; ++i) to[i] = widen_e4m3(from[i]);
}

struct Fp8E4m3 {
  static constexpr int BLOCK = 1;
  static constexpr int64_t SQUARE = 128;
  const uint8_t* w;
  const float* scales;
  int64_t stride, row;  // of the matrix: which row `w` is

  ALWAYS_INLINE Lanes load(int64_t n, int64_t k) const {
    float wide[16];
    widen_sixteen(w + n * stride + k, wide);
    return Lanes::mul(Lanes::set1(scale(n, k)), Lanes::load(wide));
  }
  ALWAYS_INLINE Lanes load(int64_t n, int64_t k, int count) const {
    uint8_t padded[16] = {};
    std::memcpy(padded, w + n * stride + k, count);
    float wide[16];
    widen_sixteen(padded, wide);
    return Lanes::mul(Lanes::set1(scale(n, k)), Lanes::load(wide));
  }
  ALWAYS_INLINE void prefetch(int64_t n, int64_t k) const { __builtin_prefetch(w + n * stride + k, 0, 2); }
  ALWAYS_INLINE Fp8E4m3 from(int64_t n) const { return {w + n * stride, scales, stride, row + n}; }

 private:
  ALWAYS_INLINE float scale(int64_t n, int64_t k) const {
    return scales[(row + n) / SQUARE * ((stride + SQUARE - 1) / SQUARE) + k / SQUARE];
  }
};
