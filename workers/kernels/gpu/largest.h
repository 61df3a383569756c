// The largest of many numbers and its place, ties to the lowest place.

#pragma once

#include "warp.h"

#include "order.h"

// A number and its place as one integer: the larger number is the larger integer, and of equal ones the one with the lower
// place.
DEVICE uint64_t key_of(uint32_t order, uint32_t place) { return (uint64_t)order << 32 | (0xffffffffu - place); }
DEVICE uint64_t ordered(float x, uint32_t place) { return key_of(order_of(x), place); }
DEVICE int32_t place_of(uint64_t key) { return (int32_t)(0xffffffffu - (uint32_t)key); }

DEVICE uint64_t warp_largest(uint64_t x) {
  UNROLL for (int by = WARP / 2; by > 0; by /= 2) {
    const uint64_t other = __shfl_xor_sync(ALL_LANES, x, by);
    x = other > x ? other : x;
  }
  return x;
}
