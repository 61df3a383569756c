// Quantised weights with NEON's dot products of bytes (vdotq_s32): how the blocks of each type unpack, and their
// products with rows of 8-bit activations. The definition is in rounded.h; everything here is integers up to a
// block's S and M, so any order gives the same bits.
//
// The unit is a chunk of 256 weights of one row: one block of 256, or eight blocks of 32. A chunk is unpacked once,
// in the order of the file's weights, and meets all rows of a tile.

struct Chunk {
  int8x16_t q[16];
  // Of a block of 256: a lane for each GROUP weights, all of them in order.
  int32x4_t scales[4];
  int16x8_t minimums[2];
};

static ALWAYS_INLINE float half_number(const uint8_t* p) {
  __fp16 half;
  std::memcpy(&half, p, 2);
  return half;
}

static ALWAYS_INLINE void set_scales(int16x8_t eight, int32x4_t* scales) {
  scales[0] = vmovl_s16(vget_low_s16(eight));
  scales[1] = vmovl_high_s16(eight);
}

// How a type unpacks: the definition's decoding, where nothing below is faster.
//   GROUP                              weights that share a scale, 16 or 32 (of blocks of 256)
//   unpack(p, w, scales, minimums)     a chunk, and the float numbers of its one block or eight
template <class Block>
struct Unpacked : Block {
  static constexpr int GROUP = 16;
  static ALWAYS_INLINE void unpack(const uint8_t* p, Chunk& w, float* scales, float* minimums) {
    constexpr int SIXTEENS = Block::BLOCK / 16;
    UNROLL for (int b = 0; b < 16 / SIXTEENS; ++b) {
      Decoded<Block::BLOCK> block;
      Block::decode(p + b * Block::BLOCK_BYTES, block);
      UNROLL for (int i = 0; i < SIXTEENS; ++i) w.q[b * SIXTEENS + i] = vld1q_s8(block.q + 16 * i);
      scales[b] = block.scale;
      if constexpr (Block::HAS_MINIMUM) minimums[b] = block.minimum;
      if constexpr (Block::BLOCK == 256) {
        UNROLL for (int i = 0; i < 2; ++i) {
          set_scales(vld1q_s16(block.scales + 8 * i), w.scales + 2 * i);
          if constexpr (Block::HAS_MINIMUM) w.minimums[i] = vld1q_s16(block.minimums + 8 * i);
        }
      }
    }
  }
};

template <>
struct Unpacked<BlockQ8_0> : BlockQ8_0 {
  static constexpr int GROUP = 32;
  static ALWAYS_INLINE void unpack(const uint8_t* p, Chunk& w, float* scales, float*) {
    UNROLL for (int b = 0; b < 8; ++b) {
      const uint8_t* block = p + b * BLOCK_BYTES;
      scales[b] = half_number(block);
      w.q[2 * b] = vld1q_s8((const int8_t*)block + 2);
      w.q[2 * b + 1] = vld1q_s8((const int8_t*)block + 18);
    }
  }
};

static ALWAYS_INLINE uint8x16_t low_nibbles(uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); }
static ALWAYS_INLINE uint8x16_t high_nibbles(uint8x16_t v) { return vshrq_n_u8(v, 4); }
// The low bits of `low`, `at` of them, with those of `high` above, and the lowest of all these by `mask`.
#define POTLUCK_ABOVE(low, high, at, mask) \
  vreinterpretq_s8_u8(vandq_u8(vsliq_n_u8(low, high, at), vdupq_n_u8(mask)))

static ALWAYS_INLINE uint8x8_t bytes_of(uint32_t first, uint32_t last) {
  return vcreate_u8((uint64_t)last << 32 | first);
}

// Eight scales and eight minimums of 6 bits in twelve bytes.
static ALWAYS_INLINE void six_bit_scales(const uint8_t* p, Chunk& w) {
  const uint32_t a = word_at(p), b = word_at(p + 4), c = word_at(p + 8);
  const uint8x8_t scales = bytes_of(a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030));
  const uint8x8_t minimums = bytes_of(b & 0x3f3f3f3f, (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030));
  set_scales(vreinterpretq_s16_u16(vmovl_u8(scales)), w.scales);
  w.minimums[0] = vreinterpretq_s16_u16(vmovl_u8(minimums));
}

