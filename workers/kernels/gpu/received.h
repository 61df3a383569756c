// Rows as a host sends them, made into what the products take.

#pragma once

#include "warp.h"

struct WidenArgs {
  const uint16_t* from;  // [count]: the bits of bfloat16
  float* to;
  int64_t count;
};

KERNEL widen_rows(const WidenArgs a) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < a.count) a.to[i] = widen_bfloat16(a.from[i]);
}

struct SumSixteensArgs {
  const int8_t* q;  // [16 * count], 16-byte aligned
  int16_t* sums;    // [count]: of sixteen neighbours
  int64_t count;
};

KERNEL sum_sixteens(const SumSixteensArgs a) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.count) return;
  int sum = 0;
  for (int word = 0; word < 4; ++word) sum = __dp4a(((const int*)a.q)[4 * i + word], 0x01010101, sum);
  a.sums[i] = (int16_t)sum;
}
