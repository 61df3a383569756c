// Products with weights in blocks of 256 (docs/arithmetic.md, 'Dot products with quantised weights').
//
// A warp takes eight neighbouring blocks of a row at a time, four lanes a block, so four lanes are one lane of the
// arithmetic. Each unpacks a quarter of its block once and multiplies it with every entry. Then the four hand their sums
// round, each keeps those of its share of the entries, and goes on with these alone.

#pragma once

#include "blocks_256.h"
#include "linear.h"

// Four neighbours have R sums each. Adds them up over the four: lane l gets those of R / 4 sums from l * R / 4 on (of the
// one at l * R / 4 where R is less than 4).
template <int R, int BY = 2>
DEVICE void share_sums(int32_t* sums) {
  if constexpr (BY > 0) {
    if constexpr (R > 1) {
      const bool upper = lane_of_warp() & BY;
      UNROLL for (int i = 0; i < R / 2; ++i) {
        const int32_t given = upper ? sums[i] : sums[i + R / 2], own = upper ? sums[i + R / 2] : sums[i];
        sums[i] = own + __shfl_xor_sync(ALL_LANES, given, BY);
      }
    } else {
      sums[0] += __shfl_xor_sync(ALL_LANES, sums[0], BY);
    }
    share_sums<(R > 1 ? R / 2 : 1), BY / 2>(sums);
  }
}

constexpr int BLOCKS_256 = WARP / 4;

template <class Type>
using Stretch256 = Stretch<BLOCKS_256 * Type::BLOCK_BYTES, Type::ALIGNMENT>;

