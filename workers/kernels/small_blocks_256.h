// Quantised weights in vectors of 256 bits (blocks_256.h), eight blocks of 32 at a time.

// The blocks side by side in 32-bit pieces, so that a lane's sum is a block's.
struct SideBySide {
  static ALWAYS_INLINE void turn(const uint8_t* p, int64_t stride, Vector* out) {
    Vector in[4];
    UNROLL for (int i = 0; i < 4; ++i) in[i] = join_at(p + stride * i, p + stride * (i + 4));
    transpose_fours(in, out);
  }
  static ALWAYS_INLINE void arrange(const int8_t* q, int8_t* out) {
    Vector turned[8];
    turn((const uint8_t*)q, 32, turned);
    turn((const uint8_t*)q + 16, 32, turned + 4);
    UNROLL for (int i = 0; i < 8; ++i) store(out + 32 * i, turned[i]);
  }
  // 0 or 16 by the fifth bits of eight blocks: bytes of out[i] by bits 4 i to 4 i + 3 of each block's four bytes.
  static ALWAYS_INLINE void fifths(const uint8_t* p, int64_t stride, Vector* out) {
    const Vector bits = _mm256_setr_epi32((int)word_at(p), (int)word_at(p + stride), (int)word_at(p + 2 * stride),
                                          (int)word_at(p + 3 * stride), (int)word_at(p + 4 * stride),
                                          (int)word_at(p + 5 * stride), (int)word_at(p + 6 * stride),
                                          (int)word_at(p + 7 * stride));
    const Vector pick = _mm256_set1_epi32((int)0x80402010), pick_low = _mm256_set1_epi32(0x08040201);
    UNROLL for (int i = 0; i < 8; ++i) {
      const int byte = i / 2;
      const Vector four = _mm256_shuffle_epi8(
          bits, twice(_mm_setr_epi8((char)byte, (char)byte, (char)byte, (char)byte, (char)(byte + 4), (char)(byte + 4),
                                    (char)(byte + 4), (char)(byte + 4), (char)(byte + 8), (char)(byte + 8),
                                    (char)(byte + 8), (char)(byte + 8), (char)(byte + 12), (char)(byte + 12),
                                    (char)(byte + 12), (char)(byte + 12))));
      const Vector mask = i % 2 ? pick : pick_low;
      out[i] = _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(four, mask), mask), bytes(16));
    }
  }
};

// Unsigned weights below 32, less an offset.
template <int OFFSET>
struct Nibbles : SideBySide {
  static constexpr int ROWS = 1;
  static constexpr float FACTOR = 1.0f;
  struct Weights {
    Vector q[8];
  };
  static ALWAYS_INLINE void set_nibbles(const uint8_t* p, int64_t stride, Weights& w) {
    Vector turned[4];
    turn(p, stride, turned);
    UNROLL for (int i = 0; i < 4; ++i) {
      w.q[i] = low_nibbles(turned[i]);
      w.q[4 + i] = high_nibbles(turned[i]);
    }
  }
  static ALWAYS_INLINE void add_fifths(const uint8_t* p, int64_t stride, Weights& w) {
    Vector high[8];
    fifths(p, stride, high);
    UNROLL for (int i = 0; i < 8; ++i) w.q[i] = _mm256_or_si256(w.q[i], high[i]);
  }
  template <int R>
  static ALWAYS_INLINE void dot(const Weights& w, ArrangedRows rows, Vector* out) {
    UNROLL for (int r = 0; r < R; ++r) {
      const Vector* q = (const Vector*)(rows.q + 256 * r);
      Vector sum = _mm256_add_epi32(plain_sum<4>(w.q, q), plain_sum<4>(w.q + 4, q + 4));
      if constexpr (OFFSET != 0) {
        const Vector offsets = _mm256_madd_epi16(_mm256_set1_epi16(OFFSET), load(rows.sums + 16 * r));
        sum = _mm256_sub_epi32(sum, offsets);
      }
      out[r] = sum;
    }
  }
};

