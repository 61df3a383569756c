// Activations rounded to 8 bits in blocks (docs/arithmetic.md, 'Rounding of activations').

#pragma once

#include "warp.h"

struct RoundRowsArgs {
  const float* x;   // [rows, columns]
  int8_t* q;        // [rows, columns]
  float* scales;    // [rows, columns / block]
  int16_t* sums;    // [rows, columns / 16]: of sixteen neighbours of q
  int64_t blocks;   // rows * columns / block
};

// A warp rounds `BLOCK` values at x, BLOCK / 32 a lane, and gives each lane their scale. Values lie side by side: lane l
// has those from l * BLOCK / 32 on.
template <int BLOCK>
DEVICE float round_block(const float* values, int8_t* q) {
  constexpr int EACH = BLOCK / WARP;
  uint32_t most = 0;
  UNROLL for (int i = 0; i < EACH; ++i) {
    const uint32_t magnitude = as_bits(values[i]) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  most = warp_max(most);
  const float scale = divide(as_float(most), 127.0f);
  const bool finite = most < 0x7f800000, zero = scale < 0x1p-126f;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  UNROLL for (int i = 0; i < EACH; ++i) {
    q[i] = !finite || zero ? (int8_t)0 : (int8_t)(int32_t)((divide(values[i], scale) + magic) - magic);
  }
  return !finite ? not_a_number() : (zero ? 0.0f : scale);
}

// Writes a rounded block: q, its scale, and the sums of sixteen neighbours.
template <int BLOCK>
DEVICE void store_block(const int8_t* q, float scale, int8_t* to, float* to_scale, int16_t* to_sums) {
  constexpr int EACH = BLOCK / WARP;
  const int lane = lane_of_warp();
  int sum = 0;
  UNROLL for (int i = 0; i < EACH; ++i) {
    sum += q[i];
    to[lane * EACH + i] = q[i];
  }
  constexpr int SHARE = 16 / EACH;  // lanes that have sixteen neighbours
  UNROLL for (int by = 1; by < SHARE; by *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by);
  if (lane % SHARE == 0) to_sums[lane / SHARE] = (int16_t)sum;
  if (lane == 0) *to_scale = scale;
}

template <int BLOCK>
DEVICE void round_rows(const RoundRowsArgs& a) {
  constexpr int EACH = BLOCK / WARP;
  const int64_t block = (int64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (block >= a.blocks) return;
  float values[EACH];
  UNROLL for (int i = 0; i < EACH; ++i) values[i] = a.x[block * BLOCK + lane_of_warp() * EACH + i];
  int8_t q[EACH];
  const float scale = round_block<BLOCK>(values, q);
  store_block<BLOCK>(q, scale, a.q + block * BLOCK, a.scales + block, a.sums + block * (BLOCK / 16));
}

KERNEL round_rows_256(const RoundRowsArgs a) { round_rows<256>(a); }
KERNEL round_rows_32(const RoundRowsArgs a) { round_rows<32>(a); }
