// Products of rounded rows and quantised matrices, a chunk of weights at a time: it is unpacked once and meets
// all rows of a tile, whose activations wait in the order it unpacks to. Included where blocks_256.h is.

// Activations of a tile stay in the second-level cache while the weights pass.
constexpr int64_t TILE_BYTES = 256 << 10, MOST_TILE_ROWS = 64;
// How far ahead of their use weights are fetched.
constexpr int64_t AHEAD_BYTES = 3072;

// A tile's rows as the chunks take them.
template <class Type>
struct Tile {
  alignas(64) int8_t q[TILE_BYTES];            // [chunks, T, 256]
  // [chunks, T, 16]. For eight minimums: sums of thirty-two neighbours instead, of two blocks that lie four apart,
  // [groups, 4, T, 2, 8].
  alignas(64) int16_t sums[TILE_BYTES / 16];
  alignas(64) float scales[TILE_BYTES / 32];  // [groups of eight blocks, T, 8]
  int64_t T, chunks, blocks, groups;

  void arrange(const RoundedRows& x, int64_t first, int64_t rows) {
    T = rows;
    chunks = (x.K + 255) / 256;
    blocks = x.K / Type::BLOCK;
    groups = (blocks + 7) / 8;
    for (int64_t t = 0; t < T; ++t) {
      const int64_t r = x.index ? x.index[first + t] : first + t;
      const int8_t* from = x.q + r * x.K;
      const int16_t* from_sums = x.sums + r * (x.K / 16);
      for (int64_t c = 0; c < chunks; ++c) {
        int8_t* to = q + (c * T + t) * 256;
        if (x.K - c * 256 >= 256) {
          Type::arrange(from + c * 256, to);
          arrange_sums(from_sums + c * 16, c, t);
        } else {
          int8_t padded[256] = {};
          int16_t padded_sums[16] = {};
          std::memcpy(padded, from + c * 256, x.K - c * 256);
          std::memcpy(padded_sums, from_sums + c * 16, (x.K - c * 256) / 8);
          Type::arrange(padded, to);
          arrange_sums(padded_sums, c, t);
        }
      }
      if constexpr (Type::MINIMUMS == 8) {
        for (int64_t c = chunks; c < groups * 8; ++c) _mm_store_si128((__m128i*)pair_half(c, t), _mm_setzero_si128());
      }
      for (int64_t g = 0; g < groups; ++g) {
        float* to = scales + (g * T + t) * 8;
        const float* scale = x.scales + r * blocks + g * 8;
        if (blocks - g * 8 >= 8) {
          _mm256_store_ps(to, _mm256_loadu_ps(scale));
        } else {
          _mm256_store_ps(to, _mm256_setzero_ps());
          std::memcpy(to, scale, (blocks - g * 8) * sizeof(float));
        }
      }
    }
  }

  ALWAYS_INLINE ArrangedRows at(int64_t chunk, int64_t t) const {
    return {q + (chunk * T + t) * 256, sums + (chunk * T + t) * 16};
  }
  ALWAYS_INLINE const Vector* pairs_at(int64_t group, int64_t t) const {
    return (const Vector*)sums + group * 4 * T + t;
  }
  ALWAYS_INLINE __m256 scales_at(int64_t group, int64_t t) const {
    return _mm256_load_ps(scales + (group * T + t) * 8);
  }

 private:
  ALWAYS_INLINE int16_t* pair_half(int64_t c, int64_t t) {
    return sums + ((c / 8 * 4 + c % 4) * T + t) * 16 + c % 8 / 4 * 8;
  }
  ALWAYS_INLINE void arrange_sums(const int16_t* from, int64_t c, int64_t t) {
    if constexpr (Type::MINIMUMS == 8) {
      _mm_store_si128((__m128i*)pair_half(c, t), _mm_hadd_epi16(load_half(from), load_half(from + 8)));
    } else {
      store(sums + (c * T + t) * 16, load(from));
    }
  }
};

// The scales of up to eight blocks, zeros after them.
template <class Type>
static ALWAYS_INLINE __m256 block_scales(const uint8_t* p, int64_t blocks, int at) {
  if constexpr (Type::BLOCK_BYTES == BlockMXFP4::BLOCK_BYTES) {
    alignas(32) float scales[8] = {};
    for (int64_t b = 0; b < blocks; ++b) scales[b] = Type::scale_of(p[b * Type::BLOCK_BYTES]);
    return _mm256_load_ps(scales);
  } else {
    const auto half = [&](int b) {
      uint16_t bits = 0;
      if (b < blocks) std::memcpy(&bits, p + b * Type::BLOCK_BYTES + at, 2);
      return (short)bits;
    };
    const __m128i halves = blocks == 8
        ? _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7))
        : _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), 0);
    const __m256 scales = _mm256_cvtph_ps(halves);
    return Type::FACTOR == 1.0f ? scales : _mm256_mul_ps(scales, _mm256_set1_ps(Type::FACTOR));
  }
}

