// What the lanes of a warp do together.

#pragma once

#include "device.h"

DEVICE int lane_of_warp() { return (int)(threadIdx.x % WARP); }
DEVICE int warp_of_block() { return (int)(threadIdx.x / WARP); }

DEVICE uint32_t warp_max(uint32_t x) {
  UNROLL for (int by = WARP / 2; by > 0; by /= 2) {
    const uint32_t other = __shfl_xor_sync(ALL_LANES, x, by);
    x = other > x ? other : x;
  }
  return x;
}

// The sum of all lanes' integers, in each of them.
DEVICE uint64_t warp_sum(uint64_t x) {
  UNROLL for (int by = WARP / 2; by > 0; by /= 2) x += __shfl_xor_sync(ALL_LANES, x, by);
  return x;
}

// The sum of N neighbouring lanes' integers, in each of them.
template <int N>
DEVICE int32_t sum_of(int32_t x) {
  UNROLL for (int by = 1; by < N; by *= 2) x += __shfl_xor_sync(ALL_LANES, x, by);
  return x;
}

// The tree of docs/arithmetic.md over lanes that lie apart by powers of two, from FROM to TO: lane l and l + FROM, and so
// on down to l + TO; in each of them.
template <int FROM, int TO = 1>
DEVICE float tree_of(float x) {
  UNROLL for (int by = FROM; by >= TO; by /= 2) x = x + __shfl_xor_sync(ALL_LANES, x, by);
  return x;
}

// Over sixteen lanes: l + 8, l + 4, l + 2, l + 1.
DEVICE float tree_of_sixteen(float x) { return tree_of<8>(x); }
