// What lies between an expert's two halves (workers/kernels/ffn.h): act(gate) * up, and its rounding.

#pragma once

#include "elementwise.h"
#include "rounding.h"

struct SwigluArgs {
  const float *gate, *up;      // [rows, stride], of which `columns` count
  const int32_t* num_rows;     // how many rows there are; null: `rows`
  float* x;                    // [rows, columns]: act(gate) * up; may be null where q is wanted
  int8_t* q;                   // [rows, columns], and below: the same rounded, as RoundRowsArgs has it
  float* scales;               // [rows, columns / block]
  int16_t* sums;               // [rows, columns / 16]
  int64_t rows, columns, stride;
  float limit;                 // of SwiGLU's clamp, 0 for none
};

DEVICE bool is_row(const SwigluArgs& a, int64_t row) { return row < (a.num_rows == nullptr ? a.rows : *a.num_rows); }
DEVICE float bound_of(const SwigluArgs& a) { return a.limit > 0.0f ? a.limit : infinite(); }

// A warp takes a block: thread blocks in x over a row's blocks, in y over rows.
template <int BLOCK>
DEVICE void swiglu_round(const SwigluArgs& a) {
  constexpr int EACH = BLOCK / WARP;
  const int64_t blocks = a.columns / BLOCK, block = (int64_t)blockIdx.x * (blockDim.x / WARP) + warp_of_block();
  if (block >= blocks) return;
  const float limit = bound_of(a);
  const int64_t column = block * BLOCK + lane_of_warp() * EACH;
  for (int64_t row = blockIdx.y; is_row(a, row); row += gridDim.y) {
    float values[EACH];
    UNROLL for (int i = 0; i < EACH; ++i) {
      values[i] = swiglu_one(a.gate[row * a.stride + column + i], a.up[row * a.stride + column + i], limit);
    }
    if (a.x != nullptr) {
      UNROLL for (int i = 0; i < EACH; ++i) a.x[row * a.columns + column + i] = values[i];
    }
    int8_t q[EACH];
    const float scale = round_block<BLOCK>(values, q);
    const int64_t at = row * blocks + block;
    store_block<BLOCK>(q, scale, a.q + at * BLOCK, a.scales + at, a.sums + at * (BLOCK / 16));
  }
}

KERNEL swiglu_round_256(const SwigluArgs a) { swiglu_round<256>(a); }
KERNEL swiglu_round_32(const SwigluArgs a) { swiglu_round<32>(a); }

// A thread takes a number: thread blocks in x over a row's numbers, in y over rows.
KERNEL plain_swiglu(const SwigluArgs a) {
  const int64_t column = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  const float limit = bound_of(a);
  for (int64_t row = blockIdx.y; is_row(a, row); row += gridDim.y) {
    if (column < a.columns) {
      a.x[row * a.columns + column] = swiglu_one(a.gate[row * a.stride + column], a.up[row * a.stride + column], limit);
    }
  }
}