template <>
struct Unpacked<BlockQ4_K> : BlockQ4_K {
  static constexpr int GROUP = 32;
  static ALWAYS_INLINE void unpack(const uint8_t* p, Chunk& w, float* scales, float* minimums) {
    scales[0] = half_number(p);
    minimums[0] = -half_number(p + 2);
    six_bit_scales(p + 4, w);
    UNROLL for (int i = 0; i < 8; ++i) {
      const uint8x16_t v = vld1q_u8(p + 16 + 16 * i);
      int8x16_t* q = w.q + i / 2 * 4 + i % 2;
      q[0] = vreinterpretq_s8_u8(low_nibbles(v));
      q[2] = vreinterpretq_s8_u8(high_nibbles(v));
    }
  }
};

template <>
struct Unpacked<BlockQ5_K> : BlockQ5_K {
  static constexpr int GROUP = 32;
  static ALWAYS_INLINE void unpack(const uint8_t* p, Chunk& w, float* scales, float* minimums) {
    scales[0] = half_number(p);
    minimums[0] = -half_number(p + 2);
    six_bit_scales(p + 4, w);
    // Bit 0 belongs to the next group of thirty-two.
    uint8x16_t fifths[2] = {vld1q_u8(p + 16), vld1q_u8(p + 32)};
    UNROLL for (int i = 0; i < 8; ++i) {
      const uint8x16_t v = vld1q_u8(p + 48 + 16 * i);
      uint8x16_t& fifth = fifths[i % 2];
      int8x16_t* q = w.q + i / 2 * 4 + i % 2;
      q[0] = POTLUCK_ABOVE(v, fifth, 4, 31);
      q[2] = POTLUCK_ABOVE(high_nibbles(v), vshrq_n_u8(fifth, 1), 4, 31);
      fifth = vshrq_n_u8(fifth, 2);
    }
  }
};

template <>
struct Unpacked<BlockQ6_K> : BlockQ6_K {
  static constexpr int GROUP = 16;
  static ALWAYS_INLINE void unpack(const uint8_t* p, Chunk& w, float* scales, float*) {
    scales[0] = half_number(p + 208);
    const int8x16_t sixteen = vld1q_s8((const int8_t*)p + 192), offset = vdupq_n_s8(32);
    set_scales(vmovl_s8(vget_low_s8(sixteen)), w.scales);
    set_scales(vmovl_high_s8(sixteen), w.scales + 2);
    UNROLL for (int i = 0; i < 4; ++i) {  // two of each half
      const uint8_t* low = p + i / 2 * 64 + i % 2 * 16;
      const uint8x16_t first = vld1q_u8(low), second = vld1q_u8(low + 32), high = vld1q_u8(p + 128 + 16 * i);
      int8x16_t* q = w.q + i / 2 * 8 + i % 2;
      q[0] = vsubq_s8(POTLUCK_ABOVE(first, high, 4, 63), offset);
      q[2] = vsubq_s8(POTLUCK_ABOVE(second, vshrq_n_u8(high, 2), 4, 63), offset);
      q[4] = vsubq_s8(POTLUCK_ABOVE(high_nibbles(first), vshrq_n_u8(high, 4), 4, 63), offset);
      q[6] = vsubq_s8(POTLUCK_ABOVE(high_nibbles(second), vshrq_n_u8(high, 6), 4, 63), offset);
    }
  }
};

template <>
struct Unpacked<BlockQ3_K> : BlockQ3_K {
  static constexpr int GROUP = 16;
  static ALWAYS_INLINE void unpack(const uint8_t* p, Chunk& w, float* scales, float*) {
    scales[0] = half_number(p + 108);
    const uint32_t x = word_at(p + 96), y = word_at(p + 100), z = word_at(p + 104);
    const uint32_t fours = 0x0f0f0f0f, twos = 0x30303030;
    const uint8x8_t first = bytes_of((x & fours) | (z << 4 & twos), (y & fours) | (z << 2 & twos));
    const uint8x8_t last = bytes_of((x >> 4 & fours) | (z & twos), (y >> 4 & fours) | (z >> 2 & twos));
    const int8x8_t middle = vdup_n_s8(32);
    set_scales(vsubl_s8(vreinterpret_s8_u8(first), middle), w.scales);
    set_scales(vsubl_s8(vreinterpret_s8_u8(last), middle), w.scales + 2);
    UNROLL for (int i = 0; i < 2; ++i) {  // every other sixteen
      uint8x16_t thirds = vld1q_u8(p + 16 * i);
      UNROLL for (int half = 0; half < 2; ++half) {
        uint8x16_t pairs = vld1q_u8(p + 32 + 32 * half + 16 * i);
        UNROLL for (int g = 0; g < 4; ++g) {
          const uint8x16_t low = vandq_u8(pairs, vdupq_n_u8(3));
          w.q[8 * half + 2 * g + i] = vsubq_s8(POTLUCK_ABOVE(low, thirds, 2, 7), vdupq_n_s8(4));
          pairs = vshrq_n_u8(pairs, 2);
          thirds = vshrq_n_u8(thirds, 1);
        }
      }
    }
  }
};

