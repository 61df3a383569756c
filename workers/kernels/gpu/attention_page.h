// Some query rows over one page, in one warp.

#pragma once

#include "attention_rows.h"

namespace kv {

constexpr int GROUP = 4 * WARP;  // dimensions that a warp's lanes hold at a time: a lane has four

// Sums of HEADS rows over some keys, a lane's dimensions of each mix. Bit r of `seen`: row r has met a key.
template <int HEADS, int GROUPS>
struct Sums {
  float most[HEADS], total[HEADS], mix[HEADS][GROUPS][4];
  uint32_t seen;

  DEVICE bool has(int r) const { return seen >> r & 1; }
  DEVICE void join(const Sums& later, float bits) {
    UNROLL for (int r = 0; r < HEADS; ++r) {
      if (!later.has(r)) continue;
      if (!has(r)) {
        most[r] = later.most[r];
        total[r] = later.total[r];
        UNROLL for (int g = 0; g < GROUPS; ++g) UNROLL for (int c = 0; c < 4; ++c) mix[r][g][c] = later.mix[r][g][c];
        continue;
      }
      const float both = larger(most[r], later.most[r]);
      const float f = weight_of(most[r], both, bits), g_more = weight_of(later.most[r], both, bits);
      most[r] = both;
      total[r] = fma_rn(later.total[r], g_more, total[r] * f);
      UNROLL for (int g = 0; g < GROUPS; ++g) UNROLL for (int c = 0; c < 4; ++c) {
        mix[r][g][c] = fma_rn(later.mix[r][g][c], g_more, mix[r][g][c] * f);
      }
    }
    seen |= later.seen;
  }
};

// acc[r][c] += x[row][r] * column c of the panel's row, over rows `begin` to `end` - 1 in ascending order.
template <class W, int HEADS>
DEVICE void panel_rows(const Columns<W> columns, const Together<float, HEADS>* x, int begin, int end,
                       float (&acc)[HEADS][4]) {
  using Panel = Columns<W>;
  constexpr int ROWS = Panel::ROWS, BATCH = sizeof(W) == 1 ? 16 : 8;
  const auto add = [&](const typename Panel::Load& load, int row, int of_load) {
    const Together<float, HEADS> at = x[row + of_load];
    UNROLL for (int c = 0; c < 4; ++c) {
      const float value = Panel::get(load, of_load, c);
      UNROLL for (int r = 0; r < HEADS; ++r) acc[r][c] = fma_rn(at.v[r], value, acc[r][c]);
    }
  };
  int row = begin;
  if (row % ROWS != 0 && row < end) {
    add(columns.load(row - 1), row - 1, 1);
    ++row;
  }
  for (; row + BATCH * ROWS <= end; row += BATCH * ROWS) {
    typename Panel::Load loads[BATCH];
    UNROLL for (int i = 0; i < BATCH; ++i) loads[i] = columns.load(row + i * ROWS);
    UNROLL for (int i = 0; i < BATCH; ++i) {
      UNROLL for (int of_load = 0; of_load < ROWS; ++of_load) add(loads[i], row + i * ROWS, of_load);
    }
  }
  for (; row < end; row += ROWS) {
    const typename Panel::Load load = columns.load(row);
    add(load, row, 0);
    if (ROWS == 2 && row + 1 < end) add(load, row, 1);
  }
}

// The same over positions that some rows see and some do not.
template <class W, int HEADS>
DEVICE void panel_edge(const Columns<W> columns, const Together<float, HEADS>* x, const Range (&seen)[HEADS], int begin,
                       int end, float (&acc)[HEADS][4]) {
  using Panel = Columns<W>;
  for (int row = begin; row < end; ++row) {
    const int of_load = row % Panel::ROWS;
    const typename Panel::Load load = columns.load(row - of_load);
    UNROLL for (int r = 0; r < HEADS; ++r) {
      if (row < seen[r].first || row >= seen[r].stop) continue;
      UNROLL for (int c = 0; c < 4; ++c) acc[r][c] = fma_rn(x[row].v[r], Panel::get(load, of_load, c), acc[r][c]);
    }
  }
}

// A warp's own stretch of shared memory: queries [head_dim][HEADS] and a page's weights [positions][HEADS].
template <int HEADS, int GROUPS>
struct Shared {
  Together<float, HEADS> queries[GROUPS * GROUP], weights[PAGE];
};

// One page, for rows that see positions seen[r] of it, at least one of them any.
template <class W, int HEADS, int GROUPS>
DEVICE void page_sums(const HeadPage<W> page, int head_dim, Shared<HEADS, GROUPS>& shared, const Range (&seen)[HEADS],
                      float bits, Sums<HEADS, GROUPS>& sums) {
  const int lane = lane_of_warp(), j = 4 * lane;
  // What any row sees, and what all do that see anything.
  int from = PAGE, to = 0, all_from = 0, all_to = PAGE;
  sums.seen = 0;
  UNROLL for (int r = 0; r < HEADS; ++r) {
    if (!seen[r].any()) continue;
    sums.seen |= 1u << r;
    from = seen[r].first < from ? seen[r].first : from;
    to = seen[r].stop > to ? seen[r].stop : to;
    all_from = seen[r].first > all_from ? seen[r].first : all_from;
    all_to = seen[r].stop < all_to ? seen[r].stop : all_to;
  }
  if (all_from >= all_to) all_from = all_to = to;

  float scores[HEADS][4];
  UNROLL for (int r = 0; r < HEADS; ++r) UNROLL for (int c = 0; c < 4; ++c) scores[r][c] = 0.0f;
  if (j < to && j + 3 >= from) panel_rows<W, HEADS>(page.keys(j), shared.queries, 0, head_dim, scores);
  if constexpr (sizeof(W) == 1) {
    const Together<float, 4> scales = ((const Together<float, 4>*)page.key_scales())[lane];
    UNROLL for (int r = 0; r < HEADS; ++r) UNROLL for (int c = 0; c < 4; ++c) scores[r][c] = scores[r][c] * scales.v[c];
  }
  UNROLL for (int r = 0; r < HEADS; ++r) {
    float most = LEAST_FLOAT;
    UNROLL for (int c = 0; c < 4; ++c) {
      if (j + c < seen[r].first || j + c >= seen[r].stop) scores[r][c] = -infinite();
      most = larger(scores[r][c], most);
    }
    UNROLL for (int by = WARP / 2; by > 0; by /= 2) most = larger(__shfl_xor_sync(ALL_LANES, most, by), most);
    sums.most[r] = most;
    UNROLL for (int c = 0; c < 4; ++c) scores[r][c] = weight_of(scores[r][c], most, bits);
  }
  const auto show = [&] {
    __syncwarp();  // what was shown before has been read
    UNROLL for (int c = 0; c < 4; ++c) {
      Together<float, HEADS> at;
      UNROLL for (int r = 0; r < HEADS; ++r) at.v[r] = scores[r][c];
      shared.weights[j + c] = at;
    }
    __syncwarp();
  };
  show();
  UNROLL for (int r = 0; r < HEADS; ++r) sums.total[r] = 0.0f;
  UNROLL for (int i = 0; i < PAGE; i += 16) {
    const Together<float, HEADS> at = shared.weights[i + lane % 16];
    UNROLL for (int r = 0; r < HEADS; ++r) sums.total[r] = sums.total[r] + at.v[r];
  }
  UNROLL for (int r = 0; r < HEADS; ++r) sums.total[r] = tree_of_sixteen(sums.total[r]);
  if constexpr (sizeof(W) == 1) {
    const Together<float, 4> scales = ((const Together<float, 4>*)page.value_scales())[lane];
    UNROLL for (int r = 0; r < HEADS; ++r) UNROLL for (int c = 0; c < 4; ++c) scores[r][c] = scores[r][c] * scales.v[c];
    show();
  }

  UNROLL for (int g = 0; g < GROUPS; ++g) {
    float acc[HEADS][4];
    UNROLL for (int r = 0; r < HEADS; ++r) UNROLL for (int c = 0; c < 4; ++c) acc[r][c] = 0.0f;
    if (g * GROUP + j < page.width) {
      const Columns<W> values = page.values(g * GROUP + j);
      panel_edge<W, HEADS>(values, shared.weights, seen, from, all_from, acc);
      panel_rows<W, HEADS>(values, shared.weights, all_from, all_to, acc);
      panel_edge<W, HEADS>(values, shared.weights, seen, all_to, to, acc);
    }
    UNROLL for (int r = 0; r < HEADS; ++r) UNROLL for (int c = 0; c < 4; ++c) sums.mix[r][g][c] = acc[r][c];
  }
}

// What `seen` has of a page.
DEVICE Range within(Range seen, int page) {
  const int begin = page * PAGE;
  const int first = seen.first - begin, stop = seen.stop - begin;
  return {first < 0 ? 0 : first > PAGE ? PAGE : first, stop < 0 ? 0 : stop > PAGE ? PAGE : stop};
}

}  // namespace kv
