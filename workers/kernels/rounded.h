// Activations rounded to 8 bits in blocks (docs/arithmetic.md), and dot products of blocks by blocks.

static void sum_sixteens(const int8_t* q, int64_t K, int16_t* sums) {
  for (int64_t k = 0; k < K; k += 16) {
    int16_t sum = 0;
    for (int i = 0; i < 16; ++i) sum = (int16_t)(sum + q[k + i]);
    sums[k / 16] = sum;
  }
}

// Rounds n values to 8 bits and returns their scale: the largest magnitude over 127, below the smallest normal number
// 0. Each value is then rint(x / scale), to even. Values that are not all finite have scale NaN. Where the scale
// is 0 or NaN, q is 0.
static ALWAYS_INLINE float round_bytes(const float* x, int64_t n, int8_t* q) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  const float scale = __builtin_bit_cast(float, most) / 127.0f;
  const bool finite = most < 0x7f800000, zero = scale < 0x1p-126f;
  if (!finite || zero) {
    for (int64_t i = 0; i < n; ++i) q[i] = 0;
    return finite ? 0.0f : __builtin_nanf("");
  }
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  for (int64_t i = 0; i < n; ++i) q[i] = (int8_t)(int32_t)((x[i] / scale + magic) - magic);
  return scale;
}

static void round_row(const float* x, int64_t K, int64_t block, int8_t* q, float* scales, int16_t* sums) {
  for (int64_t k = 0; k < K; k += block) scales[k / block] = round_bytes(x + k, block, q + k);
  sum_sixteens(q, K, sums);
}

static void round_rows(const float* x, int64_t T, int64_t K, int64_t block, int8_t* q, float* scales, int16_t* sums,
                       int threads) {
  if (T * K < SERIAL_ELEMENTS) threads = 1;
  each_item(T, threads, [&](int64_t t, int) {
    round_row(x + t * K, K, block, q + t * K, scales + t * (K / block), sums + t * (K / 16));
  });
}

// A block's share of a dot product: S and M as integers, then one fused multiply-add each. Eight lanes: block b
// is added to lane b mod 8.
struct EightLanes {
  float lanes[8];

  ALWAYS_INLINE float sum() const {
    const float fours[4] = {lanes[0] + lanes[4], lanes[1] + lanes[5], lanes[2] + lanes[6], lanes[3] + lanes[7]};
    return (fours[0] + fours[2]) + (fours[1] + fours[3]);
  }
};

// Not inlined: many types share it.
template <int BLOCK, bool HAS_MINIMUM>
static __attribute__((noinline)) void add_block(const Decoded<BLOCK>& block, const int8_t* q, const int16_t* sums,
                                                float scale, float* lane) {
  int32_t products = 0, minimums = 0;
  for (int j = 0; j < BLOCK / 16; ++j) {
    int32_t sixteen = 0;
    for (int i = 0; i < 16; ++i) sixteen += (int32_t)block.q[16 * j + i] * q[16 * j + i];
    products += sixteen * block.scales[j];
    if constexpr (HAS_MINIMUM) minimums += (int32_t)sums[j] * block.minimums[j];
  }
  *lane = __builtin_fmaf(block.scale * scale, (float)products, *lane);
  if constexpr (HAS_MINIMUM) *lane = __builtin_fmaf(block.minimum * scale, (float)minimums, *lane);
}

// out[t * ldo + n] = dot(row t, weight row n), by the definition: what defines the bits of every other form.
template <class Type>
static void dot_decoded(const RoundedRows& x, int64_t T, const uint8_t* w, int64_t row_bytes, int64_t N, float* out,
                        int64_t ldo) {
  constexpr int64_t ROWS = 16;
  for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
    const int64_t rows = T - t0 < ROWS ? T - t0 : ROWS;
    for (int64_t n = 0; n < N; ++n) {
      EightLanes acc[ROWS] = {};
      for (int64_t b = 0; b < x.K / Type::BLOCK; ++b) {
        Decoded<Type::BLOCK> block;
        Type::decode(w + n * row_bytes + b * Type::BLOCK_BYTES, block);
        for (int64_t t = 0; t < rows; ++t) {
          const int64_t r = x.index ? x.index[t0 + t] : t0 + t;
          const int8_t* q = x.q + r * x.K + b * Type::BLOCK;
          const int16_t* sums = x.sums + r * (x.K / 16) + b * (Type::BLOCK / 16);
          const float scale = x.scales[r * (x.K / x.block) + b];
          add_block<Type::BLOCK, Type::HAS_MINIMUM>(block, q, sums, scale, acc[t].lanes + b % 8);
        }
      }
      for (int64_t t = 0; t < rows; ++t) out[(t0 + t) * ldo + n] = acc[t].sum();
    }
  }
}

// The function that computes a type's dot products; instruction sets put faster ones here.
template <class Type>
struct Fastest {
  static constexpr auto dot = dot_decoded<Type>;
};
