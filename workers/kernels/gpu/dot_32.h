// Products with weights in blocks of 32 (docs/arithmetic.md, 'Dot products with quantised weights').
//
// A warp takes thirty-two neighbouring blocks of a row at a time, a lane one of them: its integers need nobody else. Block
// b belongs to lane b mod 8 of the arithmetic, so the lanes t, t + 8, t + 16, t + 24 hold four blocks that one chain of
// fused multiply-adds takes in order. They hand their integers round, each receives all four blocks of its share of the
// entries, and goes on with those alone.

#pragma once

#include "linear.h"
#include "memory.h"
#include "packed.h"

struct Q8_0 {
  static constexpr int BLOCK_BYTES = 34, ALIGNMENT = 2;
  static constexpr bool HAS_MINIMUM = false;
  static DEVICE float scale(const Bytes& block) { return block.number(0); }
  static DEVICE float minimum(const Bytes&) { return 0.0f; }
  static DEVICE void weights(const Bytes& block, uint32_t* w) { block.words<2, 8>(2, w); }
};

// Thirty-two nibbles of sixteen bytes: the low halves first.
template <int ALIGNMENT>
DEVICE void nibbles(const Bytes& block, int place, uint32_t* w) {
  uint32_t packed[4];
  block.words<ALIGNMENT, 4>(place, packed);
  UNROLL for (int i = 0; i < 4; ++i) {
    w[i] = low_nibbles(packed[i]);
    w[4 + i] = high_nibbles(packed[i]);
  }
}

// Thirty-two fifth bits, put above their nibbles.
DEVICE void fifth_bits(uint32_t bits, uint32_t* w) {
  UNROLL for (int i = 0; i < 8; ++i) w[i] |= bit_each(bits >> 4 * i) << 4;
}

struct Q4_0 {
  static constexpr int BLOCK_BYTES = 18, ALIGNMENT = 2;
  static constexpr bool HAS_MINIMUM = false;
  static DEVICE float scale(const Bytes& block) { return block.number(0); }
  static DEVICE float minimum(const Bytes&) { return 0.0f; }
  static DEVICE void weights(const Bytes& block, uint32_t* w) {
    nibbles<2>(block, 2, w);
    UNROLL for (int i = 0; i < 8; ++i) w[i] = minus_each(w[i], 0x08080808u);
  }
};

struct Q4_1 {
  static constexpr int BLOCK_BYTES = 20, ALIGNMENT = 4;
  static constexpr bool HAS_MINIMUM = true;
  static DEVICE float scale(const Bytes& block) { return block.number(0); }
  static DEVICE float minimum(const Bytes& block) { return block.number(2); }
  static DEVICE void weights(const Bytes& block, uint32_t* w) { nibbles<4>(block, 4, w); }
};

struct Q5_0 {
  static constexpr int BLOCK_BYTES = 22, ALIGNMENT = 2;
  static constexpr bool HAS_MINIMUM = false;
  static DEVICE float scale(const Bytes& block) { return block.number(0); }
  static DEVICE float minimum(const Bytes&) { return 0.0f; }
  static DEVICE void weights(const Bytes& block, uint32_t* w) {
    nibbles<2>(block, 6, w);
    // Minus 16, so without the fifth bit all above the fourth are set.
    const uint32_t absent = ~block.word<2>(2);
    UNROLL for (int i = 0; i < 8; ++i) w[i] |= bit_each(absent >> 4 * i) * 0xf0u;
  }
};

struct Q5_1 {
  static constexpr int BLOCK_BYTES = 24, ALIGNMENT = 8;
  static constexpr bool HAS_MINIMUM = true;
  static DEVICE float scale(const Bytes& block) { return block.number(0); }
  static DEVICE float minimum(const Bytes& block) { return block.number(2); }
  static DEVICE void weights(const Bytes& block, uint32_t* w) {
    nibbles<8>(block, 8, w);
    fifth_bits(block.word<4>(4), w);
  }
};

