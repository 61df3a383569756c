// Choosing each row's token: the largest logit, or the largest after noise, of those that top_k, top_p and min_p leave.

#pragma once

#include "elementwise.h"
#include "largest.h"
#include "row_choice.h"

#include "choosing.h"

struct ChooseArgs {
  const float* logits;       // [rows, stride]
  const uint32_t* banned;    // sets of tokens that rows may leave out: a bit for each, lowest bit first; or null
  const RowChoice* choices;  // [rows]
  uint64_t* keys;            // [rows, num_parts]: the largest that each block found
  Best* parts;               // [rows, num_parts]: the best with noise
  uint32_t* largest;         // [rows]: order of the largest logit
  uint32_t* least;           // [rows]: order of the least logit that top_k and top_p leave
  uint32_t* weights;         // [rows, vocab], for rows with top_p
  int32_t* token_ids;        // [rows]: ties to the lowest id; -1 where the largest logit is not finite
  int64_t vocab, stride, num_parts;
};

DEVICE const uint32_t* banned_of(const ChooseArgs& a, int64_t row) {
  const int64_t set = a.choices[row].banned_set;
  return set ? a.banned + (set - 1) * ((a.vocab + 31) / 32) : nullptr;
}
DEVICE uint32_t order_in(const float* logits, const uint32_t* banned, int64_t token) {
  const bool is_banned = banned && banned[token / 32] >> token % 32 & 1;
  return order_of(is_banned ? -infinite() : logits[token]);
}

// Blocks of the first kernel share a row's logits, 4 bytes each: as far as a card's memory goes. The second one has a warp
// a row and 16 bytes a block.
KERNEL largest_parts(const ChooseArgs a) {
  __shared__ uint64_t found[WARP];
  const int64_t row = blockIdx.y, step = a.num_parts * blockDim.x;
  const float* logits = a.logits + row * a.stride;
  const uint32_t* banned = banned_of(a, row);
  uint64_t best = 0;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.vocab; i += step) {
    const uint64_t key = key_of(order_in(logits, banned, i), (uint32_t)i);
    best = key > best ? key : best;
  }
  best = warp_largest(best);
  if (lane_of_warp() == 0) found[warp_of_block()] = best;
  __syncthreads();
  if (warp_of_block() > 0) return;
  best = warp_largest(lane_of_warp() < blockDim.x / WARP ? found[lane_of_warp()] : 0);
  if (lane_of_warp() == 0) a.keys[row * a.num_parts + blockIdx.x] = best;
}

KERNEL largest_join(const ChooseArgs a) {
  const int64_t row = blockIdx.x;
  uint64_t best = 0;
  for (int64_t i = lane_of_warp(); i < a.num_parts; i += WARP) {
    const uint64_t key = a.keys[row * a.num_parts + i];
    best = key > best ? key : best;
  }
  best = warp_largest(best);
  if (lane_of_warp() > 0) return;
  const uint32_t order = (uint32_t)(best >> 32);
  a.token_ids[row] = is_finite_order(order) ? place_of(best) : -1;
  a.largest[row] = order;
  a.least[row] = 0;
}

// A thread takes a token: thread blocks in x over a row's tokens, in y over rows.
KERNEL weigh_tokens(const ChooseArgs a) {
  const int64_t row = blockIdx.y, token = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  const RowChoice choice = a.choices[row];
  if (token >= a.vocab || choice.temperature == 0.0f || choice.top_p >= 1.0 || a.token_ids[row] < 0) return;
  const uint32_t order = order_in(a.logits + row * a.stride, banned_of(a, row), token);
  const float x = scaled(from_order(order), from_order(a.largest[row]), choice.temperature);
  a.weights[row * a.vocab + token] = weight_of(x);
}

constexpr int DIGITS = 4;