// Nibbles end a block; the fifth bits, where the type has any, come before them.
template <class Block, int OFFSET, bool FIFTHS, bool MINIMUM>
struct Small : Block, Nibbles<OFFSET> {
  static constexpr bool FEW = false;
  static constexpr int MINIMUMS = MINIMUM, SCALE_AT = 0, MINIMUM_AT = 2;
  using Weights = typename Nibbles<OFFSET>::Weights;
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    constexpr int NIBBLES_AT = Block::BLOCK_BYTES - 16;
    Weights w;
    Small::set_nibbles(p + NIBBLES_AT, Block::BLOCK_BYTES, w);
    if constexpr (FIFTHS) Small::add_fifths(p + NIBBLES_AT - 4, Block::BLOCK_BYTES, w);
    return w;
  }
};

struct FastQ4_0 : Small<BlockQ4_0, 8, false, false> {};
struct FastQ4_1 : Small<BlockQ4_1, 0, false, true> {};
struct FastQ5_0 : Small<BlockQ5_0, 16, true, false> {};
struct FastQ5_1 : Small<BlockQ5_1, 0, true, true> {};

struct FastQ8_0 : BlockQ8_0, SideBySide, Signed<1> {
  static constexpr bool FEW = true;
  static constexpr int MINIMUMS = 0, SCALE_AT = 0;
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    turn(p + 2, BLOCK_BYTES, w.q);
    turn(p + 18, BLOCK_BYTES, w.q + 4);
    w.scales[0] = scales_of_lanes(_mm256_set1_epi16(1));
    return w;
  }
};

// One row alone: blocks stay as they lie and their sums are brought together, which is less work than turning eight
// vectors of weights.
struct OneRowQ8_0 : BlockQ8_0 {
  static constexpr bool FEW = false;
  static constexpr int MINIMUMS = 0, ROWS = 1, SCALE_AT = 0;
  static constexpr float FACTOR = 1.0f;
  struct Weights {
    Vector q[8];
  };
  static ALWAYS_INLINE void arrange(const int8_t* q, int8_t* out) { std::memcpy(out, q, 256); }
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    UNROLL for (int i = 0; i < 8; ++i) {
      w.q[i] = load(p + BLOCK_BYTES * i + 2);
      asm("" : "+x"(w.q[i]));  // or compilers load it for both of its uses, and half of these loads take two lines
    }
    return w;
  }
  template <int R>
  static ALWAYS_INLINE void dot(const Weights& w, ArrangedRows rows, Vector* out) {
    static_assert(R == 1);
    Vector sums[8];
    UNROLL for (int i = 0; i < 8; ++i) {
      const Vector magnitudes = _mm256_abs_epi8(w.q[i]);
      const Vector q = _mm256_sign_epi8(load(rows.q + 32 * i), w.q[i]);
      sums[i] = plain_sum<1>(&magnitudes, &q);
    }
    out[0] = halve_to_eights(sum_fours(sums[0], sums[1], sums[2], sums[3]),
                             sum_fours(sums[4], sums[5], sums[6], sums[7]));
  }
};

// Nibbles that are places in a table of sixteen.
template <class Block, int FIRST>
struct Looked : Block, SideBySide, Signed<1> {
  static constexpr bool FEW = false;
  static constexpr int MINIMUMS = 0, SCALE_AT = 0;
  static ALWAYS_INLINE Weights unpack(const uint8_t* p, const int8_t* table) {
    Weights w;
    Vector turned[4];
    turn(p + FIRST, Block::BLOCK_BYTES, turned);
    const Vector values = twice(load_half(table));
    UNROLL for (int i = 0; i < 4; ++i) {
      w.q[i] = _mm256_shuffle_epi8(values, low_nibbles(turned[i]));
      w.q[4 + i] = _mm256_shuffle_epi8(values, high_nibbles(turned[i]));
    }
    w.scales[0] = scales_of_lanes(_mm256_set1_epi16(1));
    return w;
  }
};

struct FastIQ4_NL : Looked<BlockIQ4_NL, 2> {
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) { return Looked::unpack(p, tables.iq4); }
};

struct FastMXFP4 : Looked<BlockMXFP4, 1> {
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) { return Looked::unpack(p, tables.mxfp4); }
};
