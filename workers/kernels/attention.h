// Causal attention: each row and head by itself, keys in ascending position.

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
    dot_block(Rows{q, D, nullptr}, group, Plain<W>{segments[s].k, stride}, segments[s].count, D, scores + j, lds);
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
