// The largest of many numbers and its place, ties to the lowest place.

#pragma once

#include "warp.h"

// A number and its place as one integer: the larger number is the larger integer, and of equal ones, which -0 and 0 are,
// the one with the lower place. What is not a number is larger than any.
DEVICE uint64_t ordered(float x, uint32_t place) {
  const uint32_t bits = as_bits(x + 0.0f);
  const uint32_t key = x != x ? 0xffffffffu : bits >> 31 ? ~bits : bits | 0x80000000u;
  return (uint64_t)key << 32 | (0xffffffffu - place);
}
DEVICE int32_t place_of(uint64_t key) { return (int32_t)(0xffffffffu - (uint32_t)key); }
// Whether the number was finite.
DEVICE bool finite_key(uint64_t key) {
  const uint32_t high = (uint32_t)(key >> 32);
  return high > 0x007fffffu && high < 0xff800000u;
}

DEVICE uint64_t warp_largest(uint64_t x) {
  UNROLL for (int by = WARP / 2; by > 0; by /= 2) {
    const uint64_t other = __shfl_xor_sync(ALL_LANES, x, by);
    x = other > x ? other : x;
  }
  return x;
}
