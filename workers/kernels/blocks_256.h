// Quantised weights in vectors of 256 bits: how the blocks of each type unpack, and their products with rows of
// 8-bit activations. The definition is in rounded.h; everything here is integers up to a block's S and M, so any
// order gives the same bits.
//
// The unit is a chunk of 256 weights of one row: one block of 256, or eight blocks of 32. A type unpacks a chunk
// into eight vectors of 8-bit weights whose order lets 16-bit sums run as far as their bound allows before they
// are widened and scaled; the activations are put into the same order once a call, by `arrange`. A type has
//   BLOCK, BLOCK_BYTES    of the file
//   MINIMUMS              minimums of a chunk: 0 for none, 8 or 16 (of blocks of 256), 1 (of each block of 32)
//   ROWS                  rows that `dot` takes together
//   FEW                   whether two to four rows are worth code of their own
//   arrange(q, out)       256 activations in the type's order
//   unpack(p)             a chunk's weights
//   SCALE_AT, FACTOR      where a block's float16 scale lies, and what it is multiplied by
//   dot<R>(w, ...)        for R rows the vector whose lanes sum to S (blocks of 256) or are S (blocks of 32)

using Vector = __m256i;

static ALWAYS_INLINE Vector load(const void* p) { return _mm256_loadu_si256((const Vector*)p); }
static ALWAYS_INLINE __m128i load_half(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
static ALWAYS_INLINE void store(void* p, Vector v) { _mm256_storeu_si256((Vector*)p, v); }
static ALWAYS_INLINE Vector join(__m128i low, __m128i high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
static ALWAYS_INLINE Vector join_at(const void* low, const void* high) { return join(load_half(low), load_half(high)); }
static ALWAYS_INLINE Vector twice(__m128i half) { return join(half, half); }
static ALWAYS_INLINE Vector bytes(int value) { return _mm256_set1_epi8((char)value); }
static ALWAYS_INLINE Vector low_nibbles(Vector v) { return _mm256_and_si256(v, bytes(15)); }
static ALWAYS_INLINE Vector high_nibbles(Vector v) {
  return _mm256_and_si256(_mm256_srli_epi16(v, 4), bytes(15));
}

// Four by four 32-bit pieces in each half: out[v] has piece v of each input.
static ALWAYS_INLINE void transpose_fours(const Vector* in, Vector* out) {
  const Vector a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpackhi_epi32(in[0], in[1]);
  const Vector c = _mm256_unpacklo_epi32(in[2], in[3]), d = _mm256_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm256_unpacklo_epi64(a, c);
  out[1] = _mm256_unpackhi_epi64(a, c);
  out[2] = _mm256_unpacklo_epi64(b, d);
  out[3] = _mm256_unpackhi_epi64(b, d);
}

// Sums of eight vectors, by halving: [a b a b | ...], then of two of those [a b c d | ...], then of two of those
// one lane each.
static ALWAYS_INLINE Vector halve_to_twos(Vector a, Vector b) {
  return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}
static ALWAYS_INLINE Vector halve_to_fours(Vector ab, Vector cd) {
  return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
}
static ALWAYS_INLINE Vector halve_to_eights(Vector first, Vector last) {
  const Vector low = join(_mm256_castsi256_si128(first), _mm256_castsi256_si128(last));
  const Vector high = _mm256_inserti128_si256(last, _mm256_extracti128_si256(first, 1), 0);
  return _mm256_add_epi32(low, high);
}
static ALWAYS_INLINE Vector sum_fours(Vector a, Vector b, Vector c, Vector d) {
  return halve_to_fours(halve_to_twos(a, b), halve_to_twos(c, d));
}

// Products of unsigned weights and signed activations, `N` vectors summed, times a scale for each 32-bit lane.
// Without VNNI the sums are of 16 bits: pairs of products, so 2 N * (largest weight) * 127 must stay below 32768.
#ifdef POTLUCK_VNNI
static ALWAYS_INLINE Vector scales_of_lanes(Vector pairs) {
  return _mm256_srai_epi32(_mm256_slli_epi32(pairs, 16), 16);
}
template <int N>
static ALWAYS_INLINE Vector scaled_sum(const Vector* weights, const Vector* q, Vector scales) {
  Vector sum = _mm256_setzero_si256();
  UNROLL for (int i = 0; i < N; ++i) sum = _mm256_dpbusd_epi32(sum, weights[i], load(q + i));
  return _mm256_mullo_epi32(sum, scales);
}
template <int N>
static ALWAYS_INLINE Vector plain_sum(const Vector* weights, const Vector* q) {
  Vector sum = _mm256_setzero_si256();
  UNROLL for (int i = 0; i < N; ++i) sum = _mm256_dpbusd_epi32(sum, weights[i], load(q + i));
  return sum;
}
#else
static ALWAYS_INLINE Vector scales_of_lanes(Vector pairs) { return pairs; }
template <int N>
static ALWAYS_INLINE Vector sixteen_bit_sum(const Vector* weights, const Vector* q) {
  Vector sum = _mm256_maddubs_epi16(weights[0], load(q));
  UNROLL for (int i = 1; i < N; ++i) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights[i], load(q + i)));
  return sum;
}
template <int N>
static ALWAYS_INLINE Vector scaled_sum(const Vector* weights, const Vector* q, Vector scales) {
  return _mm256_madd_epi16(sixteen_bit_sum<N>(weights, q), scales);
}
template <int N>
static ALWAYS_INLINE Vector plain_sum(const Vector* weights, const Vector* q) {
  return _mm256_madd_epi16(sixteen_bit_sum<N>(weights, q), _mm256_set1_epi16(1));
}
#endif

