// The router's choice.

#pragma once

#include "elementwise.h"
#include "largest.h"

struct RouteArgs {
  const float* logits;  // [rows, num_experts]
  const float* bias;    // [num_experts] or null
  int32_t* expert_ids;  // [rows, top_k], best first
  float* weights;       // [rows, top_k]
  int64_t num_experts, top_k;
  float scaling_factor;
  int32_t normalise;
};

constexpr int MOST_EXPERTS = 1024, MOST_CHOSEN = 16;

// A block has a row: all of its threads compute scores, one warp chooses. A lane of that warp remembers the best of its own
// experts; who is chosen looks for its next one. So a choice is one reduction over a warp, and top_k of them take about
// 1,000 cycles, beside the 1,500 of a launch that waits for a row of logits.
KERNEL route_top_k(const RouteArgs a) {
  __shared__ float scores[MOST_EXPERTS];
  __shared__ uint64_t keys[MOST_EXPERTS];
  const int64_t row = blockIdx.x;
  const int num_experts = (int)a.num_experts, top_k = (int)a.top_k, lane = lane_of_warp();
  for (int e = threadIdx.x; e < num_experts; e += blockDim.x) {
    const float score = sigmoid_one(a.logits[row * num_experts + e]);
    const float sum = a.bias ? score + a.bias[e] : score;
    scores[e] = score;
    keys[e] = ordered(sum == sum ? sum : -infinite(), e);
  }
  __syncthreads();
  if (warp_of_block() > 0) return;

  const auto best_of_mine = [&] {
    uint64_t best = 0;
    for (int e = lane; e < num_experts; e += WARP) best = keys[e] > best ? keys[e] : best;
    return best;
  };
  uint64_t mine = best_of_mine();
  int chosen = 0;  // lane j has the j-th
  for (int j = 0; j < top_k; ++j) {
    const uint64_t best = warp_largest(mine);
    const int id = place_of(best);
    if (lane == j) chosen = id;
    if (lane == id % WARP) {
      keys[id] = 0;  // below the key of any number
      mine = best_of_mine();
    }
  }
  const float score = scores[chosen];
  float total = 0.0f;
  for (int j = 0; j < top_k; ++j) total += __shfl_sync(ALL_LANES, score, j);
  if (lane >= top_k) return;
  a.expert_ids[row * top_k + lane] = chosen;
  a.weights[row * top_k + lane] = (a.normalise ? divide(score, total) : score) * a.scaling_factor;
}
