// Every kernel, once. Included inside a namespace that defines `Lanes` (see native.cpp).
//
// A dot product is sixteen partial sums, lane l taking k = l, l + 16, ... in order by fused multiply-add
// (a short tail is padded with zeros), then added in a fixed tree: l + 8, l + 4, l + 2, l + 1.

// ---- dot products ---------------------------------------------------------------------------------------

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
template <int R, int C, class W>
static ALWAYS_INLINE void dot_tile(const Rows x, const W* w, int64_t ldw, const Stretch k_range, Lanes* state,
                                   float* out, int64_t ldo) {
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
      columns[c] = Lanes::load(w + c * ldw + k);
      // The next tile's weights: processors do not guess a jump to another row.
      __builtin_prefetch(w + (c + C) * ldw + k, 0, 2);
    }
    UNROLL for (int r = 0; r < R; ++r) {
      const Lanes row = Lanes::load(rows[r] + k);
      UNROLL for (int c = 0; c < C; ++c) acc[r * C + c] = Lanes::fma(columns[c], row, acc[r * C + c]);
    }
  }
  if (k < k_range.end) {
    const int n = (int)(k_range.end - k);
    Lanes columns[C];
    UNROLL for (int c = 0; c < C; ++c) columns[c] = Lanes::load(w + c * ldw + k, n);
    UNROLL for (int r = 0; r < R; ++r) {
      const Lanes row = Lanes::load(rows[r] + k, n);
      UNROLL for (int c = 0; c < C; ++c) acc[r * C + c] = Lanes::fma(columns[c], row, acc[r * C + c]);
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
template <int R, int C, class W>
static void dot_rows(const Rows x, int64_t T, const W* w, int64_t ldw, const Stretch k_range, Lanes* state,
                     float* out, int64_t ldo) {
  if constexpr (R > 0) {
    int64_t t = 0;
    for (; t + R <= T; t += R) {
      dot_tile<R, C>(x.from(t), w, ldw, k_range, state + t * C, out + t * ldo, ldo);
    }
    if (t < T) {
      dot_rows<R - 1, C>(x.from(t), T - t, w, ldw, k_range, state + t * C, out + t * ldo, ldo);
    }
  }
}

// Rows whose x stays in the second-level cache while weights pass from memory, and the k that one pass over
// a tile covers, so that the tile's weights and x come from the first level.
constexpr int64_t BLOCK_ROWS = 48, BLOCK_K = 1024;

template <int C, class W>
static void dot_columns(const Rows x, int64_t T, const W* w, int64_t ldw, int64_t N, int64_t K, float* out,
                        int64_t ldo) {
  Lanes state[BLOCK_ROWS * C];
  // A tile or less waits for memory, and memory prefers whole rows of weights.
  const int64_t stretch = T <= Lanes::TILE_ROWS ? K : BLOCK_K;
  for (int64_t n = 0; n < N; n += C) {
    for (int64_t k = 0; k < K; k += stretch) {
      const Stretch k_range{k, K - k < stretch ? K : k + stretch, k == 0, K - k <= stretch};
      dot_rows<Lanes::TILE_ROWS, C>(x, T, w + n * ldw, ldw, k_range, state, out + n, ldo);
    }
  }
}

// out[t * ldo + n] = dot(row t, w row n) for t < T, n < N.
template <class W>
static void dot_block(const Rows x, int64_t T, const W* w, int64_t ldw, int64_t N, int64_t K, float* out,
                      int64_t ldo) {
  constexpr int C = Lanes::TILE_COLUMNS;
  for (int64_t t = 0; t < T; t += BLOCK_ROWS) {
    const int64_t rows = T - t < BLOCK_ROWS ? T - t : BLOCK_ROWS;
    float* ot = out + t * ldo;
    int64_t n = 0;
    if (rows == 1) {
      for (; n + 4 <= N; n += 4) {
        dot_tile<1, 4>(x.from(t), w + n * ldw, ldw, {0, K, true, true}, nullptr, ot + n, ldo);
      }
    }
    const int64_t whole = n + (N - n) / C * C;
    dot_columns<C>(x.from(t), rows, w + n * ldw, ldw, whole - n, K, ot + n, ldo);
    dot_columns<1>(x.from(t), rows, w + whole * ldw, ldw, N - whole, K, ot + whole, ldo);
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

// Work below this many multiply-adds is done by the caller alone: waking a thread costs as much.
constexpr int64_t SERIAL_WORK = 1 << 19;

static ALWAYS_INLINE int threads_for(int64_t work, int threads) { return work < SERIAL_WORK ? 1 : threads; }

// Columns of one work item of a linear layer.
constexpr int64_t LINEAR_COLUMNS = 48;

template <class W>
static void linear(const LinearArgs& a) {
  const W* weight = (const W*)a.weight;
  const Rows x{a.x, a.K, nullptr};
  const int threads = threads_for(a.T * a.N * a.K, a.threads);
  if (threads == 1) {
    dot_block(x, a.T, weight, a.K, a.N, a.K, a.out, a.N);
    return;
  }
  const int64_t items = (a.N + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t item = 0; item < items; ++item) {
    const int64_t n = item * LINEAR_COLUMNS;
    const int64_t columns = a.N - n < LINEAR_COLUMNS ? a.N - n : LINEAR_COLUMNS;
    dot_block(x, a.T, weight + n * a.K, a.K, columns, a.K, a.out + n, a.N);
  }
}

// ---- exponential and friends ----------------------------------------------------------------------------

// e^x: x = n ln 2 + r (Cody and Waite's two-part ln 2), a degree-7 polynomial on |r| <= ln 2 / 2, times 2^n
// in two steps so that results below 2^-126 round once. NaN gives NaN, +inf inf, -inf 0.
static ALWAYS_INLINE float exp_one(float x) {
  const float clamped = x < -104.0f ? -104.0f : (x > 89.0f ? 89.0f : x);
  const float safe = clamped == clamped ? clamped : 0.0f;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = __builtin_fmaf(safe, 1.44269504088896341f, magic) - magic;
  float r = __builtin_fmaf(n, -0.693359375f, safe);
  r = __builtin_fmaf(n, 2.12194440e-4f, r);
  float p = 1.98412698e-4f;
  p = __builtin_fmaf(p, r, 1.38888889e-3f);
  p = __builtin_fmaf(p, r, 8.33333333e-3f);
  p = __builtin_fmaf(p, r, 4.16666667e-2f);
  p = __builtin_fmaf(p, r, 1.66666667e-1f);
  p = __builtin_fmaf(p, r, 0.5f);
  p = __builtin_fmaf(p, r, 1.0f);
  p = __builtin_fmaf(p, r, 1.0f);
  const int32_t exponent = (int32_t)n, half = exponent >> 1;
  const float a = __builtin_bit_cast(float, (half + 127) << 23);
  const float b = __builtin_bit_cast(float, (exponent - half + 127) << 23);
  const float result = p * a * b;
  return x == x ? result : x;
}

static ALWAYS_INLINE float sigmoid_one(float x) { return 1.0f / (1.0f + exp_one(-x)); }

static ALWAYS_INLINE float swiglu_one(float gate, float up, float limit) {
  const float act = gate / (1.0f + exp_one(-gate));
  const float act_clamped = act > limit ? limit : act;
  const float up_clamped = up > limit ? limit : (up < -limit ? -limit : up);
  return act_clamped * up_clamped;
}

static void exponentials(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = exp_one(x[i]);
}

// Elements that one thread does in the time another takes to wake.
constexpr int64_t SERIAL_ELEMENTS = 1 << 15;

static void sigmoid(const float* x, float* out, int64_t n, int threads) {
  if (n < SERIAL_ELEMENTS) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < n; ++i) out[i] = sigmoid_one(x[i]);
}

static void swiglu_run(const float* gate, const float* up, float* out, int64_t n, float limit) {
  const float bound = limit > 0.0f ? limit : __builtin_inff();
  for (int64_t i = 0; i < n; ++i) out[i] = swiglu_one(gate[i], up[i], bound);
}

static void swiglu(const float* gate, const float* up, float* out, int64_t n, float limit, int threads) {
  if (n < SERIAL_ELEMENTS) threads = 1;
  const int64_t share = (n + threads - 1) / threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < n; i += share) {
    swiglu_run(gate + i, up + i, out + i, n - i < share ? n - i : share, limit);
  }
}

// ---- norms ----------------------------------------------------------------------------------------------

static ALWAYS_INLINE float widen_one(float w) { return w; }
static ALWAYS_INLINE float widen_one(bf16 w) { return __builtin_bit_cast(float, (uint32_t)w.bits << 16); }

template <class W>
static void rms_norm(const RmsNormArgs& a) {
  const W* weight = (const W*)a.weight;
  const float offset = a.zero_centered ? 1.0f : 0.0f;
  const int threads = a.T * a.D < SERIAL_ELEMENTS ? 1 : a.threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < a.T; ++t) {
    const float* x = a.x + t * a.D;
    float* out = a.out + t * a.D;
    const float inverse = 1.0f / __builtin_sqrtf(dot_self(x, a.D) / (float)a.D + a.eps);
    for (int64_t i = 0; i < a.D; ++i) out[i] = x[i] * inverse * (widen_one(weight[i]) + offset);
  }
}

// floor(log2(rms(row))) + offset, kept within [low, high]. Before that a row of zeros or of subnormal size
// counts as -126 or -127, one that is not finite as 128.
static void row_exponents(const float* x, int32_t* out, int64_t T, int64_t D, int32_t offset, int32_t low,
                          int32_t high, int threads) {
  if (T * D < SERIAL_ELEMENTS) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < T; ++t) {
    const float rms = __builtin_sqrtf(dot_self(x + t * D, D) / (float)D);
    const int32_t exponent = (int32_t)(__builtin_bit_cast(uint32_t, rms) >> 23 & 255) - 127 + offset;
    out[t] = exponent < low ? low : (exponent > high ? high : exponent);
  }
}

