// Joins the parts of attention in order.

#pragma once

#include "attention_rows.h"

namespace kv {

// Joins sums in order: `most` and `total` become those of all, and sum i, with i from `first` on, is to be multiplied by
// more[i] when what was joined before it is multiplied by before[i].
struct Joined {
  float most, total, before[SPAN_PAGES], more[SPAN_PAGES];

  DEVICE void add(int i, float later_most, float later_total, float bits) {
    const float both = larger(most, later_most);
    before[i] = weight_of(most, both, bits);
    more[i] = weight_of(later_most, both, bits);
    total = fma_rn(later_total, more[i], total * before[i]);
    most = both;
  }
};

}  // namespace kv

// A block has a head of a row. Its warps join the pages of a span each, then all threads the spans, eight at a time. Where
// parts are spans, a warp has one part to take. Reads what `attention_parts` wrote, 1/16 of the KV bytes for eight query
// heads a KV head in bfloat16.
KERNEL attention_join(const AttentionArgs a) {
  using namespace kv;
  constexpr int MOST_WIDTH = 512;
  __shared__ float spans[SPAN_PAGES][MOST_WIDTH], mix[MOST_WIDTH], sums[SPAN_PAGES][2];
  const int64_t head = blockIdx.x, row = blockIdx.y;
  const int head_dim = (int)a.head_dim, width = (head_dim + PANEL - 1) / PANEL * PANEL;
  float* out = a.out + (row * a.num_heads + head) * head_dim;
  const Range all = seen_from(a.places.positions[row], a.window);
  if (!all.any()) {
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x) out[d] = 0.0f;
    return;
  }
  const Parts parts = Parts::of(all);
  const int num_spans = parts.spans(), warps = blockDim.x / WARP;
  const int64_t at = (row * a.num_heads + head) * a.num_parts;
  Joined whole;
  for (int start = 0; start < num_spans; start += warps) {
    const int own = start + warp_of_block();
    if (own < num_spans) {
      // Its parts: of pages those of the span, else the span itself.
      int first = own, count = 1;
      if (parts.by_page) {
        const int page = (parts.first_span() + own) * SPAN_PAGES;
        first = page < parts.first_page ? 0 : page - parts.first_page;
        const int end = page + SPAN_PAGES - parts.first_page;
        count = (end < parts.pages ? end : parts.pages) - first;
      }
      const Together<float, 2>* of_part = (const Together<float, 2>*)a.sums + at + first;
      Joined span;
      span.most = of_part[0].v[0];
      span.total = of_part[0].v[1];
      UNROLL for (int i = 1; i < SPAN_PAGES; ++i) {
        if (i < count) span.add(i, of_part[i].v[0], of_part[i].v[1], a.bits);
      }
      const float* mixes = a.mixes + (at + first) * width;
      for (int d = lane_of_warp(); d < head_dim; d += WARP) {
        float x[SPAN_PAGES];
        UNROLL for (int i = 0; i < SPAN_PAGES; ++i) x[i] = i < count ? mixes[i * width + d] : 0.0f;
        UNROLL for (int i = 1; i < SPAN_PAGES; ++i) {
          if (i < count) x[0] = fma_rn(x[i], span.more[i], x[0] * span.before[i]);
        }
        spans[warp_of_block()][d] = x[0];
      }
      if (lane_of_warp() == 0) sums[warp_of_block()][0] = span.most;
      if (lane_of_warp() == 0) sums[warp_of_block()][1] = span.total;
    }
    __syncthreads();
    const int here = num_spans - start < warps ? num_spans - start : warps;
    if (start == 0) whole.most = sums[0][0];
    if (start == 0) whole.total = sums[0][1];
    UNROLL for (int i = 0; i < SPAN_PAGES; ++i) {
      if (i < here && start + i > 0) whole.add(i, sums[i][0], sums[i][1], a.bits);
    }
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
      float x = start == 0 ? spans[0][d] : mix[d];
      UNROLL for (int i = 0; i < SPAN_PAGES; ++i) {
        if (i < here && start + i > 0) x = fma_rn(spans[i][d], whole.more[i], x * whole.before[i]);
      }
      mix[d] = x;
    }
    __syncthreads();
  }
  const float inverse = divide(1.0f, whole.total);
  for (int d = threadIdx.x; d < head_dim; d += blockDim.x) out[d] = gated(a, row, head, mix[d], inverse);
}