// A group of eight blocks of one weight row: what its float part needs.
struct GroupScales {
  __m256 scales, minimums;
  Vector pairs[4];  // eight minimums of blocks that lie four apart
};

// Adds a group's S, and M where there are minimums, to the lanes of row t.
template <class Type>
static ALWAYS_INLINE void add_group(const Tile<Type>& tile, int64_t g, int64_t t, const GroupScales& group, Vector sum,
                                    Vector minimum, __m256* acc) {
  const __m256 row = tile.scales_at(g, t);
  __m256 lanes = _mm256_fmadd_ps(_mm256_mul_ps(group.scales, row), _mm256_cvtepi32_ps(sum), acc[t]);
  if constexpr (Type::MINIMUMS == 8) {
    const Vector* sums = tile.pairs_at(g, t);
    Vector parts[4];
    UNROLL for (int i = 0; i < 4; ++i) parts[i] = _mm256_madd_epi16(load(sums + i * tile.T), group.pairs[i]);
    minimum = sum_fours(parts[0], parts[1], parts[2], parts[3]);
  }
  if constexpr (Type::MINIMUMS == 1) {
    lanes = _mm256_fmadd_ps(_mm256_mul_ps(group.minimums, row), _mm256_cvtepi32_ps(minimum), lanes);
  } else if constexpr (Type::MINIMUMS > 1) {
    lanes = _mm256_fnmadd_ps(_mm256_mul_ps(group.minimums, row), _mm256_cvtepi32_ps(minimum), lanes);
  }
  acc[t] = lanes;
}

static ALWAYS_INLINE void prefetch_run(const uint8_t* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 3);
}

// Sums of eight blocks' vectors on their way to one lane each. Row by row as the blocks pass, so that this work
// goes on beside the products, which wait for the multipliers.
template <int MOST>
struct Halves {
  Vector ones[MOST], twos[MOST], fours[MOST];

  // Takes row t's vector of block I of eight; after the eighth gives the sums.
  template <int I>
  ALWAYS_INLINE Vector take(int64_t t, Vector v) {
    if constexpr (I % 2 == 0) {
      ones[t] = v;
      return v;
    }
    v = halve_to_twos(ones[t], v);
    if constexpr (I % 4 == 1) twos[t] = v;
    if constexpr (I % 4 == 3) v = halve_to_fours(twos[t], v);
    if constexpr (I == 3) fours[t] = v;
    if constexpr (I == 7) v = halve_to_eights(fours[t], v);
    return v;
  }
};

// Rows t to t + STEP - 1 against one chunk of weights.
template <class Type, int STEP>
struct Parts {
  Vector sums[STEP], minimums[STEP];

  static ALWAYS_INLINE Parts of(const Tile<Type>& tile, int64_t chunk, int64_t t,
                                const typename Type::Weights& weights) {
    Parts parts;
    Type::template dot<STEP>(weights, tile.at(chunk, t), parts.sums);
    UNROLL for (int r = 0; r < STEP; ++r) {
      parts.minimums[r] = _mm256_setzero_si256();
      if constexpr (Type::MINIMUMS == 16) {
        parts.minimums[r] = _mm256_madd_epi16(load(tile.at(chunk, t + r).sums), weights.minimums);
      } else if constexpr (Type::MINIMUMS == 1) {
        parts.minimums[r] = _mm256_madd_epi16(load(tile.at(chunk, t + r).sums), _mm256_set1_epi16(1));
      }
    }
    return parts;
  }
  static ALWAYS_INLINE Parts none() {
    Parts parts;
    UNROLL for (int r = 0; r < STEP; ++r) parts.sums[r] = parts.minimums[r] = _mm256_setzero_si256();
    return parts;
  }
};

// What waits between the blocks of a group.
template <class Type, int MOST>
struct Waiting {
  Halves<Type::BLOCK == 256 ? MOST : 1> sums;
  Halves<Type::MINIMUMS == 16 ? MOST : 1> minimums;

