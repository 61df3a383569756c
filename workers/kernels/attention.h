// Causal attention over pages of keys and values. docs/attention.md defines the sums, which depend on a row's
// position, window and keys alone:
//   a score       fma over the dimensions, ascending; in int8 then times the key's scale
//   a page        its maximum, the sum of powers of two in sixteen lanes and a tree, the mix by fma over the
//                 positions, ascending
//   a span        its pages joined one after another
//   the row       its spans joined one after another
// All query heads of a KV head and all rows of a block go through a page together, a tile of rows at a time.

constexpr int MOST_ATTENTION_ROWS = 12;

constexpr float LEAST_FLOAT = -3.4028234663852886e38f;

// 2^t for t <= 0 within 8e-8 of it, and 0 where t < -126, so that no result is subnormal. 2^0 is 1.
static ALWAYS_INLINE Lanes exp2_one(Lanes t) {
  const Lanes magic = Lanes::set1(12582912.0f + 127.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Lanes biased = Lanes::add(t, magic);
  const Lanes r = Lanes::sub(t, Lanes::sub(biased, magic));
  Lanes p = Lanes::fma(Lanes::set1(1.53533620e-4f), r, Lanes::set1(1.33988750e-3f));
  p = Lanes::fma(p, r, Lanes::set1(9.61843692e-3f));
  p = Lanes::fma(p, r, Lanes::set1(5.55033237e-2f));
  p = Lanes::fma(p, r, Lanes::set1(2.40226477e-1f));
  p = Lanes::fma(p, r, Lanes::set1(6.93147182e-1f));
  p = Lanes::fma(p, r, Lanes::set1(1.0f));
  return Lanes::zero_below(Lanes::mul(p, Lanes::power(biased)), t, -126.0f);
}

// Sums of some rows over some keys: mix [rows, width] before its division by `total`. `most` is the largest
// score; `seen` is 0 while a row has met no key.
struct RowSums {
  float *mix, *most, *total;
  uint8_t* seen;
  int64_t width;

  static ALWAYS_INLINE RowSums in(float* memory, int64_t rows, int64_t width) {
    float* most = memory + rows * width;
    return {memory, most, most + rows, (uint8_t*)(most + 2 * rows), width};
  }
  ALWAYS_INLINE RowSums from(int64_t r) const { return {mix + r * width, most + r, total + r, seen + r, width}; }
};

// 2 to the power of a score relative to the largest, `bits` being the scale times log2(e).
static ALWAYS_INLINE Lanes weight(Lanes score, Lanes most, Lanes bits) {
  return exp2_one(Lanes::mul(Lanes::sub(score, most), bits));
}

// Factors of two sums with maxima a and b when they are joined.
static ALWAYS_INLINE void join_factors(const float* a, const float* b, float bits, float* factor_a,
                                       float* factor_b) {
  const Lanes x = Lanes::load(a), y = Lanes::load(b), most = Lanes::max(x, y);
  weight(x, most, Lanes::set1(bits)).store(factor_a);
  weight(y, most, Lanes::set1(bits)).store(factor_b);
}

// Joins `later` to `sums`, for n rows.
static void join_rows(const RowSums& sums, const RowSums& later, int64_t n, float bits) {
  for (int64_t r = 0; r < n; ++r) {
    if (!later.seen[r]) continue;
    float* mix = sums.mix + r * sums.width;
    const float* more = later.mix + r * sums.width;
    if (!sums.seen[r]) {
      sums.seen[r] = 1;
      sums.most[r] = later.most[r];
      sums.total[r] = later.total[r];
      std::memcpy(mix, more, sums.width * sizeof(float));
      continue;
    }
    float a[16] = {}, b[16] = {}, factor[16], factor_more[16];
    a[0] = sums.most[r];
    b[0] = later.most[r];
    join_factors(a, b, bits, factor, factor_more);
    sums.most[r] = a[0] > b[0] ? a[0] : b[0];
    sums.total[r] = __builtin_fmaf(later.total[r], factor_more[0], sums.total[r] * factor[0]);
    const Lanes f = Lanes::set1(factor[0]), g = Lanes::set1(factor_more[0]);
    for (int64_t d = 0; d < sums.width; d += 16) {
      Lanes::fma(Lanes::load(more + d), g, Lanes::mul(Lanes::load(mix + d), f)).store(mix + d);
    }
  }
}

// What a tile's rows see of a page: positions first to stop - 1, none where stop <= first.
struct Seen {
  int first[MOST_ATTENTION_ROWS], stop[MOST_ATTENTION_ROWS];

  ALWAYS_INLINE bool any(int r) const { return first[r] < stop[r]; }
};

// acc[r] += over rows of a panel, from `begin` to `end` - 1, both even: x[row * X_ROW + r * X_R] * panel row.
template <int R, int X_ROW, int X_R, class W>
static ALWAYS_INLINE void panel_rows(const float* x, const Panel<W>& panel, int64_t begin, int64_t end, Lanes* acc) {
  for (int64_t row = begin; row < end; row += 2) {
    const float* at = x + row * X_ROW;
    // The next panel follows in memory, but a processor's own guesses end with its pages of 4 kB.
    __builtin_prefetch((const char*)(panel.data + row * PANEL) + 4096, 0, 3);
    const Lanes even = panel.even(row);
    UNROLL for (int r = 0; r < R; ++r) acc[r] = Lanes::fma(Lanes::set1(at[r * X_R]), even, acc[r]);
    const Lanes odd = panel.odd(row);
    UNROLL for (int r = 0; r < R; ++r) acc[r] = Lanes::fma(Lanes::set1(at[X_ROW + r * X_R]), odd, acc[r]);
  }
}

// The same over positions that some of the rows see and some do not.
template <int R, class W>
static ALWAYS_INLINE void panel_edge(const float* scores, const Panel<W>& panel, const int* first, const int* stop,
                                     int begin, int end, Lanes* acc) {
  for (int j = begin; j < end; ++j) {
    const Lanes values = j % 2 ? panel.odd(j - 1) : panel.even(j);
    UNROLL for (int r = 0; r < R; ++r) {
      if (j < first[r] || j >= stop[r]) continue;
      acc[r] = Lanes::fma(Lanes::set1(scores[r * PAGE_POSITIONS + j]), values, acc[r]);
    }
  }
}

// Scores first to stop - 1 become powers of two relative to their maximum; in int8 they are then multiplied by
// the values' scales. Gives the maximum, and the sum's sixteen lanes.
template <class W>
static ALWAYS_INLINE Lanes softmax_row(float* scores, const HeadPage<W>& page, int first, int stop, float bits,
                                       float* most) {
  const int from = first / 16 * 16, to = (stop + 15) / 16 * 16;
  if constexpr (sizeof(W) == 1) {
    for (int j = from; j < to; j += 16) {
      Lanes::mul(Lanes::load(scores + j), Lanes::load(page.key_scales() + j)).store(scores + j);
    }
  }
  for (int j = from; j < first; ++j) scores[j] = -__builtin_inff();
  for (int j = stop; j < to; ++j) scores[j] = -__builtin_inff();
  Lanes largest = Lanes::set1(LEAST_FLOAT);
  for (int j = from; j < to; j += 16) largest = Lanes::max(Lanes::load(scores + j), largest);
  float lanes[16];
  largest.store(lanes);
  for (int l = 0; l < 8; ++l) lanes[l] = lanes[l] > lanes[l + 8] ? lanes[l] : lanes[l + 8];
  for (int l = 0; l < 4; ++l) lanes[l] = lanes[l] > lanes[l + 4] ? lanes[l] : lanes[l + 4];
  const float even = lanes[0] > lanes[2] ? lanes[0] : lanes[2], odd = lanes[1] > lanes[3] ? lanes[1] : lanes[3];
  *most = even > odd ? even : odd;

  Lanes sum = Lanes::zero();
  const Lanes factor = Lanes::set1(bits), max = Lanes::set1(*most);
  for (int j = from; j < to; j += 16) {
    Lanes e = weight(Lanes::load(scores + j), max, factor);
    sum = Lanes::add(sum, e);
    if constexpr (sizeof(W) == 1) e = Lanes::mul(e, Lanes::load(page.value_scales() + j));
    e.store(scores + j);
  }
  return sum;
}

// Hands a panel to `use`. An int8 panel that is used several times is widened once, if it fits the buffer.
constexpr int64_t WIDENED_ROWS = 256;

template <bool SEVERAL_TIMES, class W, class Use>
static ALWAYS_INLINE void with_panel(const Panel<W>& panel, int64_t begin, int64_t end, float* buffer,
                                     const Use& use) {
  if constexpr (sizeof(W) == 1 && SEVERAL_TIMES) {
    if (end <= WIDENED_ROWS) {
      for (int64_t row = begin; row < end; ++row) {
        Lanes::load(panel.data + row * PANEL).store(buffer + row * PANEL);
      }
      use(Panel<float>{buffer});
      return;
    }
  }
  use(panel);
}

// R rows over one page, joined to their sums. q is [width][R].
template <int R, class W>
static void page_tile(const float* q, const HeadPage<W>& page, const Seen& seen, float bits, const RowSums& sums) {
  // What the registers hold at a time; the other half of the rows finds the panel in the first-level cache.
  constexpr int PART = R > Lanes::ATTENTION_ROWS ? R / 2 : R;
  int from = PAGE_POSITIONS, to = 0, all_from = 0, all_to = PAGE_POSITIONS;
  for (int r = 0; r < R; ++r) {
    if (seen.any(r) && seen.first[r] < from) from = seen.first[r];
    if (seen.any(r) && seen.stop[r] > to) to = seen.stop[r];
    if (seen.first[r] > all_from) all_from = seen.first[r];
    if (seen.stop[r] < all_to) all_to = seen.stop[r];
  }
  if (from >= to) return;
  // What all rows see, in whole pairs. What is left on either side goes one by one.
  all_from = (all_from + 1) / 2 * 2;
  all_to = all_to / 2 * 2;
  if (all_from >= all_to) all_from = all_to = to;

  alignas(64) float scores[R][PAGE_POSITIONS];
  alignas(64) float buffer[sizeof(W) == 1 ? WIDENED_ROWS * PANEL : 1];
  for (int64_t group = from / PANEL; group * PANEL < to; ++group) {
    const auto score = [&](const auto panel) __attribute__((always_inline)) {
      for (int part = 0; part < R; part += PART) {
        Lanes acc[PART];
        UNROLL for (int r = 0; r < PART; ++r) acc[r] = Lanes::zero();
        panel_rows<PART, R, 1>(q + part, panel, 0, page.width, acc);
        UNROLL for (int r = 0; r < PART; ++r) acc[r].store(scores[part + r] + group * PANEL);
      }
    };
    with_panel<(R > PART)>(page.keys(group), 0, page.width, buffer, score);
  }

  constexpr int FOURS = (R + 3) / 4 * 4;
  Lanes lanes[FOURS];
  float before[16] = {}, most[16] = {}, factor[16], factor_page[16], total[FOURS];
  for (int r = 0; r < FOURS; ++r) lanes[r] = Lanes::zero();
  for (int r = 0; r < R; ++r) {
    if (!seen.any(r)) continue;
    lanes[r] = softmax_row(scores[r], page, seen.first[r], seen.stop[r], bits, most + r);
    before[r] = sums.seen[r] ? sums.most[r] : most[r];
  }
  for (int r = 0; r < R; r += 4) Lanes::sum4(lanes + r, total + r);
  join_factors(before, most, bits, factor, factor_page);

  for (int64_t group = 0; group * PANEL < page.width; ++group) {
    const auto mix = [&](const auto panel) __attribute__((always_inline)) {
      for (int part = 0; part < R; part += PART) {
        Lanes acc[PART];
        UNROLL for (int r = 0; r < PART; ++r) acc[r] = Lanes::zero();
        const int *first = seen.first + part, *stop = seen.stop + part;
        if (from < all_from) panel_edge<PART>(scores[part], panel, first, stop, from, all_from, acc);
        panel_rows<PART, 1, PAGE_POSITIONS>(scores[part], panel, all_from, all_to, acc);
        if (all_to < to) panel_edge<PART>(scores[part], panel, first, stop, all_to, to, acc);
        UNROLL for (int r = 0; r < PART; ++r) {
          if (!seen.any(part + r)) continue;
          float* at = sums.mix + (part + r) * page.width + group * PANEL;
          if (sums.seen[part + r]) {
            const Lanes earlier = Lanes::mul(Lanes::load(at), Lanes::set1(factor[part + r]));
            Lanes::fma(acc[r], Lanes::set1(factor_page[part + r]), earlier).store(at);
          } else {
            acc[r].store(at);
          }
        }
      }
    };
    with_panel<(R > PART)>(page.values(group), from / 2 * 2, (to + 1) / 2 * 2, buffer, mix);
  }
  for (int r = 0; r < R; ++r) {
    if (!seen.any(r)) continue;
    sums.total[r] = sums.seen[r] ? __builtin_fmaf(total[r], factor_page[r], sums.total[r] * factor[r]) : total[r];
    sums.most[r] = before[r] > most[r] ? before[r] : most[r];
    sums.seen[r] = 1;
  }
}

// How many of n rows the next tile takes.
static ALWAYS_INLINE int tile_rows(int64_t n) {
  if (Lanes::ATTENTION_ROWS == 1) return 1;
  if (n >= MOST_ATTENTION_ROWS && n != 16) return MOST_ATTENTION_ROWS;
  return n >= 8 ? 8 : (n >= 4 ? 4 : (n >= 2 ? 2 : 1));
}

// The rows of one work item: tokens `token` to `token` + count / group - 1 of a sequence, all heads of a KV head.
struct RowBlock {
  const SequenceWork* of;
  int64_t token, kv_head, count, group;
};

// Queries, normed and rotated. Tiles one after another, each [width][rows of the tile].
static void pack_queries(const AttentionArgs& a, const RowBlock& block, int64_t width, float* packed) {
  const int64_t D = a.heads->head_dim;
  float query[MOST_HEAD_DIM];
  for (int64_t r = 0; r < block.count;) {
    const int rows = tile_rows(block.count - r);
    float* tile = packed + r * width;
    for (int i = 0; i < rows; ++i) {
      const int64_t token = block.token + (r + i) / block.group, head = (r + i) % block.group;
      norm_and_rotate(a, block.of->row + token, block.of->position + token, block.kv_head * block.group + head, query);
      for (int64_t d = 0; d < D; ++d) tile[d * rows + i] = query[d];
      for (int64_t d = D; d < width; ++d) tile[d * rows + i] = 0.0f;
    }
    r += rows;
  }
}

// All rows of a block over one span, into `sums`.
template <class W>
static void span_rows(const AttentionArgs& a, const RowBlock& block, int64_t span, int64_t width,
                      const float* packed, const RowSums& sums) {
  const SequenceWork& of = *block.of;
  const int64_t last_token = block.token + (block.count - 1) / block.group;
  const int64_t first = first_key(of.position + block.token, a.heads->window), stop = of.position + last_token + 1;
  int64_t page = span * SPAN_PAGES, end = page + SPAN_PAGES;
  if (page < first / PAGE_POSITIONS) page = first / PAGE_POSITIONS;
  if (end > (stop + PAGE_POSITIONS - 1) / PAGE_POSITIONS) end = (stop + PAGE_POSITIONS - 1) / PAGE_POSITIONS;
  std::memset(sums.seen, 0, block.count);
  for (; page < end; ++page) {
    const HeadPage<W> head_page = HeadPage<W>::at(of.pages[page], block.kv_head, width);
    const int64_t begin = page * PAGE_POSITIONS;
    for (int64_t r = 0; r < block.count;) {
      const int rows = tile_rows(block.count - r);
      Seen seen;
      for (int i = 0; i < rows; ++i) {
        const int64_t token = block.token + (r + i) / block.group;
        const int64_t from = first_key(of.position + token, a.heads->window) - begin, to = of.position + token + 1 - begin;
        seen.first[i] = (int)(from < 0 ? 0 : (from > PAGE_POSITIONS ? PAGE_POSITIONS : from));
        seen.stop[i] = (int)(to < 0 ? 0 : (to > PAGE_POSITIONS ? PAGE_POSITIONS : to));
      }
      const float* q = packed + r * width;
      const RowSums own = sums.from(r);
      if constexpr (Lanes::ATTENTION_ROWS == 1) {
        page_tile<1>(q, head_page, seen, a.bits, own);
      } else {
        switch (rows) {
          case 12: page_tile<12>(q, head_page, seen, a.bits, own); break;
          case 8: page_tile<8>(q, head_page, seen, a.bits, own); break;
          case 4: page_tile<4>(q, head_page, seen, a.bits, own); break;
          case 2: page_tile<2>(q, head_page, seen, a.bits, own); break;
          default: page_tile<1>(q, head_page, seen, a.bits, own);
        }
      }
      r += rows;
    }
  }
}

static void finish_rows(const AttentionArgs& a, const RowBlock& block, const RowSums& sums) {
  const AttentionHeads& heads = *a.heads;
  const int64_t D = heads.head_dim, gates = (heads.num_heads + 2 * heads.num_kv_heads) * D;
  for (int64_t r = 0; r < block.count; ++r) {
    const int64_t row = block.of->row + block.token + r / block.group;
    const int64_t head = block.kv_head * block.group + r % block.group;
    float* out = a.out + (row * heads.num_heads + head) * D;
    const float* mix = sums.mix + r * sums.width;
    const float inverse = 1.0f / sums.total[r];
    for (int64_t d = 0; d < D; ++d) out[d] = mix[d] * inverse;
    if (!heads.has_gate) continue;
    const float gate = sigmoid_one(a.qkv[row * a.stride + gates + head]);
    for (int64_t d = 0; d < D; ++d) out[d] *= gate;
  }
}

// New keys and values go into their pages. Then the rows of all sequences see theirs, all work items side by side.
template <class W>
static void attention(const AttentionArgs& a) {
  write_rows<W>(a);
  const AttentionWork& work = *a.work;
  const int64_t kv_heads = a.heads->num_kv_heads, group = a.heads->num_heads / kv_heads;
  const int64_t width = (a.heads->head_dim + PANEL - 1) / PANEL * PANEL;
  const auto block_of = [&](const SequenceWork& of, int64_t block) {
    const int64_t token = block / kv_heads * of.tokens;
    const int64_t tokens = of.num_rows - token < of.tokens ? of.num_rows - token : of.tokens;
    return RowBlock{&of, token, block % kv_heads, tokens * group, group};
  };
  const auto span_sums = [&](const SequenceWork& of, int64_t block, int64_t span) {
    return RowSums::in(work.sums + of.sums_at + (block * of.spans + span) * of.block_floats, of.tokens * group, width);
  };
  each_item(work.items, work.threads, [&](int64_t item, int thread) {
    const SequenceWork& of = sequence_of<&SequenceWork::item>(work, item);
    float* memory = work.memory + 3 * thread * work.block_floats;
    float* packed = memory + 2 * work.block_floats;
    const int64_t piece = item - of.item, pieces = of.is_split ? of.spans : 1;
    const RowBlock block = block_of(of, piece / pieces);
    pack_queries(a, block, width, packed);
    if (of.is_split) {
      const int64_t span = piece % pieces;
      span_rows<W>(a, block, of.first_span + span, width, packed, span_sums(of, piece / pieces, span));
      return;
    }
    const RowSums sums = RowSums::in(memory, block.count, width);
    const RowSums later = RowSums::in(memory + work.block_floats, block.count, width);
    std::memset(sums.seen, 0, block.count);
    for (int64_t span = 0; span < of.spans; ++span) {
      span_rows<W>(a, block, of.first_span + span, width, packed, later);
      join_rows(sums, later, block.count, a.bits);
    }
    finish_rows(a, block, sums);
  });
  each_item(work.joins, work.threads, [&](int64_t join, int) {
    const SequenceWork& of = sequence_of<&SequenceWork::join>(work, join);
    const RowBlock block = block_of(of, join - of.join);
    const RowSums sums = span_sums(of, join - of.join, 0);
    for (int64_t span = 1; span < of.spans; ++span) {
      join_rows(sums, span_sums(of, join - of.join, span), block.count, a.bits);
    }
    finish_rows(a, block, sums);
  });
}
