// Sums of expert outputs as integers on each row's grid (docs/arithmetic.md, 'Experts').

#pragma once

#include "warp.h"

struct AddOnGridArgs {
  const float* y;                  // [entries, hidden]: expert outputs
  const int32_t* places;           // [rows, top_k]: the entry of each, -1 for none
  const float* weights;            // [rows, top_k]
  const int32_t* scale_exponents;  // [rows]: e of each row's grid of step 2^e
  int32_t* out;                    // [rows, hidden]
  uint8_t* flags;                  // [rows]: 1 where an output left the grid or was not finite
  int64_t rows, hidden, top_k;
  float largest;                   // magnitude of one output in steps: the largest float32 that counts as on the grid
  int32_t adds;                    // whether `out` has a sum already, which this one is added to
};

// 2^exponent for -126 to 127.
DEVICE float power_of_two(int exponent) { return as_float((uint32_t)(exponent + 127) << 23); }

// rint(fl(weight * y) * 2^-e), without float64, of which many cards do 1 where they do 64 of float32. Scaling by two powers
// of two rounds nothing that counts: what becomes so small that bits are lost is less than half a step either way, and what
// becomes infinite is beyond the grid. So it is for any exponent beyond 252 too.
DEVICE float grid_steps(float product, float first, float second) { return product * first * second; }

// A thread has a column of a row, and adds up the row's experts, which lie a row of y each: neighbours read neighbours, and
// nothing is added by two threads. y is read once, 1/500 of what the experts' weights took.
KERNEL add_on_grid(const AddOnGridArgs a) {
  const int64_t column = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (column >= a.hidden) return;
  int exponent = -a.scale_exponents[row];
  exponent = exponent < -252 ? -252 : exponent > 252 ? 252 : exponent;
  const int half = exponent / 2;
  const float first = power_of_two(half), second = power_of_two(exponent - half);
  int32_t sum = a.adds ? a.out[row * a.hidden + column] : 0;
  bool off = false;
  for (int64_t j = 0; j < a.top_k; ++j) {
    const int32_t entry = a.places[row * a.top_k + j];
    if (entry < 0) continue;
    const float product = a.weights[row * a.top_k + j] * a.y[entry * a.hidden + column];
    const float steps = grid_steps(product, first, second);
    const bool fits = (steps < 0 ? -steps : steps) <= a.largest;  // false for NaN
    sum += fits ? (int32_t)round_even(steps) : 0;
    off = off || !fits;
  }
  a.out[row * a.hidden + column] = sum;
  if (off) a.flags[row] = 1;
}