template <>
struct Unpacked<BlockIQ4_XS> : BlockIQ4_XS {
  static constexpr int GROUP = 32;
  static ALWAYS_INLINE void unpack(const uint8_t* p, Chunk& w, float* scales, float*) {
    scales[0] = half_number(p);
    const uint8x8_t packed = bytes_of(word_at(p + 4), 0);
    const uint8x8_t fours = vzip1_u8(vand_u8(packed, vdup_n_u8(15)), vshr_n_u8(packed, 4));
    const int16x8_t shifts = {0, -2, -4, -6, -8, -10, -12, -14};
    const uint16x8_t each = vshlq_u16(vdupq_n_u16((uint16_t)(p[2] | p[3] << 8)), shifts);
    const uint16x8_t twos = vshlq_n_u16(vandq_u16(each, vdupq_n_u16(3)), 4);
    set_scales(vsubq_s16(vreinterpretq_s16_u16(vorrq_u16(vmovl_u8(fours), twos)), vdupq_n_s16(32)), w.scales);
    const int8x16_t values = vld1q_s8(tables.iq4);
    UNROLL for (int i = 0; i < 8; ++i) {
      const uint8x16_t v = vld1q_u8(p + 8 + 16 * i);
      w.q[2 * i] = vqtbl1q_s8(values, low_nibbles(v));
      w.q[2 * i + 1] = vqtbl1q_s8(values, high_nibbles(v));
    }
  }
};
#undef POTLUCK_ABOVE

// Products of GROUP weights and activations, in four parts.
template <int GROUP>
static ALWAYS_INLINE int32x4_t products(const int8x16_t* w, const int8_t* q) {
  int32x4_t sum = vdotq_s32(vdupq_n_s32(0), w[0], vld1q_s8(q));
  if constexpr (GROUP == 32) sum = vdotq_s32(sum, w[1], vld1q_s8(q + 16));
  return sum;
}

// S of a block of 256.
template <int GROUP>
static ALWAYS_INLINE int32_t scaled_products(const Chunk& w, const int8_t* q) {
  int32x4_t even = vdupq_n_s32(0), odd = even;
  UNROLL for (int i = 0; i < 64 / GROUP; ++i) {
    const int8x16_t* four = w.q + i * GROUP / 4;
    const int8_t* at = q + i * 4 * GROUP;
    even = vmlaq_laneq_s32(even, products<GROUP>(four, at), w.scales[i], 0);
    odd = vmlaq_laneq_s32(odd, products<GROUP>(four + GROUP / 16, at + GROUP), w.scales[i], 1);
    even = vmlaq_laneq_s32(even, products<GROUP>(four + GROUP / 8, at + 2 * GROUP), w.scales[i], 2);
    odd = vmlaq_laneq_s32(odd, products<GROUP>(four + 3 * GROUP / 16, at + 3 * GROUP), w.scales[i], 3);
  }
  return vaddvq_s32(vaddq_s32(even, odd));
}

// M of a block of 256, from the sums of sixteen neighbours each.
template <int GROUP>
static ALWAYS_INLINE int32_t scaled_sums(const Chunk& w, const int16_t* sums) {
  const int16x8_t first = vld1q_s16(sums), last = vld1q_s16(sums + 8);
  if constexpr (GROUP == 32) {
    const int16x8_t pairs = vpaddq_s16(first, last);
    const int32x4_t low = vmull_s16(vget_low_s16(pairs), vget_low_s16(w.minimums[0]));
    return vaddvq_s32(vmlal_high_s16(low, pairs, w.minimums[0]));
  }
  int32x4_t sum = vmull_s16(vget_low_s16(first), vget_low_s16(w.minimums[0]));
  sum = vmlal_high_s16(sum, first, w.minimums[0]);
  sum = vmlal_s16(sum, vget_low_s16(last), vget_low_s16(w.minimums[1]));
  return vaddvq_s32(vmlal_high_s16(sum, last, w.minimums[1]));
}