// ---- router ---------------------------------------------------------------------------------------------

static void route_row(const float* logits, const float* bias, int32_t* ids, float* weights, float* scores,
                      const RouteArgs& a) {
  for (int64_t e = 0; e < a.E; ++e) scores[e] = sigmoid_one(logits[e]);
  float* keys = weights;  // the output row holds the sorted keys until the weights are known
  int64_t count = 0;
  for (int64_t e = 0; e < a.E; ++e) {
    const float sum = bias ? scores[e] + bias[e] : scores[e];
    const float key = sum == sum ? sum : -__builtin_inff();
    if (count == a.k && !(key > keys[count - 1])) continue;
    int64_t place = count < a.k ? count++ : count - 1;
    for (; place > 0 && key > keys[place - 1]; --place) {
      keys[place] = keys[place - 1];
      ids[place] = ids[place - 1];
    }
    keys[place] = key;
    ids[place] = (int32_t)e;
  }
  float total = 0.0f;
  for (int64_t j = 0; j < a.k; ++j) {
    weights[j] = scores[ids[j]];
    total += weights[j];
  }
  for (int64_t j = 0; j < a.k; ++j) {
    weights[j] = (a.normalise ? weights[j] / total : weights[j]) * a.scaling_factor;
  }
}

static void route(const RouteArgs& a) {
  const int threads = a.T * a.E < SERIAL_ELEMENTS ? 1 : a.threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < a.T; ++t) {
    route_row(a.logits + t * a.E, a.bias, a.expert_ids + t * a.k, a.weights + t * a.k,
              a.scores + omp_get_thread_num() * a.E, a);
  }
}