  template <int I, int STEP>
  ALWAYS_INLINE void take(const Tile<Type>& tile, int64_t g, int64_t t, const GroupScales& group,
                          const Parts<Type, STEP>& parts, __m256* acc) {
    UNROLL for (int r = 0; r < STEP; ++r) {
      Vector sum = parts.sums[r], minimum = parts.minimums[r];
      if constexpr (Type::BLOCK == 256) sum = sums.template take<I>(t + r, sum);
      if constexpr (Type::MINIMUMS == 16) minimum = minimums.template take<I>(t + r, minimum);
      if constexpr (I == 7) add_group(tile, g, t + r, group, sum, minimum, acc);
    }
  }
  template <int STEP>
  ALWAYS_INLINE void take(int64_t b, const Tile<Type>& tile, int64_t g, int64_t t, const GroupScales& group,
                          const Parts<Type, STEP>& parts, __m256* acc) {
    if (b % 2 == 0) {
      take<0>(tile, g, t, group, parts, acc);
    } else if (b % 4 == 1) {
      take<1>(tile, g, t, group, parts, acc);
    } else if (b == 3) {
      take<3>(tile, g, t, group, parts, acc);
    } else {
      take<7>(tile, g, t, group, parts, acc);
    }
  }
};

// All rows of a tile against the chunk that is block I of a group (or all of it, where blocks are of 32).
template <class Type, int I, int MOST>
static ALWAYS_INLINE void dot_rows_of_tile(const Tile<Type>& tile, int64_t g, int64_t chunk,
                                           const typename Type::Weights& weights, const GroupScales& group,
                                           Waiting<Type, MOST>& waiting, __m256* acc) {
  int64_t t = 0;
  for (; t + Type::ROWS <= tile.T; t += Type::ROWS) {
    waiting.template take<I>(tile, g, t, group, Parts<Type, Type::ROWS>::of(tile, chunk, t, weights), acc);
  }
  for (; t < tile.T; ++t) {
    waiting.template take<I>(tile, g, t, group, Parts<Type, 1>::of(tile, chunk, t, weights), acc);
  }
}

// The lanes of one weight row against R rows (0: as many as the tile has).
template <class Type, int R>
static ALWAYS_INLINE void dot_row(const Tile<Type>& tile, const uint8_t* w, __m256* acc) {
  constexpr int MOST = R > 0 ? R : (int)MOST_TILE_ROWS;
  const int64_t T = R > 0 ? R : tile.T;
  for (int64_t t = 0; t < T; ++t) acc[t] = _mm256_setzero_ps();
  Waiting<Type, MOST> waiting;
  GroupScales group;
  for (int64_t g = 0; g < tile.groups; ++g) {
    const uint8_t* p = w + g * 8 * Type::BLOCK_BYTES;
    const int64_t count = tile.blocks - g * 8 < 8 ? tile.blocks - g * 8 : 8;
    group.scales = block_scales<Type>(p, count, Type::SCALE_AT);
    if constexpr (Type::MINIMUMS > 0) group.minimums = block_scales<Type>(p, count, Type::MINIMUM_AT);
    if constexpr (Type::BLOCK == 32) {
      prefetch_run(p + AHEAD_BYTES, 8 * Type::BLOCK_BYTES);
      uint8_t padded[8 * Type::BLOCK_BYTES];
      if (count < 8) {
        std::memset(padded, 0, sizeof padded);
        std::memcpy(padded, p, count * Type::BLOCK_BYTES);
        p = padded;
      }
      const auto weights = Type::unpack(p);
      if constexpr (R > 0) {
        waiting.template take<7>(tile, g, 0, group, Parts<Type, R>::of(tile, g, 0, weights), acc);
      } else {
        dot_rows_of_tile<Type, 7>(tile, g, g, weights, group, waiting, acc);
      }
      continue;
    }
    for (int64_t b = 0; b < count; ++b) {
      prefetch_run(p + b * Type::BLOCK_BYTES + AHEAD_BYTES, Type::BLOCK_BYTES);
      const auto weights = Type::unpack(p + b * Type::BLOCK_BYTES);
      if constexpr (Type::MINIMUMS == 8) ((__m128i*)group.pairs)[b % 4 * 2 + b / 4] = weights.minimums;
      const int64_t chunk = g * 8 + b;
      if constexpr (R > 0) {
        waiting.take(b, tile, g, 0, group, Parts<Type, R>::of(tile, chunk, 0, weights), acc);
      } else if (b % 2 == 0) {
        dot_rows_of_tile<Type, 0>(tile, g, chunk, weights, group, waiting, acc);
      } else if (b % 4 == 1) {
        dot_rows_of_tile<Type, 1>(tile, g, chunk, weights, group, waiting, acc);
      } else if (b == 3) {
        dot_rows_of_tile<Type, 3>(tile, g, chunk, weights, group, waiting, acc);
      } else {
        dot_rows_of_tile<Type, 7>(tile, g, chunk, weights, group, waiting, acc);
      }
    }
    for (int64_t b = count; b < 8; ++b) {
      if constexpr (Type::MINIMUMS == 8) ((__m128i*)group.pairs)[b % 4 * 2 + b / 4] = _mm_setzero_si128();
      for (int64_t t = 0; t < T; ++t) waiting.take(b, tile, g, t, group, Parts<Type, 1>::none(), acc);
    }
  }
}

