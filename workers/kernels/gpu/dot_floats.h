// Products with weights in floats: docs/arithmetic.md, 'Dot products without rounding of activations'.
//
// Half a warp takes a row of weights, N rows in turn, and lane l of the sixteen is lane l of the arithmetic. Neighbours in
// a lane lie sixteen weights apart, so 512 bytes of each row go through shared memory: the card's memory gives them in
// pieces of sixteen bytes, and a lane finds its own.

#pragma once

#include "linear.h"
#include "memory.h"

struct Float32 {
  using Stored = uint32_t;
  static constexpr bool HAS_SCALES = false;
  static DEVICE float widen(Stored w) { return as_float(w); }
};
struct Bfloat16 {
  using Stored = uint16_t;
  static constexpr bool HAS_SCALES = false;
  static DEVICE float widen(Stored w) { return widen_bfloat16(w); }
};
struct Float16 {
  using Stored = uint16_t;
  static constexpr bool HAS_SCALES = false;
  static DEVICE float widen(Stored w) { return widen_half(w); }
};
// Times the scale of its square.
struct Fp8E4m3 {
  using Stored = uint8_t;
  static constexpr bool HAS_SCALES = true;
  static DEVICE float widen(Stored w) {
    const uint32_t magnitude = w & 0x7f, sign = (uint32_t)(w & 0x80) << 24;
    const uint32_t small = as_bits((float)(int32_t)magnitude * 0x1p-9f);
    const uint32_t normal = magnitude == 0x7f ? 0x7fc00000u : (magnitude << 20) + (120u << 23);
    return as_float((magnitude < 8 ? small : normal) | sign);
  }
};

constexpr int SQUARE = 128;
constexpr int HALF_WARP = WARP / 2;
constexpr int STRETCH_BYTES = 512;

// A stretch of 512 bytes that half a warp copies.
struct HalfStretch {
  static constexpr int PIECES = STRETCH_BYTES / 16 + 1, EACH = (PIECES + HALF_WARP - 1) / HALF_WARP;
  uint4 pieces[EACH];

  DEVICE void fetch(const uint8_t* from, int bytes) {
    const int before = (int)((uint64_t)from & 15), count = (before + bytes + 15) / 16;
    UNROLL for (int i = 0; i < EACH; ++i) {
      const int piece = lane_of_warp() % HALF_WARP + i * HALF_WARP;
      if (piece < count) pieces[i] = passing(from - before + piece * 16);
    }
  }
  DEVICE void put(uint4* to) const {
    UNROLL for (int i = 0; i < EACH; ++i) {
      const int piece = lane_of_warp() % HALF_WARP + i * HALF_WARP;
      if (piece < PIECES) to[piece] = pieces[i];
    }
  }
};

// R entries, of which `count` count, times 2 N rows of weights from `row` on. `memory`: shared, PIECES for each row.
template <class Type, int R, int N>
DEVICE void dot_floats(const LinearArgs& a, const Group& group, int first, int count, int row, uint4* memory) {
  using Stored = typename Type::Stored;
  constexpr int SPAN = STRETCH_BYTES / (int)sizeof(Stored);
  constexpr int UNIT = SPAN < SQUARE ? SPAN : SQUARE;
  constexpr bool EARLY = fetches_early(R);
  const int lane = lane_of_warp() % HALF_WARP, half = lane_of_warp() / HALF_WARP, columns = (int)a.columns;
  const uint8_t* matrix = a.matrices[group.slot];
  uint32_t x_at[R];
  UNROLL for (int r = 0; r < R; ++r) {
    x_at[r] = (uint32_t)row_of_entry(a, first + (r < count ? r : 0)) * (uint32_t)columns + lane;
  }
  const uint8_t* weights[N];
  const float* square_scales[N];
  UNROLL for (int n = 0; n < N; ++n) {
    int mine = row + 2 * n + half;
    if (mine >= (int)a.rows_out) mine = (int)a.rows_out - 1;
    weights[n] = matrix + mine * a.row_bytes;
    square_scales[n] = nullptr;
    if (Type::HAS_SCALES) {
      square_scales[n] = a.square_scales[group.slot] + mine / SQUARE * ceil_div(a.columns, SQUARE);
    }
  }
  float acc[N][R];
  UNROLL for (int n = 0; n < N; ++n) {
    UNROLL for (int r = 0; r < R; ++r) acc[n][r] = 0.0f;
  }
  HalfStretch stretch[N];
  const auto fetch = [&](int k) {
    const int left = columns - k;
    UNROLL for (int n = 0; n < N; ++n) {
      stretch[n].fetch(weights[n] + k * (int64_t)sizeof(Stored), (left < SPAN ? left : SPAN) * (int)sizeof(Stored));
    }
  };
  if (EARLY) fetch(0);
  for (int k0 = 0; k0 < columns; k0 += SPAN) {
    if (!EARLY) fetch(k0);
    const Stored* held[N];
    __syncwarp();
    UNROLL for (int n = 0; n < N; ++n) {
      uint4* to = memory + (2 * n + half) * HalfStretch::PIECES;
      stretch[n].put(to);
      const int before = (int)((uint64_t)(weights[n] + k0 * (int64_t)sizeof(Stored)) & 15);
      held[n] = (const Stored*)((const uint8_t*)to + before) + lane;
    }
    __syncwarp();
    if (EARLY && k0 + SPAN < columns) fetch(k0 + SPAN);
    for (int part = 0; part < SPAN && k0 + part < columns; part += UNIT) {
      float scale[N];
      UNROLL for (int n = 0; n < N; ++n) {
        scale[n] = Type::HAS_SCALES ? kept(square_scales[n] + (k0 + part) / SQUARE) : 1.0f;
      }
      const int left = columns - (k0 + part), steps = ((left < UNIT ? left : UNIT) + 15) / 16;
#pragma unroll 4
      for (int i = 0; i < steps; ++i) {
        const int in_span = part + i * 16, k = k0 + in_span;
        const bool there = k + lane < columns;
        float w[N];
        UNROLL for (int n = 0; n < N; ++n) {
          w[n] = Type::widen(there ? held[n][in_span] : (Stored)0);
          if (Type::HAS_SCALES) w[n] = scale[n] * w[n];
        }
        UNROLL for (int r = 0; r < R; ++r) {
          const float x = there ? kept(a.x + x_at[r] + (uint32_t)k) : 0.0f;
          UNROLL for (int n = 0; n < N; ++n) acc[n][r] = fma_rn(w[n], x, acc[n][r]);
        }
      }
    }
  }
  UNROLL for (int n = 0; n < N; ++n) {
    const int mine = row + 2 * n + half;
    UNROLL for (int r = 0; r < R; ++r) {
      const float sum = tree_of_sixteen(acc[n][r]);
      if (lane == 0 && r < count && mine < a.rows_out) a.out[(first + r) * a.out_stride + mine] = sum;
    }
  }
}

template <class Type>
struct DotFloats {
  static constexpr int ROWS = 2, LEAST = 2, PIECES = 2 * HalfStretch::PIECES;
  template <int R, int N>
  static DEVICE void dot(const LinearArgs& a, const Group& group, int first, int count, int row, uint4* memory) {
    dot_floats<Type, R, N>(a, group, first, count, row, memory);
  }
};