// ---- attention ------------------------------------------------------------------------------------------

// A run of consecutive keys of one KV head that lie at one stride in memory.
template <class W>
struct Segment {
  const W *k, *v;
  int64_t count;
};

// out[r][d] = sum over keys j, ascending, of scores[r][j] * v[j][d], divided by totals[r].
template <int R, int C, class W>
static ALWAYS_INLINE void mix_tile(const float* scores, int64_t lds, const Segment<W>* segments,
                                   int num_segments, int64_t ldv, int64_t d, int tail, const float* totals,
                                   float* out, int64_t ldo) {
  Lanes acc[R * C];
  UNROLL for (int i = 0; i < R * C; ++i) acc[i] = Lanes::zero();
  int64_t j = 0;
  for (int s = 0; s < num_segments; ++s) {
    const W* v = segments[s].v + d;
    for (int64_t i = 0; i < segments[s].count; ++i, ++j, v += ldv) {
      Lanes values[C];
      UNROLL for (int c = 0; c < C; ++c) {
        values[c] = tail < 16 ? Lanes::load(v + 16 * c, tail) : Lanes::load(v + 16 * c);
      }
      UNROLL for (int r = 0; r < R; ++r) {
        const Lanes score = Lanes::set1(scores[r * lds + j]);
        UNROLL for (int c = 0; c < C; ++c) acc[r * C + c] = Lanes::fma(score, values[c], acc[r * C + c]);
      }
    }
  }
  UNROLL for (int r = 0; r < R; ++r) {
    const Lanes inverse = Lanes::set1(1.0f / totals[r]);
    UNROLL for (int c = 0; c < C; ++c) {
      const Lanes mixed = Lanes::mul(acc[r * C + c], inverse);
      if (tail < 16) {
        mixed.store(out + r * ldo + d + 16 * c, tail);
      } else {
        mixed.store(out + r * ldo + d + 16 * c);
      }
    }
  }
}

