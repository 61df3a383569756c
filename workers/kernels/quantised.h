// GGML's quantised types: how a block's bytes are integers and scales (ggml-org/llama.cpp,
// ggml/src/ggml-common.h and gguf-py/gguf/quants.py). A weight is scale * scales[i / 16] * q[i], and where the
// type has minimums plus minimum * minimums[i / 16].

template <int N>
struct Decoded {
  int8_t q[N];
  int16_t scales[N / 16], minimums[N / 16];
  float scale, minimum;
};

static ALWAYS_INLINE float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return widen_half(bits);
}

static ALWAYS_INLINE uint32_t word_at(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

// Thirty-two nibbles of sixteen bytes: the low halves first.
static ALWAYS_INLINE void nibbles(const uint8_t* p, int8_t* q, int offset) {
  for (int i = 0; i < 16; ++i) {
    q[i] = (int8_t)((p[i] & 15) - offset);
    q[16 + i] = (int8_t)((p[i] >> 4) - offset);
  }
}

// The fifth bits of thirty-two weights.
static ALWAYS_INLINE void fifth_bits(const uint8_t* p, int8_t* q) {
  const uint32_t bits = word_at(p);
  for (int i = 0; i < 32; ++i) q[i] = (int8_t)(q[i] + (bits >> i & 1) * 16);
}

template <int N>
static ALWAYS_INLINE void unscaled(Decoded<N>& out) {
  for (int j = 0; j < N / 16; ++j) out.scales[j] = out.minimums[j] = 1;
}

struct BlockQ8_0 {
  static constexpr int BLOCK = 32, BLOCK_BYTES = 34;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<32>& out) {
    unscaled(out);
    out.scale = half_at(p);
    std::memcpy(out.q, p + 2, 32);
  }
};

struct BlockQ4_0 {
  static constexpr int BLOCK = 32, BLOCK_BYTES = 18;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<32>& out) {
    unscaled(out);
    out.scale = half_at(p);
    nibbles(p + 2, out.q, 8);
  }
};

struct BlockQ4_1 {
  static constexpr int BLOCK = 32, BLOCK_BYTES = 20;
  static constexpr bool HAS_MINIMUM = true;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<32>& out) {
    unscaled(out);
    out.scale = half_at(p);
    out.minimum = half_at(p + 2);
    nibbles(p + 4, out.q, 0);
  }
};

struct BlockQ5_0 {
  static constexpr int BLOCK = 32, BLOCK_BYTES = 22;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<32>& out) {
    unscaled(out);
    out.scale = half_at(p);
    nibbles(p + 6, out.q, 16);
    fifth_bits(p + 2, out.q);
  }
};

struct BlockQ5_1 {
  static constexpr int BLOCK = 32, BLOCK_BYTES = 24;
  static constexpr bool HAS_MINIMUM = true;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<32>& out) {
    unscaled(out);
    out.scale = half_at(p);
    out.minimum = half_at(p + 2);
    nibbles(p + 8, out.q, 0);
    fifth_bits(p + 4, out.q);
  }
};