// One row's share of a call, arranged: 256 activations, and the sums of their sixteen neighbours.
struct ArrangedRows {
  const int8_t* q;       // [T, 256]
  const int16_t* sums;   // [T, 16]
};

// Scales and minimums of 6 bits, eight each, in twelve bytes: scales in the low eight bytes, then minimums.
static ALWAYS_INLINE __m128i six_bit_scales(const uint8_t* p) {
  const uint32_t a = word_at(p), b = word_at(p + 4), c = word_at(p + 8);
  const uint32_t scales = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
  const uint32_t minimums = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
  return _mm_set_epi64x((long long)((uint64_t)minimums << 32 | (b & 0x3f3f3f3f)),
                        (long long)((uint64_t)scales << 32 | (a & 0x3f3f3f3f)));
}

// Sub-blocks 0 2 4 6 and 1 3 5 7 side by side in 32-bit pieces.
struct EvenOdd {
  static constexpr float FACTOR = 1.0f;

  static ALWAYS_INLINE void arrange(const int8_t* q, int8_t* out) {
    Vector in[4], turned[4];
    UNROLL for (int odd = 0; odd < 2; ++odd) {
      UNROLL for (int i = 0; i < 4; ++i) in[i] = load(q + 64 * i + 32 * odd);
      transpose_fours(in, turned);
      UNROLL for (int i = 0; i < 4; ++i) store(out + 128 * odd + 32 * i, turned[i]);
    }
  }

  struct Weights {
    Vector q[8], scales[2];
    __m128i minimums;  // eight, 16 bits each
  };

  static ALWAYS_INLINE void set_scales(const uint8_t* p, Weights& w) {
    const __m128i sixes = six_bit_scales(p);
    const Vector both = twice(sixes);
    const Vector even = _mm256_setr_epi8(0, -1, 0, -1, 2, -1, 2, -1, 4, -1, 4, -1, 6, -1, 6, -1,  //
                                         0, -1, 0, -1, 2, -1, 2, -1, 4, -1, 4, -1, 6, -1, 6, -1);
    const Vector odd = _mm256_setr_epi8(1, -1, 1, -1, 3, -1, 3, -1, 5, -1, 5, -1, 7, -1, 7, -1,  //
                                        1, -1, 1, -1, 3, -1, 3, -1, 5, -1, 5, -1, 7, -1, 7, -1);
    w.scales[0] = scales_of_lanes(_mm256_shuffle_epi8(both, even));
    w.scales[1] = scales_of_lanes(_mm256_shuffle_epi8(both, odd));
    w.minimums = _mm_unpackhi_epi8(sixes, _mm_setzero_si128());
  }