// Four weight rows at a time, so that their lanes are added together.
template <class Type, int R>
static __attribute__((noinline)) void dot_tile_rows(const Tile<Type>& tile, const uint8_t* w, int64_t row_bytes,
                                                    int64_t N, float* out, int64_t ldo) {
  const int64_t T = R > 0 ? R : tile.T;
  __m256 acc[4][R > 0 ? R : MOST_TILE_ROWS];
  for (int64_t n = 0; n < N; n += 4) {
    const int64_t columns = N - n < 4 ? N - n : 4;
    for (int64_t c = 0; c < columns; ++c) dot_row<Type, R>(tile, w + (n + c) * row_bytes, acc[c]);
    for (int64_t c = columns; c < 4; ++c) {
      for (int64_t t = 0; t < T; ++t) acc[c][t] = _mm256_setzero_ps();
    }
    for (int64_t t = 0; t < T; ++t) {
      const __m128 sums = sum_eights(acc[0][t], acc[1][t], acc[2][t], acc[3][t]);
      if (columns == 4) {
        _mm_storeu_ps(out + t * ldo + n, sums);
      } else {
        float four[4];
        _mm_storeu_ps(four, sums);
        std::memcpy(out + t * ldo + n, four, columns * sizeof(float));
      }
    }
  }
}

// WIDE takes rows that are too long for a tile, of more than 262,144 weights.
template <class Type, DotRounded WIDE>
static void dot_panels(const RoundedRows& x, int64_t T, const uint8_t* w, int64_t row_bytes, int64_t N, float* out,
                       int64_t ldo) {
  const int64_t chunks = (x.K + 255) / 256;
  int64_t most = TILE_BYTES / 256 / chunks;
  if (most == 0) {
    WIDE(x, T, w, row_bytes, N, out, ldo);
    return;
  }
  if (most > MOST_TILE_ROWS) most = MOST_TILE_ROWS;
  const int64_t tiles = (T + most - 1) / most;
  Tile<Type> tile;
  for (int64_t i = 0, t = 0; i < tiles; ++i) {
    const int64_t rows = (T - t) / (tiles - i);
    tile.arrange(x, t, rows);
    float* to = out + t * ldo;
    if (rows == 1) {
      dot_tile_rows<Type, 1>(tile, w, row_bytes, N, to, ldo);
    } else if (Type::FEW && rows == 2) {
      dot_tile_rows<Type, Type::FEW ? 2 : 0>(tile, w, row_bytes, N, to, ldo);
    } else if (Type::FEW && rows == 3) {
      dot_tile_rows<Type, Type::FEW ? 3 : 0>(tile, w, row_bytes, N, to, ldo);
    } else if (Type::FEW && rows == 4) {
      dot_tile_rows<Type, Type::FEW ? 4 : 0>(tile, w, row_bytes, N, to, ldo);
    } else {
      dot_tile_rows<Type, 0>(tile, w, row_bytes, N, to, ldo);
    }
    t += rows;
  }
}

// One row by `One`, which takes no more than that, and several by MORE.
template <class One, DotRounded MORE>
static void dot_one_or_more(const RoundedRows& x, int64_t T, const uint8_t* w, int64_t row_bytes, int64_t N, float* out,
                            int64_t ldo) {
  if (T != 1 || x.K > TILE_BYTES) {
    MORE(x, T, w, row_bytes, N, out, ldo);
    return;
  }
  Tile<One> tile;
  tile.arrange(x, 0, 1);
  dot_tile_rows<One, 1>(tile, w, row_bytes, N, out, ldo);
}