struct BlockQ2_K {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 84;
  static constexpr bool HAS_MINIMUM = true;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    for (int j = 0; j < 16; ++j) {
      out.scales[j] = p[j] & 15;
      out.minimums[j] = p[j] >> 4;
    }
    for (int i = 0; i < 256; ++i) out.q[i] = (int8_t)(p[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
    out.scale = half_at(p + 80);
    out.minimum = -half_at(p + 82);
  }
};

struct BlockQ3_K {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 110;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    const uint8_t *high = p, *low = p + 32, *packed = p + 96;
    for (int i = 0; i < 256; ++i) {
      const int two = low[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
      out.q[i] = (int8_t)(two + (high[i % 32] >> (i / 32) & 1) * 4 - 4);
    }
    for (int j = 0; j < 16; ++j) {
      const int four = packed[j % 8] >> (j / 8 * 4) & 15, two = packed[8 + j % 4] >> (j / 4 * 2) & 3;
      out.scales[j] = (int16_t)(four + two * 16 - 32);
    }
    out.scale = half_at(p + 108);
  }
};

// Eight scales and eight minimums of 6 bits in twelve bytes, each for thirty-two weights.
static ALWAYS_INLINE void sixes(const uint8_t* p, Decoded<256>& out) {
  for (int j = 0; j < 8; ++j) {
    const int low = j % 4;
    const int scale = j < 4 ? p[low] & 63 : (p[8 + low] & 15) | (p[low] >> 6) << 4;
    const int minimum = j < 4 ? p[4 + low] & 63 : p[8 + low] >> 4 | (p[4 + low] >> 6) << 4;
    out.scales[2 * j] = out.scales[2 * j + 1] = (int16_t)scale;
    out.minimums[2 * j] = out.minimums[2 * j + 1] = (int16_t)minimum;
  }
}

struct BlockQ4_K {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 144;
  static constexpr bool HAS_MINIMUM = true;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    out.scale = half_at(p);
    out.minimum = -half_at(p + 2);
    sixes(p + 4, out);
    for (int i = 0; i < 256; ++i) out.q[i] = (int8_t)(p[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15);
  }
};

struct BlockQ5_K {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 176;
  static constexpr bool HAS_MINIMUM = true;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    out.scale = half_at(p);
    out.minimum = -half_at(p + 2);
    sixes(p + 4, out);
    for (int i = 0; i < 256; ++i) {
      const int four = p[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
      out.q[i] = (int8_t)(four + (p[16 + i % 32] >> (i / 32) & 1) * 16);
    }
  }
};

struct BlockQ6_K {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 210;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    const uint8_t *low = p, *high = p + 128, *scales = p + 192;
    for (int i = 0; i < 256; ++i) {
      const int half = i / 128, in_half = i % 128;
      const int four = low[half * 64 + in_half % 64] >> (in_half / 64 * 4) & 15;
      const int two = high[half * 32 + i % 32] >> (in_half / 32 * 2) & 3;
      out.q[i] = (int8_t)(four + two * 16 - 32);
    }
    for (int j = 0; j < 16; ++j) out.scales[j] = (int8_t)scales[j];
    out.scale = half_at(p + 208);
  }
};

struct BlockIQ4_NL {
  static constexpr int BLOCK = 32, BLOCK_BYTES = 18;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<32>& out) {
    unscaled(out);
    out.scale = half_at(p);
    nibbles(p + 2, out.q, 0);
    for (int i = 0; i < 32; ++i) out.q[i] = tables.iq4[out.q[i]];
  }
};

struct BlockIQ4_XS {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 136;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    out.scale = half_at(p);
    for (int j = 0; j < 8; ++j) {
      const int four = p[4 + j / 2] >> (j % 2 * 4) & 15, two = p[2 + j / 4] >> (j % 4 * 2) & 3;
      out.scales[2 * j] = out.scales[2 * j + 1] = (int16_t)(four + two * 16 - 32);
      nibbles(p + 8 + 16 * j, out.q + 32 * j, 0);
    }
    for (int i = 0; i < 256; ++i) out.q[i] = tables.iq4[out.q[i]];
  }
};

// Eight or four weights of a grid's row, negated where the sign bits say so.
template <int N>
static ALWAYS_INLINE void signed_grid(const uint8_t* grid_row, uint32_t signs, int8_t* q) {
  for (int i = 0; i < N; ++i) q[i] = (int8_t)(signs >> i & 1 ? -(int)grid_row[i] : (int)grid_row[i]);
}

static ALWAYS_INLINE void odd_scales(int j, int number, Decoded<256>& out) {
  out.scales[2 * j] = out.scales[2 * j + 1] = (int16_t)(2 * number + 1);
}

struct BlockIQ2_XXS {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 66;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    out.scale = half_at(p) * 0.125f;
    for (int j = 0; j < 8; ++j) {
      const uint8_t* rows = p + 2 + 8 * j;
      const uint32_t word = word_at(rows + 4);
      odd_scales(j, word >> 28, out);
      for (int i = 0; i < 4; ++i) {
        signed_grid<8>(tables.iq2_xxs + 8 * rows[i], tables.signs[word >> (7 * i) & 127], out.q + 32 * j + 8 * i);
      }
    }
  }
};

// Two scales of 4 bits a byte, each for sixteen weights.
static ALWAYS_INLINE void odd_scales_of_sixteen(const uint8_t* p, Decoded<256>& out) {
  for (int j = 0; j < 16; ++j) out.scales[j] = (int16_t)(2 * (p[j / 2] >> (j % 2 * 4) & 15) + 1);
}