template <int R, class W>
static void mix_heads(const float* scores, int64_t lds, const Segment<W>* segments, int num_segments,
                      int64_t ldv, int64_t D, const float* totals, float* out) {
  constexpr int C = Lanes::TILE_COLUMNS;
  int64_t d = 0;
  for (; d + 16 * C <= D; d += 16 * C) {
    mix_tile<R, C>(scores, lds, segments, num_segments, ldv, d, 16, totals, out, D);
  }
  for (; d < D; d += 16) {
    const int tail = D - d < 16 ? (int)(D - d) : 16;
    mix_tile<R, 1>(scores, lds, segments, num_segments, ldv, d, tail, totals, out, D);
  }
}

// Softmax numerators in place over n scores (lds is padded to 16); returns their sum over sixteen lanes.
static float softmax_numerators(float* scores, int64_t n, float scale) {
  const int64_t padded = (n + 15) / 16 * 16;
  for (int64_t j = n; j < padded; ++j) scores[j] = -__builtin_inff();
  float most[16];
  for (int l = 0; l < 16; ++l) most[l] = -__builtin_inff();
  for (int64_t j = 0; j < padded; j += 16) {
    for (int l = 0; l < 16; ++l) {
      const float s = scores[j + l] * scale;
      scores[j + l] = s;
      most[l] = s > most[l] ? s : most[l];
    }
  }
  float max = most[0];
  for (int l = 1; l < 16; ++l) max = most[l] > max ? most[l] : max;
  for (int64_t j = 0; j < padded; ++j) scores[j] = exp_one(scores[j] - max);
  Lanes acc[4] = {Lanes::zero(), Lanes::zero(), Lanes::zero(), Lanes::zero()};
  for (int64_t j = 0; j < padded; j += 16) acc[0] = Lanes::add(acc[0], Lanes::load(scores + j));
  float sums[4];
  Lanes::sum4(acc, sums);
  return sums[0];
}