struct IQ4_NL {
  static constexpr int BLOCK_BYTES = 18, ALIGNMENT = 2;
  static constexpr bool HAS_MINIMUM = false;
  static DEVICE float scale(const Bytes& block) { return block.number(0); }
  static DEVICE float minimum(const Bytes&) { return 0.0f; }
  static DEVICE void weights(const Bytes& block, uint32_t* w) {
    uint32_t packed[4];
    block.words<2, 4>(2, packed);
    UNROLL for (int i = 0; i < 4; ++i) look_up(iq4_table(), packed[i], w + i, w + 4 + i);
  }
};

struct MXFP4 {
  static constexpr int BLOCK_BYTES = 17, ALIGNMENT = 1;
  static constexpr bool HAS_MINIMUM = false;
  // 2^(e - 128): the table's values are doubled.
  static DEVICE float scale(const Bytes& block) {
    const uint32_t e = block.byte(0);
    return as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
  }
  static DEVICE float minimum(const Bytes&) { return 0.0f; }
  static DEVICE void weights(const Bytes& block, uint32_t* w) {
    uint32_t packed[4];
    block.words<1, 4>(1, packed);
    UNROLL for (int i = 0; i < 4; ++i) look_up(mxfp4_table(), packed[i], w + i, w + 4 + i);
  }
};

// Lane c of a four (lanes t + 8 c) has value[r] for each r, and gets value[c] of lane k as value[k].
DEVICE void transpose_four(int32_t* value) {
  const bool upper = lane_of_warp() & 16, odd = lane_of_warp() & 8;
  UNROLL for (int i = 0; i < 2; ++i) {
    const int32_t got = __shfl_xor_sync(ALL_LANES, upper ? value[i] : value[i + 2], 16);
    value[i] = upper ? got : value[i];
    value[i + 2] = upper ? value[i + 2] : got;
  }
  UNROLL for (int i = 0; i < 4; i += 2) {
    const int32_t got = __shfl_xor_sync(ALL_LANES, odd ? value[i] : value[i + 1], 8);
    value[i] = odd ? got : value[i];
    value[i + 1] = odd ? value[i + 1] : got;
  }
}

constexpr int BLOCKS_32 = WARP;

template <class Type>
using Stretch32 = Stretch<BLOCKS_32 * Type::BLOCK_BYTES, Type::ALIGNMENT>;

