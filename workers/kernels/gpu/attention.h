// Causal attention over pages of keys and values, with the sums of docs/attention.md.
//
// A warp has HEADS query rows of one KV head and goes through pages by itself: no barrier of the block. A lane has four keys
// while scores are summed, and four dimensions while values are mixed, so that one load of 16 bytes serves 4 * HEADS
// multiply-adds or more, and neighbours read whole sectors of 32 bytes. Eight loads are under way in each lane: 4 KB a warp,
// 48 KB a multiprocessor, several times what memory needs (1 TB/s * 600 ns / 128 multiprocessors = 5 KB). Warps of a block
// share the KV head, and a page is in the first or second-level cache for all but the first of them. So a decode step's
// floor is the KV bytes over the memory's bandwidth, and a prompt's the multiply-adds: 2 * rows * heads * positions *
// head_dim of them, each a float32 operation, as their order is fixed.
//
// Few rows: `attention_parts` gives each page, or with more than MOST_PAGE_PARTS of them each span, to another block, and
// `attention_join` joins them in order. Many rows: `attention_whole` does all of a row in one warp.
//
// Registers: 130 for parts, 180 for whole rows, so that 12 and 8 warps fit a multiprocessor. Bounded to fit 16 and 12, the
// compiler spills, with half the loads under way too.

#pragma once

#include "attention_page.h"

namespace kv {

constexpr int ATTENTION_WARPS = 4;  // of a block, at most

// A warp's rows: all query heads of a KV head for one row of the batch after another. Row i of `count` is head
// head(i) of batch row row(i).
struct WarpRows {
  int64_t begin, count, kv_head, group;