  // Eight products of 31 * 127 a lane are 31,496.
  template <int R>
  static ALWAYS_INLINE void dot(const Weights& w, ArrangedRows rows, Vector* out) {
    UNROLL for (int r = 0; r < R; ++r) {
      const Vector* q = (const Vector*)(rows.q + 256 * r);
      out[r] = _mm256_add_epi32(scaled_sum<4>(w.q, q, w.scales[0]), scaled_sum<4>(w.q + 4, q + 4, w.scales[1]));
    }
  }
};

// Nibbles from `NIBBLES` on; where bits lie before them, fifth bits of q.
template <class Block, int NIBBLES>
struct SixBitScales : Block, EvenOdd {
  static constexpr bool FEW = false;
  static constexpr int MINIMUMS = 8, ROWS = 1, SCALE_AT = 0, MINIMUM_AT = 2, SIXES = 4, BITS = 16;

  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    Vector in[4], turned[4];
    UNROLL for (int i = 0; i < 4; ++i) in[i] = load(p + NIBBLES + 32 * i);
    transpose_fours(in, turned);
    UNROLL for (int i = 0; i < 4; ++i) {
      w.q[i] = low_nibbles(turned[i]);
      w.q[4 + i] = high_nibbles(turned[i]);
    }
    if constexpr (NIBBLES > BITS) add_fifths(load(p + BITS), w);
    set_scales(p + SIXES, w);
    return w;
  }

 private:
  // The fifth bits of an even sub-block go to bit 4, of the odd one after it to bit 5 first. (Additions, since many
  // processors shift on one port only.)
  static ALWAYS_INLINE void add_fifths(Vector bits, Weights& w) {
    Vector in[4], high[4];
    const Vector by_2 = _mm256_add_epi8(bits, bits), by_4 = _mm256_add_epi8(by_2, by_2);
    const Vector by_8 = _mm256_add_epi8(by_4, by_4);
    in[0] = _mm256_add_epi8(by_8, by_8);
    in[1] = by_4;
    in[2] = bits;
    in[3] = _mm256_srli_epi16(bits, 2);
    transpose_fours(in, high);
    UNROLL for (int i = 0; i < 4; ++i) {
      const Vector odd = _mm256_avg_epu8(_mm256_and_si256(high[i], bytes(32)), _mm256_setzero_si256());
      w.q[i] = _mm256_or_si256(w.q[i], _mm256_and_si256(high[i], bytes(16)));
      w.q[4 + i] = _mm256_or_si256(w.q[4 + i], odd);
    }
  }
};

using FastQ4_K = SixBitScales<BlockQ4_K, 16>;
using FastQ5_K = SixBitScales<BlockQ5_K, 48>;

// Sixteen sub-blocks of sixteen; vector 2 p + i of the eight has eights of two pairs of them.
template <int STEP>
struct Eights {
  static constexpr float FACTOR = 1.0f;

  static ALWAYS_INLINE void arrange(const int8_t* q, int8_t* out) {
    UNROLL for (int p = 0; p < 4; ++p) {
      const int first = STEP == 1 ? 2 * p : p;
      const Vector a = load(q + 32 * first), b = load(q + 32 * (first + STEP));
      store(out + 64 * p, _mm256_unpacklo_epi64(a, b));
      store(out + 64 * p + 32, _mm256_unpackhi_epi64(a, b));
    }
  }

  struct Weights {
    Vector q[8], scales[4], offsets;  // offsets: by natural order of the sub-blocks, 16 bits each
    Vector minimums;
  };

