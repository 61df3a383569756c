// Quantised weights in vectors of 256 bits (blocks_256.h), where they are rows of a grid: eight or four magnitudes
// below 64 each, with signs beside them. 64 is added to every weight, so that products are of unsigned and signed
// numbers; the activations' sums take it away again.

template <class Block, int PARTS>
struct FromGrid : Block {
  static constexpr bool FEW = false;
  static constexpr int MINIMUMS = 0, ROWS = 2, SCALE_AT = 0;
  static constexpr float FACTOR = 1.0f / PARTS;
  static constexpr int OFFSET = 64;
  struct Weights {
    Vector q[8], scales[8], offsets;  // offsets: by natural order of the sixteens, 16 bits each
  };

  static ALWAYS_INLINE void arrange(const int8_t* q, int8_t* out) { std::memcpy(out, q, 256); }

  template <int R>
  static ALWAYS_INLINE void dot(const Weights& w, ArrangedRows rows, Vector* out) {
    UNROLL for (int r = 0; r < R; ++r) {
      out[r] = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_madd_epi16(w.offsets, load(rows.sums + 16 * r)));
    }
    UNROLL for (int i = 0; i < 8; ++i) {
      UNROLL for (int r = 0; r < R; ++r) {
        const Vector* q = (const Vector*)(rows.q + 256 * r + 32 * i);
        out[r] = _mm256_add_epi32(out[r], scaled_sum<1>(w.q + i, q, w.scales[i]));
      }
    }
  }

  // Thirty-two magnitudes: four grid rows of eight, or eight of four.
  template <class Index>
  static ALWAYS_INLINE Vector eights(const uint8_t* grid, const Index* rows) {
    const auto row = [&](int i) {
      long long eight;
      std::memcpy(&eight, grid + 8 * (int64_t)rows[i], 8);
      return eight;
    };
    return _mm256_setr_epi64x(row(0), row(1), row(2), row(3));
  }
  template <class Index>
  static ALWAYS_INLINE Vector fours(const uint8_t* grid, const Index* rows) {
    const auto row = [&](int i) { return (int)word_at(grid + 4 * (int64_t)rows[i]); };
    return _mm256_setr_epi32(row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7));
  }

  // Magnitudes with their sign bits, and the offset.
  static ALWAYS_INLINE Vector with_signs(Vector magnitudes, uint32_t signs) {
    const Vector spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                           2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const Vector pick = _mm256_set1_epi64x((long long)0x8040201008040201);
    const Vector bits = _mm256_shuffle_epi8(_mm256_set1_epi32((int)signs), spread);
    const Vector negative = _mm256_cmpeq_epi8(_mm256_and_si256(bits, pick), pick);
    return _mm256_sub_epi8(_mm256_xor_si256(magnitudes, negative), _mm256_sub_epi8(negative, bytes(OFFSET)));
  }

  // Bytes of seven signs to eight: the last makes the number of minus signs even.
  static ALWAYS_INLINE Vector even_signs(Vector sevens) {
    const Vector odd = twice(_mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    const Vector last = _mm256_xor_si256(_mm256_shuffle_epi8(odd, low_nibbles(sevens)),
                                         _mm256_shuffle_epi8(odd, high_nibbles(sevens)));
    return _mm256_or_si256(sevens, last);
  }
  // Four times seven signs of each 32-bit word, in its low 28 bits.
  static ALWAYS_INLINE Vector signs_of_words(Vector words) {
    const Vector second = _mm256_and_si256(_mm256_slli_epi32(words, 1), _mm256_set1_epi32(0x7f00));
    const Vector third = _mm256_and_si256(_mm256_slli_epi32(words, 2), _mm256_set1_epi32(0x7f0000));
    const Vector fourth = _mm256_and_si256(_mm256_slli_epi32(words, 3), _mm256_set1_epi32(0x7f000000));
    const Vector first = _mm256_and_si256(words, _mm256_set1_epi32(0x7f));
    return even_signs(_mm256_or_si256(_mm256_or_si256(first, second), _mm256_or_si256(third, fourth)));
  }

  // Scales 2 n + 1 of thirty-two weights each, from eight numbers of 32 bits.
  static ALWAYS_INLINE void set_scales_of_words(Vector numbers, Weights& w) {
    const Vector scales = _mm256_add_epi32(_mm256_add_epi32(numbers, numbers), _mm256_set1_epi32(1));
    const Vector pairs = _mm256_or_si256(scales, _mm256_slli_epi32(scales, 16));
    alignas(32) int32_t each[8];
    store(each, pairs);
    UNROLL for (int i = 0; i < 8; ++i) w.scales[i] = scales_of_lanes(_mm256_set1_epi32(each[i]));
    w.offsets = _mm256_mullo_epi16(pairs, _mm256_set1_epi16(OFFSET));
  }
  // Of sixteen weights each, from two numbers of 4 bits a byte.
  static ALWAYS_INLINE void set_scales_of_sixteen(const uint8_t* p, Weights& w) {
    const __m128i packed = _mm_loadl_epi64((const __m128i*)p), fours = _mm_set1_epi8(15);
    const __m128i numbers = _mm_unpacklo_epi8(_mm_and_si128(packed, fours),
                                              _mm_and_si128(_mm_srli_epi16(packed, 4), fours));
    const Vector doubled = _mm256_cvtepu8_epi16(_mm_add_epi8(numbers, numbers));
    const Vector scales = _mm256_add_epi16(doubled, _mm256_set1_epi16(1));
    const Vector first = _mm256_permute2x128_si256(scales, scales, 0x00);
    const Vector last = _mm256_permute2x128_si256(scales, scales, 0x11);
    UNROLL for (int i = 0; i < 4; ++i) {
      const Vector pick = join(_mm_set1_epi16((short)(0x100 + 0x404 * i)), _mm_set1_epi16((short)(0x302 + 0x404 * i)));
      w.scales[i] = scales_of_lanes(_mm256_shuffle_epi8(first, pick));
      w.scales[4 + i] = scales_of_lanes(_mm256_shuffle_epi8(last, pick));
    }
    w.offsets = _mm256_mullo_epi16(scales, _mm256_set1_epi16(OFFSET));
  }
};

