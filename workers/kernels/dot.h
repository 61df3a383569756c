// Dot products: sixteen partial sums, lane l taking k = l, l + 16, ... in order by fused multiply-add (a
// short tail is padded with zeros), then added in a fixed tree: l + 8, l + 4, l + 2, l + 1. Tiles and blocks
// decide only which dot products advance together.

// Rows of x, by address: row r is at x + stride * (index ? index[r] : r).
struct Rows {
  const float* x;
  int64_t stride;
  const int64_t* index;

  ALWAYS_INLINE const float* row(int64_t r) const { return x + stride * (index ? index[r] : r); }
  ALWAYS_INLINE Rows from(int64_t r) const {
    return {index ? x : x + r * stride, stride, index ? index + r : nullptr};
  }
};

// A stretch of k that one pass over a tile covers. Between passes the lanes wait in `state`.
struct Stretch {
  int64_t begin, end;
  bool first, last;
};

// out[r * ldo + c] = dot(row r, w row c), over one stretch of k.
template <int R, int C, class Weights>
static ALWAYS_INLINE void dot_tile(const Rows x, const Weights w, const Stretch k_range, Lanes* state, float* out,
                                   int64_t ldo) {
  constexpr int ACCUMULATORS = (R * C + 3) / 4 * 4;
  const float* rows[R];
  UNROLL for (int r = 0; r < R; ++r) rows[r] = x.row(r);
  Lanes acc[ACCUMULATORS];
  UNROLL for (int i = 0; i < ACCUMULATORS; ++i) acc[i] = Lanes::zero();
  if (!k_range.first) {
    UNROLL for (int i = 0; i < R * C; ++i) acc[i] = state[i];
  }

  int64_t k = k_range.begin;
  for (; k + 16 <= k_range.end; k += 16) {
    Lanes columns[C];
    UNROLL for (int c = 0; c < C; ++c) {
      columns[c] = w.load(c, k);
      // The next tile's weights: processors do not guess a jump to another row.
      w.prefetch(c + C, k);
    }
    UNROLL for (int r = 0; r < R; ++r) {
      const Lanes row = Lanes::load(rows[r] + k);
      UNROLL for (int c = 0; c < C; ++c) acc[r * C + c] = Lanes::fma(columns[c], row, acc[r * C + c]);
    }
  }
  if constexpr (Weights::BLOCK < 16) {
    if (k < k_range.end) {
      const int n = (int)(k_range.end - k);
      Lanes columns[C];
      UNROLL for (int c = 0; c < C; ++c) columns[c] = w.load(c, k, n);
      UNROLL for (int r = 0; r < R; ++r) {
        const Lanes row = Lanes::load(rows[r] + k, n);
        UNROLL for (int c = 0; c < C; ++c) acc[r * C + c] = Lanes::fma(columns[c], row, acc[r * C + c]);
      }
    }
  }
  if (!k_range.last) {
    UNROLL for (int i = 0; i < R * C; ++i) state[i] = acc[i];
    return;
  }
  float sums[ACCUMULATORS];
  UNROLL for (int i = 0; i < ACCUMULATORS; i += 4) Lanes::sum4(acc + i, sums + i);
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int c = 0; c < C; ++c) out[r * ldo + c] = sums[r * C + c];
  }
}

// T rows against C weight rows, R rows at a time; what is left over, 1 to R - 1 rows, in one tile.
template <int R, int C, class Weights>
static void dot_rows(const Rows x, int64_t T, const Weights w, const Stretch k_range, Lanes* state, float* out,
                     int64_t ldo) {
  if constexpr (R > 0) {
    int64_t t = 0;
    for (; t + R <= T; t += R) {
      dot_tile<R, C>(x.from(t), w, k_range, state + t * C, out + t * ldo, ldo);
    }
    if (t < T) {
      dot_rows<R - 1, C>(x.from(t), T - t, w, k_range, state + t * C, out + t * ldo, ldo);
    }
  }
}

// Rows whose x stays in the second-level cache while weights pass from memory, and the k that one pass over
// a tile covers, so that the tile's weights and x come from the first level.
constexpr int64_t BLOCK_ROWS = 48, BLOCK_K = 1024;

template <int C, class Weights>
static void dot_columns(const Rows x, int64_t T, const Weights w, int64_t N, int64_t K, float* out,
                        int64_t ldo) {
  Lanes state[BLOCK_ROWS * C];
  // A tile or less waits for memory, and memory prefers whole rows of weights.
  const int64_t stretch = T <= Lanes::TILE_ROWS ? K : BLOCK_K;
  for (int64_t n = 0; n < N; n += C) {
    for (int64_t k = 0; k < K; k += stretch) {
      const Stretch k_range{k, K - k < stretch ? K : k + stretch, k == 0, K - k <= stretch};
      dot_rows<Lanes::TILE_ROWS, C>(x, T, w.from(n), k_range, state, out + n, ldo);
    }
  }
}

// out[t * ldo + n] = dot(row t, w row n) for t < T, n < N.
template <class Weights>
static void dot_block(const Rows x, int64_t T, const Weights w, int64_t N, int64_t K, float* out,
                      int64_t ldo) {
  constexpr int C = Lanes::TILE_COLUMNS;
  for (int64_t t = 0; t < T; t += BLOCK_ROWS) {
    const int64_t rows = T - t < BLOCK_ROWS ? T - t : BLOCK_ROWS;
    float* ot = out + t * ldo;
    int64_t n = 0;
    if (rows == 1) {
      for (; n + 4 <= N; n += 4) {
        dot_tile<1, 4>(x.from(t), w.from(n), {0, K, true, true}, nullptr, ot + n, ldo);
      }
    }
    const int64_t whole = n + (N - n) / C * C;
    dot_columns<C>(x.from(t), rows, w.from(n), whole - n, K, ot + n, ldo);
    dot_columns<1>(x.from(t), rows, w.from(whole), N - whole, K, ot + whole, ldo);
  }
}

static ALWAYS_INLINE float dot_self(const float* x, int64_t n) {
  Lanes acc[4] = {Lanes::zero(), Lanes::zero(), Lanes::zero(), Lanes::zero()};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Lanes v = Lanes::load(x + i);
    acc[0] = Lanes::fma(v, v, acc[0]);
  }
  if (i < n) {
    const Lanes v = Lanes::load(x + i, (int)(n - i));
    acc[0] = Lanes::fma(v, v, acc[0]);
  }
  float sums[4];
  Lanes::sum4(acc, sums);
  return sums[0];
}

static ALWAYS_INLINE int threads_for(int64_t work, int threads) { return work < SERIAL_WORK ? 1 : threads; }