  // Lanes of the scales, from sixteen of 16 bits in their natural order.
  static ALWAYS_INLINE void set_scales(Vector scales, Weights& w) {
    __m128i first = _mm256_castsi256_si128(scales), last = _mm256_extracti128_si256(scales, 1);
    if constexpr (STEP == 4) {
      const __m128i eight = first;
      first = _mm_unpacklo_epi16(eight, last);
      last = _mm_unpackhi_epi16(eight, last);
    }
    // Of four neighbours a b c d: [a c | b d] where pairs of vectors are neighbours, else [a b | c d].
    constexpr int A = 0x100, SECOND = STEP == 1 ? 0x404 : 0x202, THIRD = STEP == 1 ? 0x202 : 0x404;
    const __m128i even = _mm_setr_epi16(A, A, A, A, A + SECOND, A + SECOND, A + SECOND, A + SECOND);
    const Vector pick = join(even, _mm_add_epi16(even, _mm_set1_epi16(THIRD)));
    const Vector pick_next = _mm256_add_epi16(pick, _mm256_set1_epi16(0x808));
    w.scales[0] = scales_of_lanes(_mm256_shuffle_epi8(twice(first), pick));
    w.scales[1] = scales_of_lanes(_mm256_shuffle_epi8(twice(first), pick_next));
    w.scales[2] = scales_of_lanes(_mm256_shuffle_epi8(twice(last), pick));
    w.scales[3] = scales_of_lanes(_mm256_shuffle_epi8(twice(last), pick_next));
  }
};

template <class Order>
struct OffsetEights : Order {
  using Weights = typename Order::Weights;
  // Four products of 63 * 127 a lane are 32,004.
  template <int R>
  static ALWAYS_INLINE void dot(const Weights& w, ArrangedRows rows, Vector* out) {
    UNROLL for (int r = 0; r < R; ++r) {
      const Vector* q = (const Vector*)(rows.q + 256 * r);
      const Vector first = _mm256_add_epi32(scaled_sum<2>(w.q, q, w.scales[0]),
                                            scaled_sum<2>(w.q + 2, q + 2, w.scales[1]));
      const Vector last = _mm256_add_epi32(scaled_sum<2>(w.q + 4, q + 4, w.scales[2]),
                                           scaled_sum<2>(w.q + 6, q + 6, w.scales[3]));
      const Vector offsets = _mm256_madd_epi16(w.offsets, load(rows.sums + 16 * r));
      out[r] = _mm256_sub_epi32(_mm256_add_epi32(first, last), offsets);
    }
  }
};

struct FastQ6_K : BlockQ6_K, OffsetEights<Eights<1>> {
  static constexpr bool FEW = false;
  static constexpr int MINIMUMS = 0, ROWS = 1, SCALE_AT = 208;
  static ALWAYS_INLINE void unpack_half(const uint8_t* p, int half, Vector* q) {
    const Vector a = load(p + 64 * half), b = load(p + 64 * half + 32), high = load(p + 128 + 32 * half);
    const Vector shifted = _mm256_srli_epi16(high, 2);
    const Vector low[2] = {_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)};
    const Vector top[2] = {_mm256_unpacklo_epi64(high, shifted), _mm256_unpackhi_epi64(high, shifted)};
    UNROLL for (int i = 0; i < 2; ++i) {
      q[i] = _mm256_or_si256(low_nibbles(low[i]), _mm256_and_si256(_mm256_slli_epi16(top[i], 4), bytes(48)));
      q[2 + i] = _mm256_or_si256(high_nibbles(low[i]), _mm256_and_si256(top[i], bytes(48)));
    }
  }
  static ALWAYS_INLINE void unpack_scales(const uint8_t* p, Weights& w) {
    const Vector scales = _mm256_cvtepi8_epi16(load_half(p + 192));
    set_scales(scales, w);
    w.offsets = _mm256_slli_epi16(scales, 5);
  }
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    unpack_half(p, 0, w.q);
    unpack_half(p, 1, w.q + 4);
    unpack_scales(p, w);
    return w;
  }
};

// One row alone meets half a chunk at a time: all of it at once leaves too few registers.
struct OneRowQ6_K : FastQ6_K {
  struct Weights {
    const uint8_t* p;
  };
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) { return {p}; }
  template <int R>
  static ALWAYS_INLINE void dot(const Weights& w, ArrangedRows row, Vector* out) {
    static_assert(R == 1);
    FastQ6_K::Weights of;
    unpack_scales(w.p, of);
    const Vector* q = (const Vector*)row.q;
    Vector sum = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_madd_epi16(of.offsets, load(row.sums)));
    UNROLL for (int half = 0; half < 2; ++half) {
      Vector part[4];
      unpack_half(w.p, half, part);
      sum = _mm256_add_epi32(sum, scaled_sum<2>(part, q + 4 * half, of.scales[2 * half]));
      sum = _mm256_add_epi32(sum, scaled_sum<2>(part + 2, q + 4 * half + 2, of.scales[2 * half + 1]));
    }
    out[0] = sum;
  }
};