// R entries (1, 2, 4 or 8), of which `count` count, times N rows of weights from `row` on. `memory`: shared, N stretches.
template <class Type, int R, int N>
DEVICE void dot_256(const LinearArgs& a, const Group& group, int first, int count, int row, uint4* memory) {
  constexpr int BYTES = Type::BLOCK_BYTES, OWN = R > 4 ? R / 4 : 1;
  constexpr bool EARLY = fetches_early(R);
  const int lane = lane_of_warp(), chain = lane / 4, l = lane % 4;
  const int blocks = (int)(a.columns / 256);
  const int rows_out = (int)a.rows_out;
  const uint8_t* matrix = a.matrices[group.slot];
  uint32_t q_at[R];
  UNROLL for (int r = 0; r < R; ++r) {
    q_at[r] = (uint32_t)row_of_entry(a, first + (r < count ? r : 0)) * (uint32_t)a.columns + 16u * l;
  }
  uint32_t blocks_at[OWN];
  UNROLL for (int o = 0; o < OWN; ++o) {
    const int r = l * R / 4 + o;
    blocks_at[o] = (uint32_t)row_of_entry(a, first + (r < count ? r : 0)) * (uint32_t)blocks;
  }
  const uint8_t* weights[N];
  float acc[N][OWN];
  UNROLL for (int n = 0; n < N; ++n) {
    weights[n] = matrix + (row + n < rows_out ? row + n : rows_out - 1) * a.row_bytes;
    UNROLL for (int o = 0; o < OWN; ++o) acc[n][o] = 0.0f;
  }
  Stretch256<Type> stretch[N];
  const auto fetch = [&](int block) {
    const int left = blocks - block;
    UNROLL for (int n = 0; n < N; ++n) {
      stretch[n].fetch(weights[n] + block * BYTES, (left < BLOCKS_256 ? left : BLOCKS_256) * BYTES);
    }
  };
  if (EARLY) fetch(0);
  for (int b0 = 0; b0 < blocks; b0 += BLOCKS_256) {
    if (!EARLY) fetch(b0);
    Bytes held[N];
    __syncwarp();
    // Four lanes beyond the row's end compute its last block, which nobody adds.
    const bool there = b0 + chain < blocks;
    const int b = there ? b0 + chain : blocks - 1;
    UNROLL for (int n = 0; n < N; ++n) {
      uint4* to = memory + n * Stretch256<Type>::PIECES;
      stretch[n].put(to);
      held[n] = {to, Stretch256<Type>::offset(weights[n] + b0 * BYTES) + (b - b0) * BYTES};
    }
    __syncwarp();
    if (EARLY && b0 + BLOCKS_256 < blocks) fetch(b0 + BLOCKS_256);

    int32_t products[N][R];
    UNROLL for (int n = 0; n < N; ++n) {
      UNROLL for (int r = 0; r < R; ++r) products[n][r] = 0;
    }
    // For many entries one after another: unrolled, compilers ask for all activations at once and run out of registers.
#pragma unroll(R > 2 ? 1 : 2)
    for (int c = 0; c < 4; ++c) {
      uint32_t w[N][4];
      int32_t scale[N];
      UNROLL for (int n = 0; n < N; ++n) {
        const Type block(held[n], l, a.grid);
        block.weights(c, w[n]);
        scale[n] = block.scale(c);
      }
      UNROLL for (int r = 0; r < R; ++r) {
        const uint4 x = kept((const uint4*)(a.q + q_at[r] + (uint32_t)(b * 256 + 64 * c)));
        UNROLL for (int n = 0; n < N; ++n) {
          int32_t sum = __dp4a((int)w[n][0], (int)x.x, 0);
          sum = __dp4a((int)w[n][1], (int)x.y, sum);
          sum = __dp4a((int)w[n][2], (int)x.z, sum);
          sum = __dp4a((int)w[n][3], (int)x.w, sum);
          products[n][r] += sum * scale[n];
        }
      }
    }
    UNROLL for (int n = 0; n < N; ++n) share_sums<R>(products[n]);
    if (there) {
      float d[N], minimum[N];
      uint32_t t[N][4];
      UNROLL for (int n = 0; n < N; ++n) {
        d[n] = Type::d(held[n]);
        minimum[n] = Type::minimum(held[n]);
        Type::minimums(held[n], t[n]);
      }
      UNROLL for (int o = 0; o < OWN; ++o) {
        const float of_row = kept(a.scales + blocks_at[o] + (uint32_t)b);
        int32_t minimums[N] = {};
        if constexpr (Type::HAS_MINIMUM) {
          UNROLL for (int i = 0; i < 2; ++i) {
            const uint4 sums = kept((const uint4*)a.sums + 2 * (blocks_at[o] + (uint32_t)b) + i);
            UNROLL for (int n = 0; n < N; ++n) {
              minimums[n] = __dp2a_lo((int)sums.x, (int)t[n][2 * i], minimums[n]);
              minimums[n] = __dp2a_hi((int)sums.y, (int)t[n][2 * i], minimums[n]);
              minimums[n] = __dp2a_lo((int)sums.z, (int)t[n][2 * i + 1], minimums[n]);
              minimums[n] = __dp2a_hi((int)sums.w, (int)t[n][2 * i + 1], minimums[n]);
            }
          }
        }
        UNROLL for (int n = 0; n < N; ++n) {
          acc[n][o] = fma_rn(d[n] * of_row, (float)products[n][o], acc[n][o]);
          if (Type::HAS_MINIMUM) acc[n][o] = fma_rn(minimum[n] * of_row, (float)minimums[n], acc[n][o]);
        }
      }
    }
  }
  UNROLL for (int n = 0; n < N; ++n) {
    UNROLL for (int o = 0; o < OWN; ++o) {
      const float sum = tree_of<16, 4>(acc[n][o]);
      const int r = l * R / 4 + o;
      const bool mine = chain == 0 && l * R % 4 == 0 && r < count;
      if (mine && row + n < rows_out) a.out[(first + r) * a.out_stride + row + n] = sum;
    }
  }
}

template <class Type>
struct Dot256 {
  static constexpr int ROWS = 1, LEAST = 2, PIECES = Stretch256<Type>::PIECES;
  template <int R, int N>
  static DEVICE void dot(const LinearArgs& a, const Group& group, int first, int count, int row, uint4* memory) {
    dot_256<Type, R, N>(a, group, first, count, row, memory);
  }
};