  DEVICE int64_t row(int i) const { return (begin + i) / group; }
  DEVICE int64_t head(int i) const { return kv_head * group + (begin + i) % group; }
};

template <int HEADS, int GROUPS>
DEVICE void take_queries(const AttentionArgs& a, const WarpRows& rows, Shared<HEADS, GROUPS>& shared) {
  const float* from[HEADS];
  UNROLL for (int r = 0; r < HEADS; ++r) {
    from[r] = r < rows.count ? a.queries + (rows.row(r) * a.num_heads + rows.head(r)) * a.head_dim : nullptr;
  }
  for (int d = lane_of_warp(); d < (int)a.head_dim; d += WARP) {
    Together<float, HEADS> at;
    UNROLL for (int r = 0; r < HEADS; ++r) at.v[r] = from[r] ? from[r][d] : 0.0f;
    shared.queries[d] = at;
  }
  __syncwarp();
}

// Gives the numbers of a lane's dimensions below head_dim to `use(d, value)`.
template <int GROUPS, class Use>
DEVICE void each_dimension(const float (&mix)[GROUPS][4], int head_dim, const Use& use) {
  UNROLL for (int g = 0; g < GROUPS; ++g) UNROLL for (int c = 0; c < 4; ++c) {
    const int d = g * GROUP + 4 * lane_of_warp() + c;
    if (d < head_dim) use(d, mix[g][c]);
  }
}

template <class W, int HEADS, int GROUPS>
DEVICE void attention_parts(const AttentionArgs& a) {
  __shared__ Shared<HEADS, GROUPS> of_warp[ATTENTION_WARPS];
  const int64_t group = a.num_heads / a.num_kv_heads, row = blockIdx.z;
  const int64_t warps = blockDim.x / WARP, chunks = ceil_div(group, warps * HEADS);
  const int64_t place = (blockIdx.y % chunks * warps + warp_of_block()) * HEADS;
  const int32_t position = a.places.positions[row];
  if (position < 0 || place >= group) return;
  const int64_t count = group - place < HEADS ? group - place : HEADS;
  const WarpRows rows{row * group + place, count, blockIdx.y / chunks, group};
  const Range all = seen_from(position, a.window);
  const Parts parts = Parts::of(all);
  if ((int)blockIdx.x >= parts.count()) return;
  Shared<HEADS, GROUPS>& shared = of_warp[warp_of_block()];
  take_queries<HEADS, GROUPS>(a, rows, shared);
  const int head_dim = (int)a.head_dim, width = (head_dim + PANEL - 1) / PANEL * PANEL;
  const int64_t* table = a.places.pages + a.places.sequences[row] * a.places.table_stride;
  for (int part = blockIdx.x; part < parts.count(); part += gridDim.x) {
    Sums<HEADS, GROUPS> sums;
    sums.seen = 0;
    for (int page = parts.begin(part); page < parts.end(part); ++page) {
      Range seen[HEADS];
      UNROLL for (int r = 0; r < HEADS; ++r) seen[r] = r < count ? within(all, page) : Range{0, 0};
      Sums<HEADS, GROUPS> more;
      page_sums<W, HEADS, GROUPS>(HeadPage<W>::at(table[page], rows.kv_head, width), head_dim, shared, seen, a.bits, more);
      sums.join(more, a.bits);
    }
    UNROLL for (int r = 0; r < HEADS; ++r) {
      if (r >= count) continue;
      const int64_t at = (row * a.num_heads + rows.head(r)) * a.num_parts + part;
      each_dimension<GROUPS>(sums.mix[r], head_dim, [&](int d, float x) { a.mixes[at * width + d] = x; });
      if (lane_of_warp() == 0) a.sums[2 * at] = sums.most[r];
      if (lane_of_warp() == 1) a.sums[2 * at + 1] = sums.total[r];
    }
  }
}

template <class W, int HEADS, int GROUPS>
DEVICE void attention_whole(const AttentionArgs& a) {
  __shared__ Shared<HEADS, GROUPS> of_warp[ATTENTION_WARPS];
  const int64_t group = a.num_heads / a.num_kv_heads;
  const int64_t begin = ((int64_t)blockIdx.x * (blockDim.x / WARP) + warp_of_block()) * HEADS, left = a.rows * group - begin;
  if (left <= 0) return;
  const WarpRows rows{begin, left < HEADS ? left : HEADS, blockIdx.y, group};
  Shared<HEADS, GROUPS>& shared = of_warp[warp_of_block()];
  take_queries<HEADS, GROUPS>(a, rows, shared);
  const int head_dim = (int)a.head_dim, width = (head_dim + PANEL - 1) / PANEL * PANEL;

  Range all[HEADS];
  int32_t sequence[HEADS];
  uint32_t todo = 0;
  UNROLL for (int r = 0; r < HEADS; ++r) {
    all[r] = Range{0, 0};
    sequence[r] = -1;
    if (r >= rows.count) continue;
    all[r] = seen_from(a.places.positions[rows.row(r)], a.window);
    sequence[r] = a.places.sequences[rows.row(r)];
    if (all[r].any()) todo |= 1u << r;
  }
  Sums<HEADS, GROUPS> sums;
  sums.seen = 0;
  // Rows of one sequence after another; mostly there is one.
  while (todo) {
    int32_t own = -1;
    UNROLL for (int r = HEADS - 1; r >= 0; --r) own = todo >> r & 1 ? sequence[r] : own;
    Range any{0x7fffffff, 0};
    uint32_t active = 0;
    UNROLL for (int r = 0; r < HEADS; ++r) {
      if (!(todo >> r & 1) || sequence[r] != own) continue;
      active |= 1u << r;
      any.first = all[r].first < any.first ? all[r].first : any.first;
      any.stop = all[r].stop > any.stop ? all[r].stop : any.stop;
    }
    todo &= ~active;
    const int64_t* table = a.places.pages + own * a.places.table_stride;
    Sums<HEADS, GROUPS> span;
    span.seen = 0;
    for (int page = any.first_page(); page <= any.last_page(); ++page) {
      Range seen[HEADS];
      UNROLL for (int r = 0; r < HEADS; ++r) seen[r] = active >> r & 1 ? within(all[r], page) : Range{0, 0};
      Sums<HEADS, GROUPS> more;
      page_sums<W, HEADS, GROUPS>(HeadPage<W>::at(table[page], rows.kv_head, width), head_dim, shared, seen, a.bits, more);
      span.join(more, a.bits);
      if (page == any.last_page() || page % SPAN_PAGES == SPAN_PAGES - 1) {
        sums.join(span, a.bits);
        span.seen = 0;
      }
    }
  }
  UNROLL for (int r = 0; r < HEADS; ++r) {
    if (r >= rows.count) continue;
    const int64_t row = rows.row(r), head = rows.head(r);
    float* out = a.out + (row * a.num_heads + head) * head_dim;
    const bool there = sums.has(r);
    const float inverse = divide(1.0f, sums.total[r]);
    each_dimension<GROUPS>(sums.mix[r], head_dim,
                           [&](int d, float x) { out[d] = there ? gated(a, row, head, x, inverse) : 0.0f; });
  }
}

}  // namespace kv

#define ATTENTION_KERNELS(FORM, WORD, HEADS, GROUPS)                                                                     \
  KERNEL attention_parts_##FORM##_##HEADS##_##GROUPS(const AttentionArgs a) {                                            \
    kv::attention_parts<WORD, HEADS, GROUPS>(a);                                                                         \
  }                                                                                                                      \
  KERNEL attention_whole_##FORM##_##HEADS##_##GROUPS(const AttentionArgs a) {                                            \
    kv::attention_whole<WORD, HEADS, GROUPS>(a);                                                                         \
  }