struct FastQ3_K : BlockQ3_K, OffsetEights<Eights<4>> {
  static constexpr bool FEW = false;
  static constexpr int MINIMUMS = 0, ROWS = 1, SCALE_AT = 108;
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    const Vector thirds = load(p), a = load(p + 32), b = load(p + 64);
    const Vector shifted = _mm256_srli_epi16(thirds, 4);
    const Vector low[2] = {_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)};
    const Vector top[2] = {_mm256_unpacklo_epi64(thirds, shifted), _mm256_unpackhi_epi64(thirds, shifted)};
    // Bits 0 and 2 of a nibble to bits 2 and 6; bits 1 and 3 likewise.
    const Vector even = twice(_mm_setr_epi8(0, 4, 0, 4, 64, 68, 64, 68, 0, 4, 0, 4, 64, 68, 64, 68));
    const Vector odd = twice(_mm_setr_epi8(0, 0, 4, 4, 0, 0, 4, 4, 64, 64, 68, 68, 64, 64, 68, 68));
    UNROLL for (int i = 0; i < 2; ++i) {
      const Vector index = low_nibbles(top[i]);
      const Vector first = _mm256_or_si256(_mm256_and_si256(low[i], bytes(0x33)), _mm256_shuffle_epi8(even, index));
      const Vector second = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low[i], 2), bytes(0x33)),
                                            _mm256_shuffle_epi8(odd, index));
      w.q[i] = low_nibbles(first);
      w.q[2 + i] = low_nibbles(second);
      w.q[4 + i] = high_nibbles(first);
      w.q[6 + i] = high_nibbles(second);
    }
    const uint32_t x = word_at(p + 96), y = word_at(p + 100), z = word_at(p + 104);
    const __m128i sixes = _mm_set_epi32((int)((y >> 4 & 0x0f0f0f0f) | (z >> 2 & 0x30303030)),
                                        (int)((x >> 4 & 0x0f0f0f0f) | (z & 0x30303030)),
                                        (int)((y & 0x0f0f0f0f) | (z << 2 & 0x30303030)),
                                        (int)((x & 0x0f0f0f0f) | (z << 4 & 0x30303030)));
    const Vector scales = _mm256_cvtepi8_epi16(_mm_sub_epi8(sixes, _mm_set1_epi8(32)));
    set_scales(scales, w);
    w.offsets = _mm256_slli_epi16(scales, 2);
    return w;
  }
};

struct FastQ2_K : BlockQ2_K, Eights<4> {
  static constexpr bool FEW = false;
  static constexpr int MINIMUMS = 16, ROWS = 1, SCALE_AT = 80, MINIMUM_AT = 82;
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    const Vector a = load(p + 16), b = load(p + 48);
    const Vector low[2] = {_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)};
    UNROLL for (int i = 0; i < 2; ++i) {
      w.q[i] = _mm256_and_si256(low[i], bytes(3));
      w.q[2 + i] = _mm256_and_si256(_mm256_srli_epi16(low[i], 2), bytes(3));
      w.q[4 + i] = _mm256_and_si256(_mm256_srli_epi16(low[i], 4), bytes(3));
      w.q[6 + i] = _mm256_and_si256(_mm256_srli_epi16(low[i], 6), bytes(3));
    }
    const __m128i packed = load_half(p), fours = _mm_set1_epi8(15);
    set_scales(_mm256_cvtepu8_epi16(_mm_and_si128(packed, fours)), w);
    w.minimums = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(packed, 4), fours));
    return w;
  }
  template <int R>
  static ALWAYS_INLINE void dot(const Weights& w, ArrangedRows rows, Vector* out) {
    UNROLL for (int r = 0; r < R; ++r) {
      const Vector* q = (const Vector*)(rows.q + 256 * r);
      out[r] = _mm256_add_epi32(
          _mm256_add_epi32(scaled_sum<2>(w.q, q, w.scales[0]), scaled_sum<2>(w.q + 2, q + 2, w.scales[1])),
          _mm256_add_epi32(scaled_sum<2>(w.q + 4, q + 4, w.scales[2]), scaled_sum<2>(w.q + 6, q + 6, w.scales[3])));
    }
  }
};

