// Greedy sampling: the largest logit of each row.

#pragma once

#include "largest.h"

struct ArgmaxArgs {
  const float* logits;     // [rows, stride]
  const uint32_t* banned;  // a bit for each token that counts as -infinity, lowest bit first; or null
  uint64_t* parts;         // [rows, num_parts]
  int32_t* token_ids;      // [rows]: ties to the lowest id; -1 where the largest is not finite
  int64_t vocab, stride, num_parts;
};

// Blocks of the first kernel share a row's logits, 4 bytes each: as far as a card's memory goes. The second one has a warp
// a row and 8 bytes a block.
KERNEL argmax_parts(const ArgmaxArgs a) {
  __shared__ uint64_t found[WARP];
  const int64_t row = blockIdx.y, step = a.num_parts * blockDim.x;
  const float* logits = a.logits + row * a.stride;
  uint64_t best = 0;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.vocab; i += step) {
    const bool is_banned = a.banned && a.banned[i / 32] >> i % 32 & 1;
    const uint64_t key = ordered(is_banned ? -infinite() : logits[i], (uint32_t)i);
    best = key > best ? key : best;
  }
  best = warp_largest(best);
  if (lane_of_warp() == 0) found[warp_of_block()] = best;
  __syncthreads();
  if (warp_of_block() > 0) return;
  best = warp_largest(lane_of_warp() < blockDim.x / WARP ? found[lane_of_warp()] : 0);
  if (lane_of_warp() == 0) a.parts[row * a.num_parts + blockIdx.x] = best;
}

KERNEL argmax_join(const ArgmaxArgs a) {
  const int64_t row = blockIdx.x;
  uint64_t best = 0;
  for (int64_t i = lane_of_warp(); i < a.num_parts; i += WARP) {
    const uint64_t key = a.parts[row * a.num_parts + i];
    best = key > best ? key : best;
  }
  best = warp_largest(best);
  if (lane_of_warp() == 0) a.token_ids[row] = finite_key(best) ? place_of(best) : -1;
}