struct FastIQ3_S : FromGrid<BlockIQ3_S, 1> {
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    alignas(32) uint16_t rows[64];
    const Vector pick = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
                                          (short)0x8000);
    UNROLL for (int i = 0; i < 4; ++i) {
      const Vector ninths = _mm256_set1_epi16((short)(p[66 + 2 * i] | p[67 + 2 * i] << 8));
      const Vector set = _mm256_cmpeq_epi16(_mm256_and_si256(ninths, pick), pick);
      const Vector high = _mm256_and_si256(set, _mm256_set1_epi16(256));
      store(rows + 16 * i, _mm256_or_si256(_mm256_cvtepu8_epi16(load_half(p + 2 + 16 * i)), high));
    }
    UNROLL for (int i = 0; i < 8; ++i) {
      w.q[i] = with_signs(fours(tables.iq3_s, rows + 8 * i), word_at(p + 74 + 4 * i));
    }
    const __m128i packed = _mm_cvtsi32_si128((int)word_at(p + 106)), low = _mm_set1_epi8(15);
    const __m128i numbers = _mm_unpacklo_epi8(_mm_and_si128(packed, low),
                                              _mm_and_si128(_mm_srli_epi16(packed, 4), low));
    set_scales_of_words(_mm256_cvtepu8_epi32(numbers), w);
    return w;
  }
};

struct FastIQ3_XXS : FromGrid<BlockIQ3_XXS, 4> {
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    alignas(32) uint32_t signs[8];
    const Vector words = load(p + 66);
    store(signs, signs_of_words(words));
    UNROLL for (int i = 0; i < 8; ++i) w.q[i] = with_signs(fours(tables.iq3_xxs, p + 2 + 8 * i), signs[i]);
    set_scales_of_words(_mm256_srli_epi32(words, 28), w);
    return w;
  }
};

struct FastIQ2_S : FromGrid<BlockIQ2_S, 8> {
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    alignas(32) uint16_t rows[32];
    // Two bits from place 0, 2, 4 or 6 of a byte to places 8 and 9.
    const Vector spread = _mm256_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1,  //
                                           2, -1, 2, -1, 2, -1, 2, -1, 3, -1, 3, -1, 3, -1, 3, -1);
    const Vector shift = _mm256_set1_epi64x(0x0004001000400100);
    UNROLL for (int i = 0; i < 2; ++i) {
      const Vector twos = _mm256_shuffle_epi8(_mm256_set1_epi32((int)word_at(p + 66 + 4 * i)), spread);
      const Vector high = _mm256_and_si256(_mm256_mullo_epi16(twos, shift), _mm256_set1_epi16(0x300));
      store(rows + 16 * i, _mm256_or_si256(_mm256_cvtepu8_epi16(load_half(p + 2 + 16 * i)), high));
    }
    UNROLL for (int i = 0; i < 8; ++i) {
      w.q[i] = with_signs(eights(tables.iq2_s, rows + 4 * i), word_at(p + 34 + 4 * i));
    }
    set_scales_of_sixteen(p + 74, w);
    return w;
  }
};

struct FastIQ2_XS : FromGrid<BlockIQ2_XS, 8> {
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    alignas(32) uint16_t rows[32];
    alignas(32) uint32_t signs[8];
    const Vector first = load(p + 2), last = load(p + 34), nine = _mm256_set1_epi16(511);
    store(rows, _mm256_and_si256(first, nine));
    store(rows + 16, _mm256_and_si256(last, nine));
    const Vector sevens = _mm256_packus_epi16(_mm256_srli_epi16(first, 9), _mm256_srli_epi16(last, 9));
    store(signs, even_signs(_mm256_permute4x64_epi64(sevens, 0xd8)));
    UNROLL for (int i = 0; i < 8; ++i) w.q[i] = with_signs(eights(tables.iq2_xs, rows + 4 * i), signs[i]);
    set_scales_of_sixteen(p + 66, w);
    return w;
  }
};

struct FastIQ2_XXS : FromGrid<BlockIQ2_XXS, 8> {
  static ALWAYS_INLINE Weights unpack(const uint8_t* p) {
    Weights w;
    alignas(32) uint32_t signs[8];
    // The odd 32-bit words of eight pairs, in order.
    const __m256 first = _mm256_castsi256_ps(load(p + 2)), last = _mm256_castsi256_ps(load(p + 34));
    const Vector turned = _mm256_castps_si256(_mm256_shuffle_ps(first, last, 0xdd));
    const Vector words = _mm256_permute4x64_epi64(turned, 0xd8);
    store(signs, signs_of_words(words));
    UNROLL for (int i = 0; i < 8; ++i) w.q[i] = with_signs(eights(tables.iq2_xxs, p + 2 + 8 * i), signs[i]);
    set_scales_of_words(_mm256_srli_epi32(words, 28), w);
    return w;
  }
};