// S of eight blocks of 32.
static ALWAYS_INLINE void eight_products(const Chunk& w, const int8_t* q, int32x4_t* out) {
  int32x4_t sums[8];
  UNROLL for (int b = 0; b < 8; ++b) sums[b] = products<32>(w.q + 2 * b, q + 32 * b);
  UNROLL for (int i = 0; i < 2; ++i) {
    const int32x4_t* four = sums + 4 * i;
    out[i] = vpaddq_s32(vpaddq_s32(four[0], four[1]), vpaddq_s32(four[2], four[3]));
  }
}

// Activations of a tile stay in the second-level cache while the weights pass.
constexpr int64_t TILE_BYTES = 128 << 10, MOST_TILE_ROWS = 64;

// A tile's rows chunk by chunk, so that a chunk of weights meets what lies side by side. Zeros fill the last chunk
// and the last group of eight blocks; they add 0 to lanes that are never -0.
struct Tile {
  alignas(64) int8_t q[TILE_BYTES];           // [chunks, T, 256]
  alignas(64) int16_t sums[TILE_BYTES / 16];  // [chunks, T, 16]
  alignas(64) float scales[TILE_BYTES / 32];  // [groups of eight blocks, T, 8]
  int64_t T, blocks, groups;

  void arrange(const RoundedRows& x, int64_t first, int64_t rows) {
    T = rows;
    blocks = x.K / x.block;
    groups = (blocks + 7) / 8;
    for (int64_t t = 0; t < T; ++t) {
      const int64_t r = x.index ? x.index[first + t] : first + t;
      fill(x.q + r * x.K, x.K, 256, t, q);
      fill(x.sums + r * (x.K / 16), x.K / 16, 16, t, sums);
      fill(x.scales + r * blocks, blocks, 8, t, scales);
    }
  }

 private:
  // Row t of [ceil(n / width), T, width].
  template <class Number>
  void fill(const Number* from, int64_t n, int64_t width, int64_t t, Number* to) {
    for (int64_t i = 0; i < n; i += width) {
      const int64_t count = n - i < width ? n - i : width;
      Number* at = to + i * T + t * width;
      std::memcpy(at, from + i, count * sizeof(Number));
      std::memset(at + count, 0, (width - count) * sizeof(Number));
    }
  }
};

// Adds S of eight blocks, or M, to a row's lanes.
static ALWAYS_INLINE void add_group(const int32x4_t* sums, const float* weight_scales, const float* row_scales,
                                    float32x4_t* lanes) {
  UNROLL for (int i = 0; i < 2; ++i) {
    const float32x4_t scales = vmulq_f32(vld1q_f32(weight_scales + 4 * i), vld1q_f32(row_scales + 4 * i));
    lanes[i] = vfmaq_f32(lanes[i], scales, vcvtq_f32_s32(sums[i]));
  }
}

// A group of eight blocks of 256, `count` of them there, against all rows.
template <class Type>
static ALWAYS_INLINE void add_blocks_of_256(const Tile& tile, int64_t g, const uint8_t* p, int64_t count,
                                            float32x4_t (*lanes)[2]) {
  int32_t products[MOST_TILE_ROWS][8], minimums[MOST_TILE_ROWS][8];
  float weight_scales[8] = {}, weight_minimums[8] = {};
  for (int64_t b = 0; b < count; ++b) {
    Chunk w;
    Type::unpack(p + b * Type::BLOCK_BYTES, w, weight_scales + b, weight_minimums + b);
    for (int64_t t = 0; t < tile.T; ++t) {
      const int64_t row = (g * 8 + b) * tile.T + t;
      products[t][b] = scaled_products<Type::GROUP>(w, tile.q + row * 256);
      if constexpr (Type::HAS_MINIMUM) minimums[t][b] = scaled_sums<Type::GROUP>(w, tile.sums + row * 16);
    }
  }
  for (int64_t t = 0; t < tile.T; ++t) {
    for (int64_t b = count; b < 8; ++b) products[t][b] = minimums[t][b] = 0;
    const auto add = [&](const int32_t* sums, const float* scales) __attribute__((always_inline)) {
      const int32x4_t eight[2] = {vld1q_s32(sums), vld1q_s32(sums + 4)};
      add_group(eight, scales, tile.scales + (g * tile.T + t) * 8, lanes[t]);
    };
    add(products[t], weight_scales);
    if constexpr (Type::HAS_MINIMUM) add(minimums[t], weight_minimums);
  }
}