// R entries (1, 4 or 8), of which `count` count, times N rows of weights from `row` on. `memory`: shared, N stretches.
template <class Type, int R, int N>
DEVICE void dot_32(const LinearArgs& a, const Group& group, int first, int count, int row, uint4* memory) {
  constexpr int BYTES = Type::BLOCK_BYTES, OWN = R > 4 ? 2 : 1;
  constexpr bool EARLY = fetches_early(R);
  const int lane = lane_of_warp(), chain = lane % 8, share = R == 1 ? 0 : lane / 8;
  const int blocks = (int)(a.columns / 32);
  const int rows_out = (int)a.rows_out;
  const uint8_t* matrix = a.matrices[group.slot];
  uint32_t q_at[R];
  UNROLL for (int r = 0; r < R; ++r) {
    q_at[r] = (uint32_t)row_of_entry(a, first + (r < count ? r : 0)) * (uint32_t)a.columns;
  }
  uint32_t scales_at[OWN];
  UNROLL for (int o = 0; o < OWN; ++o) {
    const int r = share + 4 * o;
    scales_at[o] = (uint32_t)row_of_entry(a, first + (r < count ? r : 0)) * (uint32_t)blocks;
  }
  const uint8_t* weights[N];
  float acc[N][OWN];
  UNROLL for (int n = 0; n < N; ++n) {
    weights[n] = matrix + (row + n < rows_out ? row + n : rows_out - 1) * a.row_bytes;
    UNROLL for (int o = 0; o < OWN; ++o) acc[n][o] = 0.0f;
  }
  Stretch32<Type> stretch[N];
  const auto fetch = [&](int block) {
    const int left = blocks - block;
    UNROLL for (int n = 0; n < N; ++n) {
      stretch[n].fetch(weights[n] + block * BYTES, (left < BLOCKS_32 ? left : BLOCKS_32) * BYTES);
    }
  };
  if (EARLY) fetch(0);
  for (int b0 = 0; b0 < blocks; b0 += BLOCKS_32) {
    if (!EARLY) fetch(b0);
    Bytes held[N];
    __syncwarp();
    UNROLL for (int n = 0; n < N; ++n) {
      uint4* to = memory + n * Stretch32<Type>::PIECES;
      stretch[n].put(to);
      held[n] = {to, Stretch32<Type>::offset(weights[n] + b0 * BYTES)};
    }
    __syncwarp();
    if (EARLY && b0 + BLOCKS_32 < blocks) fetch(b0 + BLOCKS_32);

    // A lane beyond the row's end computes its last block, which nobody adds.
    const int mine = b0 + lane < blocks ? lane : blocks - 1 - b0;
    uint32_t w[N][8];
    UNROLL for (int n = 0; n < N; ++n) Type::weights(held[n].from(mine * BYTES), w[n]);
    int32_t products[N][R] = {};
    UNROLL for (int r = 0; r < R; ++r) {
      const uint4* q = (const uint4*)(a.q + q_at[r] + (uint32_t)(b0 + mine) * 32u);
      UNROLL for (int i = 0; i < 2; ++i) {
        const uint4 x = kept(q + i);
        UNROLL for (int n = 0; n < N; ++n) {
          int32_t sum = products[n][r];
          sum = __dp4a((int)w[n][4 * i], (int)x.x, sum);
          sum = __dp4a((int)w[n][4 * i + 1], (int)x.y, sum);
          sum = __dp4a((int)w[n][4 * i + 2], (int)x.z, sum);
          sum = __dp4a((int)w[n][4 * i + 3], (int)x.w, sum);
          products[n][r] = sum;
        }
      }
    }
    UNROLL for (int n = 0; n < N; ++n) {
      if constexpr (R > 1) {
        UNROLL for (int o = 0; o < OWN; ++o) transpose_four(products[n] + 4 * o);
      }
    }
    UNROLL for (int k = 0; k < 4; ++k) {
      int32_t of_block[N][OWN];
      UNROLL for (int n = 0; n < N; ++n) {
        UNROLL for (int o = 0; o < OWN; ++o) {
          if constexpr (R > 1) {
            of_block[n][o] = products[n][4 * o + k];
          } else {
            of_block[n][o] = __shfl_sync(ALL_LANES, products[n][0], chain + 8 * k);
          }
        }
      }
      const int in_stretch = chain + 8 * k, b = b0 + in_stretch;
      if (b < blocks) {
        float scale[N], minimum[N];
        UNROLL for (int n = 0; n < N; ++n) {
          scale[n] = Type::scale(held[n].from(in_stretch * BYTES));
          minimum[n] = Type::minimum(held[n].from(in_stretch * BYTES));
        }
        UNROLL for (int o = 0; o < OWN; ++o) {
          const float of_row = kept(a.scales + scales_at[o] + (uint32_t)b);
          float q_sum = 0.0f;
          if (Type::HAS_MINIMUM) {
            const uint32_t two = kept((const uint32_t*)a.sums + scales_at[o] + (uint32_t)b);
            q_sum = (float)((int32_t)(int16_t)(uint16_t)two + (int32_t)(int16_t)(uint16_t)(two >> 16));
          }
          UNROLL for (int n = 0; n < N; ++n) {
            acc[n][o] = fma_rn(scale[n] * of_row, (float)of_block[n][o], acc[n][o]);
            if (Type::HAS_MINIMUM) acc[n][o] = fma_rn(minimum[n] * of_row, q_sum, acc[n][o]);
          }
        }
      }
    }
  }
  UNROLL for (int n = 0; n < N; ++n) {
    UNROLL for (int o = 0; o < OWN; ++o) {
      const float sum = tree_of<4>(acc[n][o]);
      const int r = share + 4 * o;
      if (chain == 0 && r < count && r < R && (R > 1 || lane == 0) && row + n < rows_out) {
        a.out[(first + r) * a.out_stride + row + n] = sum;
      }
    }
  }
}

template <class Type>
struct Dot32 {
  static constexpr int ROWS = 1, LEAST = 4, PIECES = Stretch32<Type>::PIECES;
  template <int R, int N>
  static DEVICE void dot(const LinearArgs& a, const Group& group, int first, int count, int row, uint4* memory) {
    dot_32<Type, R, N>(a, group, first, count, row, memory);
  }
};
