// Choosing each row's token: the largest logit, or the largest after noise, of those that top_k, top_p and min_p leave.

#pragma once

#include "elementwise.h"
#include "largest.h"
#include "row_choice.h"

#include "choosing.h"

struct ChooseArgs {
  const float* logits;       // [rows, stride]
  const uint32_t* banned;    // a bit for each token that rows may leave out, lowest bit first; or null
  const RowChoice* choices;  // [rows]
  Best* parts;               // [rows, num_parts]: what each block found
  uint32_t* largest;         // [rows]: order of the largest logit
  uint32_t* least;           // [rows]: order of the least logit that top_k and top_p leave
  uint32_t* weights;         // [rows, vocab], for rows with top_p
  int32_t* token_ids;        // [rows]: ties to the lowest id; -1 where the largest logit is not finite
  int64_t vocab, stride, num_parts;
};

DEVICE const uint32_t* banned_of(const ChooseArgs& a, int64_t row) {
  return a.choices[row].has_banned ? a.banned : nullptr;
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
    const uint64_t key = (uint64_t)order_in(logits, banned, i) << 32 | (0xffffffffu - (uint32_t)i);
    best = key > best ? key : best;
  }
  best = warp_largest(best);
  if (lane_of_warp() == 0) found[warp_of_block()] = best;
  __syncthreads();
  if (warp_of_block() > 0) return;
  best = warp_largest(lane_of_warp() < blockDim.x / WARP ? found[lane_of_warp()] : 0);
  if (lane_of_warp() == 0) a.parts[row * a.num_parts + blockIdx.x].token = (int64_t)best;
}

KERNEL largest_join(const ChooseArgs a) {
  const int64_t row = blockIdx.x;
  uint64_t best = 0;
  for (int64_t i = lane_of_warp(); i < a.num_parts; i += WARP) {
    const uint64_t key = (uint64_t)a.parts[row * a.num_parts + i].token;
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

constexpr int DIGITS = 256;

// The largest order such that the tokens from it on, and not below `least`, weigh `wanted` together; by digits of eight bits,
// the highest first. All threads of a block come here.
template <class Weight>
DEVICE uint32_t least_order(const ChooseArgs& a, int64_t row, uint32_t least, uint64_t wanted, const Weight& weight) {
  __shared__ uint64_t sums[DIGITS];
  __shared__ uint64_t rest;
  __shared__ uint32_t found;
  const float* logits = a.logits + row * a.stride;
  const uint32_t* banned = banned_of(a, row);
  if (threadIdx.x == 0) {
    rest = wanted;
    found = 0;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int digit = threadIdx.x; digit < DIGITS; digit += blockDim.x) sums[digit] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < a.vocab; i += blockDim.x) {
      const uint32_t order = order_in(logits, banned, i);
      if (order < least || (uint64_t)order >> (shift + 8) != (uint64_t)found >> (shift + 8)) continue;
      const uint64_t own = weight(i);
      if (own > 0) atomicAdd(&sums[order >> shift & (DIGITS - 1)], own);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = DIGITS - 1;
      for (; digit > 0 && sums[digit] < rest; --digit) rest -= sums[digit];
      found |= (uint32_t)digit << shift;
    }
    __syncthreads();
  }
  return found;
}

// A block has a row.
KERNEL __launch_bounds__(1024) cut_tokens(const ChooseArgs a) {
  __shared__ uint64_t total;
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
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    uint64_t mine = 0;
    for (int64_t i = threadIdx.x; i < a.vocab; i += blockDim.x) {
      if (order_in(logits, banned_of(a, row), i) >= least) mine += weights[i];
    }
    if (mine > 0) atomicAdd(&total, mine);
    __syncthreads();
    const uint64_t wanted = weight_wanted(choice.top_p, total);
    const uint32_t of_weight = least_order(a, row, least, wanted, [&](int64_t i) { return (uint64_t)weights[i]; });
    least = of_weight > least ? of_weight : least;
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

// As `largest_parts` and `largest_join`, of logits with noise; a thread takes four tokens at a time. Integers take most of
// the time, about 80 multiplications a token; logarithms are wanted for the few tokens that may win.
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