template <class W>
static void attend(const AttentionArgs& a, int64_t t, int64_t kv_head, float* scores) {
  const int64_t D = a.head_dim, group = a.num_heads / a.num_kv_heads, stride = a.num_kv_heads * D;
  const int64_t p = a.position + t;
  const int64_t first = a.window > 0 && p + 1 > a.window ? p + 1 - a.window : 0;
  const int64_t n = p + 1 - first, lds = (n + 15) / 16 * 16;

  Segment<W> segments[3];
  int num_segments = 0;
  const int64_t offset = kv_head * D;
  for (int64_t key = first; key < a.position;) {
    const int64_t slot = key % a.cache_slots;
    int64_t count = a.position - key;
    if (count > a.cache_slots - slot) count = a.cache_slots - slot;
    segments[num_segments++] = {(const W*)a.k_cache + slot * stride + offset,
                                (const W*)a.v_cache + slot * stride + offset, count};
    key += count;
  }
  const int64_t first_new = first > a.position ? first - a.position : 0;
  segments[num_segments++] = {(const W*)a.k_new + first_new * stride + offset,
                              (const W*)a.v_new + first_new * stride + offset, t + 1 - first_new};

  const float* q = a.q + (t * a.num_heads + kv_head * group) * D;
  float* out = a.out + (t * a.num_heads + kv_head * group) * D;
  int64_t j = 0;
  for (int s = 0; s < num_segments; ++s) {
    dot_block(Rows{q, D, nullptr}, group, segments[s].k, stride, segments[s].count, D, scores + j, lds);
    j += segments[s].count;
  }
  constexpr int64_t R = 4;
  for (int64_t g = 0; g < group; g += R) {
    const int64_t heads = group - g < R ? group - g : R;
    float totals[R];
    for (int64_t r = 0; r < heads; ++r) totals[r] = softmax_numerators(scores + (g + r) * lds, n, a.scale);
    const float* s = scores + g * lds;
    float* o = out + g * D;
    if (heads == 4) {
      mix_heads<4>(s, lds, segments, num_segments, stride, D, totals, o);
    } else {
      for (int64_t r = 0; r < heads; ++r) {
        mix_heads<1>(s + r * lds, lds, segments, num_segments, stride, D, totals + r, o + r * D);
      }
    }
  }
}

template <class W>
static void attention(const AttentionArgs& a) {
  const int64_t all_keys = a.position + a.T;
  const int64_t keys = a.window > 0 && a.window < all_keys ? a.window : all_keys;
  const int threads = threads_for(2 * a.T * a.num_heads * keys * a.head_dim, a.threads);
  // Rows of one KV head follow each other, so its keys stay in cache from row to row.
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t item = 0; item < a.T * a.num_kv_heads; ++item) {
    attend<W>(a, item % a.T, item / a.T, a.scores + omp_get_thread_num() * a.score_floats);
  }
}

// ---- feed-forward ---------------------------------------------------------------------------------------

// Activations act(gate x) * up x of `columns` intermediate units of rows of x, to out [rows, ldo].
template <class W>
static void gate_up_block(const Rows x, int64_t rows, int64_t H, const W* gate, const W* up, int64_t columns,
                          float limit, float* up_scratch, float* out, int64_t ldo) {
  dot_block(x, rows, gate, H, columns, H, out, ldo);
  dot_block(x, rows, up, H, columns, H, up_scratch, columns);
  for (int64_t r = 0; r < rows; ++r) {
    swiglu_run(out + r * ldo, up_scratch + r * columns, out + r * ldo, columns, limit);
  }
}

static ALWAYS_INLINE int64_t block_columns(int64_t item, int64_t total) {
  const int64_t left = total - item * FFN_COLUMNS;
  return left < FFN_COLUMNS ? left : FFN_COLUMNS;
}

template <class W>
static void dense_ffn(const FfnArgs& a) {
  const int threads = threads_for(3 * a.T * a.H * a.I, a.threads);
  const int64_t up_items = (a.I + FFN_COLUMNS - 1) / FFN_COLUMNS;
  const int64_t down_items = (a.H + FFN_COLUMNS - 1) / FFN_COLUMNS;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float* up_scratch = a.up_scratch + omp_get_thread_num() * a.T * FFN_COLUMNS;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < up_items; ++item) {
      const int64_t i = item * FFN_COLUMNS;
      gate_up_block(Rows{a.x, a.H, nullptr}, a.T, a.H, (const W*)a.gate + i * a.H, (const W*)a.up + i * a.H,
                    block_columns(item, a.I), a.limit, up_scratch, a.activations + i, a.I);
    }
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < down_items; ++item) {
      const int64_t h = item * FFN_COLUMNS;
      dot_block(Rows{a.activations, a.I, nullptr}, a.T, (const W*)a.down + h * a.I, a.I,
                block_columns(item, a.H), a.I, a.out + h, a.H);
    }
  }
}