struct BlockIQ2_XS {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 74;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    out.scale = half_at(p) * 0.125f;
    odd_scales_of_sixteen(p + 66, out);
    for (int i = 0; i < 32; ++i) {
      const uint32_t word = p[2 + 2 * i] | (uint32_t)p[3 + 2 * i] << 8;
      signed_grid<8>(tables.iq2_xs + 8 * (word & 511), tables.signs[word >> 9], out.q + 8 * i);
    }
  }
};

struct BlockIQ2_S {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 82;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    out.scale = half_at(p) * 0.125f;
    odd_scales_of_sixteen(p + 74, out);
    for (int i = 0; i < 32; ++i) {
      const int row = p[2 + i] | (p[66 + i / 4] >> (i % 4 * 2) & 3) << 8;
      signed_grid<8>(tables.iq2_s + 8 * row, p[34 + i], out.q + 8 * i);
    }
  }
};

struct BlockIQ3_XXS {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 98;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    out.scale = half_at(p) * 0.25f;
    for (int j = 0; j < 8; ++j) {
      const uint32_t word = word_at(p + 66 + 4 * j);
      odd_scales(j, word >> 28, out);
      for (int i = 0; i < 8; ++i) {
        const uint32_t signs = (uint32_t)tables.signs[word >> (i / 2 * 7) & 127] >> (i % 2 * 4);
        signed_grid<4>(tables.iq3_xxs + 4 * p[2 + 8 * j + i], signs, out.q + 32 * j + 4 * i);
      }
    }
  }
};

struct BlockIQ3_S {
  static constexpr int BLOCK = 256, BLOCK_BYTES = 110;
  static constexpr bool HAS_MINIMUM = false;
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<256>& out) {
    out.scale = half_at(p);
    for (int j = 0; j < 8; ++j) odd_scales(j, p[106 + j / 2] >> (j % 2 * 4) & 15, out);
    for (int i = 0; i < 64; ++i) {
      const int row = p[2 + i] | (p[66 + i / 8] >> (i % 8) & 1) << 8;
      signed_grid<4>(tables.iq3_s + 4 * row, (uint32_t)p[74 + i / 2] >> (i % 2 * 4), out.q + 4 * i);
    }
  }
};

struct BlockMXFP4 {
  static constexpr int BLOCK = 32, BLOCK_BYTES = 17;
  static constexpr bool HAS_MINIMUM = false;
  // 2^(e - 128): the table's values are doubled.
  static ALWAYS_INLINE float scale_of(uint8_t e) {
    return __builtin_bit_cast(float, e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
  }
  static ALWAYS_INLINE void decode(const uint8_t* p, Decoded<32>& out) {
    unscaled(out);
    out.scale = scale_of(p[0]);
    nibbles(p + 1, out.q, 0);
    for (int i = 0; i < 32; ++i) out.q[i] = tables.mxfp4[out.q[i]];
  }
};

// Every type, in the order of FORMATS, with its name.
#define QUANTISED_TYPES(EACH)    \
  EACH(BlockQ8_0, "q8_0")        \
  EACH(BlockQ6_K, "q6_k")        \
  EACH(BlockQ5_K, "q5_k")        \
  EACH(BlockQ4_K, "q4_k")        \
  EACH(BlockQ3_K, "q3_k")        \
  EACH(BlockQ2_K, "q2_k")        \
  EACH(BlockQ5_1, "q5_1")        \
  EACH(BlockQ5_0, "q5_0")        \
  EACH(BlockQ4_1, "q4_1")        \
  EACH(BlockQ4_0, "q4_0")        \
  EACH(BlockIQ4_NL, "iq4_nl")    \
  EACH(BlockIQ4_XS, "iq4_xs")    \
  EACH(BlockIQ3_S, "iq3_s")      \
  EACH(BlockIQ3_XXS, "iq3_xxs")  \
  EACH(BlockIQ2_S, "iq2_s")      \
  EACH(BlockIQ2_XS, "iq2_xs")    \
  EACH(BlockIQ2_XXS, "iq2_xxs")  \
  EACH(BlockMXFP4, "mxfp4")