// Signed weights of up to 8 bits: magnitudes times activations that take the weights' signs. A pair of products
// reaches 2 * 128 * 127 = 32,512, so each vector is widened by itself. SCALES vectors of weights share a scale.
template <int SCALES>
struct Signed {
  static constexpr int ROWS = 4;
  static constexpr float FACTOR = 1.0f;
  struct Weights {
    Vector q[8], scales[SCALES];
  };
  template <int R>
  static ALWAYS_INLINE void dot(const Weights& w, ArrangedRows rows, Vector* out) {
    Vector sums[R];
    UNROLL for (int r = 0; r < R; ++r) sums[r] = _mm256_setzero_si256();
    UNROLL for (int i = 0; i < 8; ++i) {
      const Vector magnitudes = _mm256_abs_epi8(w.q[i]);
      UNROLL for (int r = 0; r < R; ++r) {
        const Vector q = _mm256_sign_epi8(load(rows.q + 256 * r + 32 * i), w.q[i]);
        sums[r] = _mm256_add_epi32(sums[r], scaled_sum<1>(&magnitudes, &q, w.scales[i * SCALES / 8]));
      }
    }
    UNROLL for (int r = 0; r < R; ++r) out[r] = sums[r];
  }
};

static ALWAYS_INLINE Vector iq4_values() { return twice(load_half(tables.iq4)); }

struct FastIQ4_XS : BlockIQ4_XS, Signed<4> {
  static constexpr bool FEW = true;
  static constexpr int MINIMUMS = 0, SCALE_AT = 0;
  // Halves of two sub-blocks side by side.
  static ALWAYS_INLINE void arrange(const int8_t* q, int8_t* out) {
    UNROLL for (int i = 0; i < 4; ++i) {
      store(out + 64 * i, join_at(q + 64 * i, q + 64 * i + 32));
      store(out + 64 * i + 32, join_at(q + 64 * i + 16, q + 64 * i + 48));
    }
  }
  static ALWAYS_INLINE uint32_t spread(uint32_t twos) {
    return (twos & 3) << 4 | (twos & 0x30) << 8 | (twos & 0x300) << 12 | (twos & 0x3000) << 16;
  }
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    const Vector values = iq4_values();
    UNROLL for (int i = 0; i < 4; ++i) {
      const Vector packed = load(p + 8 + 32 * i);
      w.q[2 * i] = _mm256_shuffle_epi8(values, low_nibbles(packed));
      w.q[2 * i + 1] = _mm256_shuffle_epi8(values, high_nibbles(packed));
    }
    const uint32_t fours = word_at(p + 4), twos = (uint32_t)p[2] | (uint32_t)p[3] << 8;
    const uint32_t even = (fours & 0x0f0f0f0f) | spread(twos), odd = (fours >> 4 & 0x0f0f0f0f) | spread(twos >> 2);
    // Bytes s0 s2 s4 s6, s1 s3 s5 s7.
    const __m128i scales = _mm_sub_epi8(_mm_set_epi32(0, 0, (int)odd, (int)even), _mm_set1_epi8(32));
    const Vector both = twice(_mm_cvtepi8_epi16(scales));
    UNROLL for (int i = 0; i < 4; ++i) {
      const __m128i first = _mm_set1_epi16((short)((2 * i + 1) << 8 | 2 * i));
      const __m128i second = _mm_set1_epi16((short)((2 * i + 9) << 8 | (2 * i + 8)));
      w.scales[i] = scales_of_lanes(_mm256_shuffle_epi8(both, join(first, second)));
    }
    return w;
  }
};
