// What lies between two matrices of the residual's path: sums, norms, grids and the rounding to 8 bits, in one launch.

#pragma once

#include "rounding.h"

// Rows rounded in blocks, as RoundRowsArgs has them; null where nobody wants them.
struct RoundedOut {
  int8_t* q;       // [rows, columns]
  float* scales;   // [rows, columns / block]
  int16_t* sums;   // [rows, columns / 16]
};

struct NormRowsArgs {
  const int32_t* grid_sums[3];    // [rows, columns] each or null: experts' sums on the rows' grids
  const int32_t* grid_exponents;  // [rows]: of these grids
  const float* terms[2];          // [rows, columns] each or null
  float* total;                   // [rows, columns]: ((sums on the grid) + terms[0]) + terms[1]; null where it is terms[0]
  int32_t* exponents;             // [rows] or null: of the grid for what is added to the total next
  int32_t* broken;                // [rows] or null: 1 where the total is not finite, else 0
  const float* weight;            // [columns]; null: nothing below is wanted
  float* normed;                  // [rows, normed_stride] or null
  float* narrowed;                // [rows, columns] or null: the normed rows, rounded to bfloat16
  RoundedOut by_256, by_32;       // of `narrowed` where it is wanted, else of the normed rows
  int64_t columns, normed_stride;
  float eps, weight_offset;
  int32_t exponent_offset, least_exponent, most_exponent;
};

namespace norms {

constexpr int STRETCH = 4096;

DEVICE bool is_finite(float x) { return (as_bits(x) & 0x7fffffff) < 0x7f800000; }

// float32(steps) * 2^exponent, rounded once. Steps as float32 have a magnitude of 1 at least, so that with a normal power
// of two nothing is rounded a second time; others go through float64, of which many cards do 1 where they do 64 of float32.
DEVICE float from_grid(int32_t steps, int32_t exponent) {
  if (exponent >= -126 && exponent <= 127) return (float)steps * as_float((uint32_t)(exponent + 127) << 23);
#ifdef __CUDACC_RTC__
  const double unit = __longlong_as_double((int64_t)(1023 + exponent) << 52);
#else
  const double unit = __builtin_bit_cast(double, (int64_t)(1023 + exponent) << 52);
#endif
  return (float)((double)steps * unit);
}

DEVICE float term(const NormRowsArgs& a, int64_t at, int32_t grid_exponent) {
  float value = 0.0f;
  if (a.grid_sums[0]) {
    uint32_t steps = (uint32_t)a.grid_sums[0][at];
    if (a.grid_sums[1]) steps += (uint32_t)a.grid_sums[1][at];
    if (a.grid_sums[2]) steps += (uint32_t)a.grid_sums[2][at];
    value = from_grid((int32_t)steps, grid_exponent);
    if (a.terms[0]) value = value + a.terms[0][at];
  } else {
    value = a.terms[0][at];
  }
  return a.terms[1] ? value + a.terms[1][at] : value;
}

// One block a row; gives the sum of squares, in all threads. The order leaves sixteen chains of columns / 16 multiply-adds,
// 1,024 cycles at 4,096 columns, which is the floor of a launch for few rows; so the row goes to shared memory first,
// loaded by all threads, and the chains find their numbers there.
DEVICE float sum_row(const NormRowsArgs& a, int64_t row, bool* row_is_broken) {
  __shared__ float stretch[STRETCH];
  __shared__ float found;
  __shared__ int32_t broken;
  const int32_t grid_exponent = a.grid_sums[0] ? a.grid_exponents[row] : 0;
  if (threadIdx.x == 0) broken = 0;
  const int lane = lane_of_warp() % 16;
  float sum = 0.0f;
  bool finite = true;
  for (int64_t start = 0; start < a.columns; start += STRETCH) {
    const int count = a.columns - start < STRETCH ? (int)(a.columns - start) : STRETCH;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const int64_t at = row * a.columns + start + i;
      const float value = term(a, at, grid_exponent);
      if (a.total) a.total[at] = value;
      finite = finite && is_finite(value);
      stretch[i] = value;
    }
    __syncthreads();
    if (warp_of_block() > 0) continue;
    constexpr int BATCH = 16;
    int i = lane;
    for (; i + 16 * (BATCH - 1) < count; i += 16 * BATCH) {
      float x[BATCH];
      UNROLL for (int j = 0; j < BATCH; ++j) x[j] = stretch[i + 16 * j];
      UNROLL for (int j = 0; j < BATCH; ++j) sum = fma_rn(x[j], x[j], sum);
    }
    for (; i < count; i += 16) sum = fma_rn(stretch[i], stretch[i], sum);
  }
  if (!finite) broken = 1;
  if (warp_of_block() == 0) {
    sum = tree_of_sixteen(sum);
    if (threadIdx.x == 0) found = sum;
  }
  __syncthreads();
  *row_is_broken = broken != 0;
  return found;
}

template <int BLOCK, class Of>
DEVICE void round_row(const RoundedOut& to, int64_t row, int64_t columns, const Of& of) {
  constexpr int EACH = BLOCK / WARP;
  const int64_t blocks = columns / BLOCK;
  for (int64_t block = warp_of_block(); block < blocks; block += blockDim.x / WARP) {
    float values[EACH];
    UNROLL for (int i = 0; i < EACH; ++i) values[i] = of(block * BLOCK + lane_of_warp() * EACH + i);
    int8_t q[EACH];
    const float scale = round_block<BLOCK>(values, q);
    const int64_t at = row * blocks + block;
    store_block<BLOCK>(q, scale, to.q + at * BLOCK, to.scales + at, to.sums + at * (BLOCK / 16));
  }
}

}  // namespace norms

KERNEL norm_rows(const NormRowsArgs a) {
  using namespace norms;
  const int64_t row = blockIdx.x;
  bool broken;
  const float mean = divide(sum_row(a, row, &broken), (float)a.columns);
  if (threadIdx.x == 0 && a.broken) a.broken[row] = broken;
  if (threadIdx.x == 0 && a.exponents) {
    // floor(log2(rms)); a row of zeros or of subnormal size counts as -126 or -127, one that is not finite as 128.
    const int32_t exponent = (int32_t)(as_bits(square_root(mean)) >> 23 & 255) - 127 + a.exponent_offset;
    a.exponents[row] = exponent < a.least_exponent  ? a.least_exponent
                       : exponent > a.most_exponent ? a.most_exponent
                                                    : exponent;
  }
  if (!a.weight) return;
  const float inverse = divide(1.0f, square_root(mean + a.eps));
  const float* x = (a.total ? a.total : a.terms[0]) + row * a.columns;
  const bool narrow = a.narrowed != nullptr;
  const auto normed = [&](int64_t i) { return x[i] * inverse * (a.weight[i] + a.weight_offset); };
  const auto sent = [&](int64_t i) { return narrow ? widen_bfloat16(round_bfloat16(normed(i))) : normed(i); };
  if (a.normed || narrow) {
    for (int64_t i = threadIdx.x; i < a.columns; i += blockDim.x) {
      if (a.normed) a.normed[row * a.normed_stride + i] = normed(i);
      if (narrow) a.narrowed[row * a.columns + i] = sent(i);
    }
  }
  if (a.by_256.q) round_row<256>(a.by_256, row, a.columns, sent);
  if (a.by_32.q) round_row<32>(a.by_32, row, a.columns, sent);
}