// Adds rint(weight * y * 2^-e) to out. Returns whether a value left the grid or was not finite. The product
// is one float32; scaling it by a power of two in float64 is exact for every exponent.
static bool add_on_grid(const float* y, int64_t n, float weight, double grid_scale, int32_t max_magnitude,
                        int32_t* out) {
  const double bound = (double)max_magnitude + 0.5;
  int32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float product = weight * y[i];
    const double value = (double)product * grid_scale;
    const int32_t fits = __builtin_fabs(value) < bound;  // false for NaN
    out[i] += (int32_t)__builtin_rint(fits ? value : 0.0);
    bad |= !fits;
  }
  return bad != 0;
}

// float32(values) * 2^exponent, rounded once.
static void grid_to_float32(const int32_t* values, const double* grid_units, float* out, int64_t T, int64_t H,
                            int threads) {
  if (T * H < SERIAL_ELEMENTS) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < T; ++t) {
    const double unit = grid_units[t];
    for (int64_t h = 0; h < H; ++h) out[t * H + h] = (float)((double)values[t * H + h] * unit);
  }
}

template <class W>
static void moe(const MoeArgs& a) {
  const int64_t entries = a.group_starts[a.num_groups];
  const int threads = threads_for(3 * entries * a.H * a.I, a.threads);
  const int64_t up_items = (a.I + FFN_COLUMNS - 1) / FFN_COLUMNS;
  const int64_t down_items = (a.H + FFN_COLUMNS - 1) / FFN_COLUMNS;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    float* tile = a.tiles + thread * 2 * a.max_rows * FFN_COLUMNS;
    uint8_t* flags = a.flags + thread * a.T;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < a.num_groups * up_items; ++item) {
      const int64_t group = item / up_items, i = item % up_items * FFN_COLUMNS;
      const int64_t start = a.group_starts[group], rows = a.group_starts[group + 1] - start;
      const int64_t weights_at = (a.group_slots[group] * a.I + i) * a.H;
      gate_up_block(Rows{a.x, a.H, a.entry_tokens + start}, rows, a.H, (const W*)a.gate + weights_at,
                    (const W*)a.up + weights_at, block_columns(item % up_items, a.I), a.limit, tile,
                    a.activations + start * a.I + i, a.I);
    }
    // A work item owns its columns of every token, so integer additions need no lock.
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < down_items; ++item) {
      const int64_t h = item * FFN_COLUMNS, columns = block_columns(item, a.H);
      for (int64_t t = 0; t < a.T; ++t) {
        for (int64_t i = 0; i < columns; ++i) a.out[t * a.H + h + i] = 0;
      }
      for (int64_t group = 0; group < a.num_groups; ++group) {
        const int64_t start = a.group_starts[group], rows = a.group_starts[group + 1] - start;
        const Rows activations{a.activations + start * a.I, a.I, nullptr};
        const W* down = (const W*)a.down + (a.group_slots[group] * a.H + h) * a.I;
        dot_block(activations, rows, down, a.I, columns, a.I, tile, columns);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t t = a.entry_tokens[start + r];
          const float weight = a.weights[t * a.k + a.entry_columns[start + r]];
          flags[t] |= add_on_grid(tile + r * columns, columns, weight, a.grid_scales[t], a.max_magnitude,
                                  a.out + t * a.H + h);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < a.T; ++t) {
      uint8_t any = 0;
      for (int i = 0; i < threads; ++i) any |= a.flags[i * a.T + t];
      a.saturated[t] = any;
    }
  }
}