// The largest order such that the tokens from it on, and not below `least`, weigh `wanted` together; by digits of two bits,
// the highest first. All threads of a block come here. A digit costs one look at the logits, which the caches have; sums
// stay in registers, for atomics would meet at the few digits that most logits share.
template <class Weight>
DEVICE uint32_t least_order(const ChooseArgs& a, int64_t row, uint32_t least, uint64_t wanted, const Weight& weight) {
  __shared__ uint64_t of_warps[WARP][DIGITS];
  const float* logits = a.logits + row * a.stride;
  const uint32_t* banned = banned_of(a, row);
  uint64_t rest = wanted;
  uint32_t found = 0;
  for (int shift = 30; shift >= 0; shift -= 2) {
    uint64_t sums[DIGITS] = {};
    for (int64_t i = threadIdx.x; i < a.vocab; i += blockDim.x) {
      const uint32_t order = order_in(logits, banned, i);
      if (order < least || (uint64_t)order >> (shift + 2) != (uint64_t)found >> (shift + 2)) continue;
      const uint64_t own = weight(i);
      UNROLL for (int digit = 0; digit < DIGITS; ++digit) sums[digit] += (order >> shift & 3) == digit ? own : 0;
    }
    UNROLL for (int digit = 0; digit < DIGITS; ++digit) {
      const uint64_t sum = warp_sum(sums[digit]);
      if (lane_of_warp() == 0) of_warps[warp_of_block()][digit] = sum;
    }
    __syncthreads();
    // Every thread adds up the same.
    UNROLL for (int digit = 0; digit < DIGITS; ++digit) {
      sums[digit] = 0;
      for (int warp = 0; warp < (int)(blockDim.x / WARP); ++warp) sums[digit] += of_warps[warp][digit];
    }
    __syncthreads();
    int digit = DIGITS - 1;
    for (; digit > 0 && sums[digit] < rest; --digit) rest -= sums[digit];
    found |= (uint32_t)digit << shift;
  }
  return found;
}

// A block has a row.
KERNEL __launch_bounds__(1024) cut_tokens(const ChooseArgs a) {
  __shared__ uint64_t of_warps[WARP];
  const int64_t row = blockIdx.x;
  const RowChoice choice = a.choices[row];
  if (choice.temperature == 0.0f || a.token_ids[row] < 0) return;
  uint32_t least = 0;
  if (choice.top_k > 0 && choice.top_k < a.vocab) {
    least = least_order(a, row, 0, (uint64_t)choice.top_k, [](int64_t) { return (uint64_t)1; });
  }
  if (choice.top_p < 1.0) {
    const uint32_t* weights = a.weights + row * a.vocab;
    const float* logits = a.logits + row * a.stride;
    uint64_t mine = 0;
    for (int64_t i = threadIdx.x; i < a.vocab; i += blockDim.x) {
      if (order_in(logits, banned_of(a, row), i) >= least) mine += weights[i];
    }
    mine = warp_sum(mine);
    if (lane_of_warp() == 0) of_warps[warp_of_block()] = mine;
    __syncthreads();
    uint64_t total = 0;
    for (int warp = 0; warp < (int)(blockDim.x / WARP); ++warp) total += of_warps[warp];
    const uint64_t wanted = weight_wanted(choice.top_p, total);
    least = least_order(a, row, least, wanted, [&](int64_t i) { return (uint64_t)weights[i]; });
  }
  if (threadIdx.x == 0) a.least[row] = least;
}

DEVICE Best warp_best(Best mine) {
  UNROLL for (int by = WARP / 2; by > 0; by /= 2) {
    const Best other = {__shfl_xor_sync(ALL_LANES, mine.key, by), __shfl_xor_sync(ALL_LANES, mine.token, by)};
    if (is_better(other, mine)) mine = other;
  }
  return mine;
}

// As `largest_parts` and `largest_join`, of logits with noise. A thread takes four tokens at a time, which share their words
// of noise: about 80 multiplications of 32 bits a token. Logarithms are wanted for the few tokens that may win.
KERNEL noisy_parts(const ChooseArgs a) {
  __shared__ Best found[WARP];
  const int64_t row = blockIdx.y, step = a.num_parts * blockDim.x;
  const RowChoice choice = a.choices[row];
  if (choice.temperature == 0.0f || a.token_ids[row] < 0) return;
  Best best = {-(double)infinite(), a.vocab};
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; 4 * i < a.vocab; i += step) {
    try_block(choice, a.logits + row * a.stride, banned_of(a, row), a.vocab, from_order(a.largest[row]), a.least[row], i, best);
  }
  best = warp_best(best);
  if (lane_of_warp() == 0) found[warp_of_block()] = best;
  __syncthreads();
  if (warp_of_block() > 0) return;
  const Best none = {-(double)infinite(), a.vocab};
  best = warp_best(lane_of_warp() < blockDim.x / WARP ? found[lane_of_warp()] : none);
  if (lane_of_warp() == 0) a.parts[row * a.num_parts + blockIdx.x] = best;
}

KERNEL noisy_join(const ChooseArgs a) {
  const int64_t row = blockIdx.x;
  if (a.choices[row].temperature == 0.0f || a.token_ids[row] < 0) return;
  Best best = {-(double)infinite(), a.vocab};
  for (int64_t i = lane_of_warp(); i < a.num_parts; i += WARP) {
    const Best other = a.parts[row * a.num_parts + i];
    if (is_better(other, best)) best = other;
  }
  best = warp_best(best);
  if (lane_of_warp() == 0) a.token_ids[row] = (int32_t)best.token;
}