// Likewise of blocks of 32, which are one chunk.
template <class Type>
static ALWAYS_INLINE void add_blocks_of_32(const Tile& tile, int64_t g, const uint8_t* p, int64_t count,
                                           float32x4_t (*lanes)[2]) {
  uint8_t padded[8 * Type::BLOCK_BYTES];
  if (count < 8) {
    std::memcpy(padded, p, count * Type::BLOCK_BYTES);
    std::memset(padded + count * Type::BLOCK_BYTES, 0, (8 - count) * Type::BLOCK_BYTES);
    p = padded;
  }
  Chunk w;
  float weight_scales[8], weight_minimums[8];
  Type::unpack(p, w, weight_scales, weight_minimums);
  for (int64_t t = 0; t < tile.T; ++t) {
    const int64_t row = g * tile.T + t;
    int32x4_t eight[2];
    eight_products(w, tile.q + row * 256, eight);
    add_group(eight, weight_scales, tile.scales + row * 8, lanes[t]);
    if constexpr (Type::HAS_MINIMUM) {
      UNROLL for (int i = 0; i < 2; ++i) eight[i] = vpaddlq_s16(vld1q_s16(tile.sums + row * 16 + 8 * i));
      add_group(eight, weight_minimums, tile.scales + row * 8, lanes[t]);
    }
  }
}

// Lanes l and l + 4, then l and l + 2, then 0 and 1.
static ALWAYS_INLINE float sum_lanes(const float32x4_t* lanes) {
  const float32x4_t fours = vaddq_f32(lanes[0], lanes[1]);
  return vpadds_f32(vadd_f32(vget_low_f32(fours), vget_high_f32(fours)));
}

template <class Type>
static void dot_tile_rows(const Tile& tile, const uint8_t* w, int64_t row_bytes, int64_t N, float* out, int64_t ldo) {
  float32x4_t lanes[MOST_TILE_ROWS][2];
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t t = 0; t < tile.T; ++t) lanes[t][0] = lanes[t][1] = vdupq_n_f32(0.0f);
    for (int64_t g = 0; g < tile.groups; ++g) {
      const uint8_t* p = w + n * row_bytes + g * 8 * Type::BLOCK_BYTES;
      const int64_t count = tile.blocks - g * 8 < 8 ? tile.blocks - g * 8 : 8;
      if constexpr (Type::BLOCK == 256) {
        add_blocks_of_256<Type>(tile, g, p, count, lanes);
      } else {
        add_blocks_of_32<Type>(tile, g, p, count, lanes);
      }
    }
    for (int64_t t = 0; t < tile.T; ++t) out[t * ldo + n] = sum_lanes(lanes[t]);
  }
}

// WIDE takes rows that are too long for a tile, of more than 131,072 weights.
template <class Type, DotRounded WIDE>
static void dot_tiles(const RoundedRows& x, int64_t T, const uint8_t* w, int64_t row_bytes, int64_t N, float* out,
                      int64_t ldo) {
  int64_t most = TILE_BYTES / ((x.K + 255) / 256 * 256);
  if (most == 0) {
    WIDE(x, T, w, row_bytes, N, out, ldo);
    return;
  }
  if (most > MOST_TILE_ROWS) most = MOST_TILE_ROWS;
  const int64_t tiles = (T + most - 1) / most;
  Tile tile;
  for (int64_t i = 0, t = 0; i < tiles; ++i) {
    const int64_t rows = (T - t) / (tiles - i);
    tile.arrange(x, t, rows);
    dot_tile_rows<Type>(tile, w, row_bytes, N, out + t * ldo, ldo);
    t += rows;
  }
}

template <class Block>
struct Fastest {
  static constexpr DotRounded dot = dot_tiles<Unpacked<Block>, dot_decoded<Block>>;
};
