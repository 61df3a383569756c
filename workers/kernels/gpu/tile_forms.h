// How four neighbouring weights of each quantised form come out of a block's bytes as 8-bit integers in one word: what
// the tensor cores multiply. The forms are workers/kernels/quantised.h's, which says what the bytes mean. A form has
//   BLOCK, BLOCK_BYTES      of the file
//   MINIMUMS                whether it has minimums
//   four(block, j, h, p)    weights 32 j + 16 h + 4 p to + 3, p below 4; in forms of 32 weights j is 0
//   scale(block)            d, and
//   minimum(block)          m, where there are minimums
// and forms of 256 weights
//   GROUP                   16 or 32: so many neighbours share an integer scale
//   SMALL                   whether a block's S is below 2^22
//   scales(block, out)      the integer scales in their order, four a word
//   minimums(block, p)      the integer minimums of sixteens 4 p to 4 p + 3, in one word
// Loops over j and h are unrolled, so what several calls have in common is loaded and computed once.

#pragma once

#include "memory.h"
#include "packed.h"

// The largest power of two, at most 16, that all rows' steps begin at: rows are whole blocks and matrices begin at
// multiples of 16 bytes.
DEVICE constexpr int alignment_of(int block_bytes) { return block_bytes % 16 == 0 ? 16 : block_bytes & -block_bytes; }

template <class T>
DEVICE T load_as(const void* at) {
#ifdef __CUDACC_RTC__
  return *(const T*)at;
#else
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
#endif
}

// A block's bytes in shared memory, which begin at a multiple of ALIGNED, and the form's grid.
template <int ALIGNED>
struct BlockBytes {
  const uint8_t* at;
  const uint8_t* grid;

  DEVICE uint32_t byte(int offset) const { return at[offset]; }
  DEVICE uint32_t half(int offset) const {
    if constexpr (ALIGNED >= 2) return load_as<uint16_t>(at + offset);
    return byte(offset) | byte(offset + 1) << 8;
  }
  // `offset` is a multiple of 4 where ALIGNED is one.
  DEVICE uint32_t word(int offset) const {
    if constexpr (ALIGNED >= 4) return load_as<uint32_t>(at + offset);
    return half(offset) | half(offset + 2) << 16;
  }
  DEVICE float number(int offset) const { return widen_half((uint16_t)half(offset)); }
  // Four of the grid, from a multiple of four on.
  DEVICE uint32_t magnitudes(uint32_t fours) const { return kept((const uint32_t*)grid + fours); }
};

// The lowest bit of each byte, and the lowest two.
constexpr uint32_t ONES = 0x01010101u, TWOS = 0x03030303u;

// N less in each byte, of bytes from 0 to 127.
template <int N>
DEVICE uint32_t minus(uint32_t four) { return minus_each(four, N * ONES); }

// Bytes 0, 0', 1, 1' and 2, 2', 3, 3' of two words.
DEVICE void interleave(uint32_t even, uint32_t odd, uint32_t* out) {
  out[0] = __byte_perm(even, odd, 0x5140);
  out[1] = __byte_perm(even, odd, 0x7362);
}

// What the low nibbles of four bytes (h = 0) or the high ones stand for.
DEVICE uint32_t looked_up(const Table& table, uint32_t nibbles, int h) {
  uint32_t low, high;
  look_up(table, nibbles, &low, &high);
  return h == 0 ? low : high;
}

// What forms of one kind of block share.
template <int BYTES, bool HAS_MINIMUMS>
struct Of32 {
  static constexpr int BLOCK = 32, BLOCK_BYTES = BYTES;
  static constexpr bool MINIMUMS = HAS_MINIMUMS;
  using Block = BlockBytes<alignment_of(BYTES)>;
  static DEVICE float scale(Block b) { return b.number(0); }
  static DEVICE float minimum(Block b) { return HAS_MINIMUMS ? b.number(2) : 0.0f; }
};

template <int BYTES, int NEIGHBOURS, bool HAS_MINIMUMS, bool IS_SMALL = false>
struct Of256 {
  static constexpr int BLOCK = 256, BLOCK_BYTES = BYTES, GROUP = NEIGHBOURS;
  static constexpr bool MINIMUMS = HAS_MINIMUMS, SMALL = IS_SMALL;
  using Block = BlockBytes<alignment_of(BYTES)>;
};

struct TileQ8_0 : Of32<34, false> {
  static DEVICE uint32_t four(Block b, int, int h, int p) { return b.word(2 + 16 * h + 4 * p); }
};

struct TileQ4_0 : Of32<18, false> {
  static DEVICE uint32_t four(Block b, int, int h, int p) { return minus<8>(low_nibbles(b.word(2 + 4 * p) >> 4 * h)); }
};

struct TileQ4_1 : Of32<20, true> {
  static DEVICE uint32_t four(Block b, int, int h, int p) { return low_nibbles(b.word(4 + 4 * p) >> 4 * h); }
};

struct TileQ5_0 : Of32<22, false> {
  static DEVICE uint32_t four(Block b, int, int h, int p) {
    return minus<16>(low_nibbles(b.word(6 + 4 * p) >> 4 * h) | bit_each(b.word(2) >> (16 * h + 4 * p)) << 4);
  }
};

struct TileQ5_1 : Of32<24, true> {
  static DEVICE uint32_t four(Block b, int, int h, int p) {
    return low_nibbles(b.word(8 + 4 * p) >> 4 * h) | bit_each(b.word(4) >> (16 * h + 4 * p)) << 4;
  }
};

struct TileIQ4_NL : Of32<18, false> {
  static DEVICE uint32_t four(Block b, int, int h, int p) {
    return looked_up(iq4_table(), b.word(2 + 4 * p), h);
  }
};

struct TileMXFP4 : Of32<17, false> {
  // 2^(e - 128): the table's values are doubled.
  static DEVICE float scale(Block b) {
    const uint32_t e = b.byte(0);
    return as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
  }
  static DEVICE uint32_t four(Block b, int, int h, int p) {
    return looked_up(mxfp4_table(), b.word(1 + 4 * p), h);
  }
};

struct TileQ2_K : Of256<84, 16, true, true> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    return b.word(16 + 32 * (j / 4) + 16 * h + 4 * p) >> j % 4 * 2 & TWOS;
  }
  static DEVICE void scales(Block b, uint32_t* out) {
    UNROLL for (int i = 0; i < 4; ++i) out[i] = low_nibbles(b.word(4 * i));
  }
  static DEVICE uint32_t minimums(Block b, int p) { return high_nibbles(b.word(4 * p)); }
  static DEVICE float scale(Block b) { return b.number(80); }
  static DEVICE float minimum(Block b) { return -b.number(82); }
};

struct TileQ3_K : Of256<110, 16, false, true> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    const uint32_t low = b.word(32 + 32 * (j / 4) + 16 * h + 4 * p) >> j % 4 * 2 & TWOS;
    return minus<4>(low | (b.word(16 * h + 4 * p) >> j & ONES) << 2);
  }
  static DEVICE void scales(Block b, uint32_t* out) {
    const uint32_t low[2] = {b.word(96), b.word(100)}, high = b.word(104);
    UNROLL for (int i = 0; i < 4; ++i) {
      out[i] = minus<32>(low_nibbles(low[i % 2] >> i / 2 * 4) | (high >> 2 * i & TWOS) << 4);
    }
  }
  static DEVICE float scale(Block b) { return b.number(108); }
};

// Scales and minimums of 6 bits, eight each, in twelve bytes from the fifth on.
template <int BYTES>
struct SixBits : Of256<BYTES, 32, true> {
  using Block = typename Of256<BYTES, 32, true>::Block;
  static DEVICE void scales(Block b, uint32_t* out) {
    const uint32_t first = b.word(4);
    out[0] = first & 0x3f3f3f3f;
    out[1] = low_nibbles(b.word(12)) | (first >> 2 & 0x30303030);
  }
  static DEVICE uint32_t minimums(Block b, int p) {
    const uint32_t first = b.word(8);
    const uint32_t four = p < 2 ? first & 0x3f3f3f3f : high_nibbles(b.word(12)) | (first >> 2 & 0x30303030);
    return __byte_perm(four, four, p % 2 == 0 ? 0x1100 : 0x3322);
  }
  static DEVICE float scale(Block b) { return b.number(0); }
  static DEVICE float minimum(Block b) { return -b.number(2); }
};

struct TileQ4_K : SixBits<144> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    return low_nibbles(b.word(16 + 32 * (j / 2) + 16 * h + 4 * p) >> j % 2 * 4);
  }
};

struct TileQ5_K : SixBits<176> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    const uint32_t low = low_nibbles(b.word(48 + 32 * (j / 2) + 16 * h + 4 * p) >> j % 2 * 4);
    return low | (b.word(16 + 16 * h + 4 * p) >> j & ONES) << 4;
  }
};

struct TileQ6_K : Of256<210, 16, false> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    const int half = j / 4, in_half = j % 4;
    const uint32_t low = low_nibbles(b.word(64 * half + in_half % 2 * 32 + 16 * h + 4 * p) >> in_half / 2 * 4);
    return minus<32>(low | (b.word(128 + 32 * half + 16 * h + 4 * p) >> in_half * 2 & TWOS) << 4);
  }
  static DEVICE void scales(Block b, uint32_t* out) {
    UNROLL for (int i = 0; i < 4; ++i) out[i] = b.word(192 + 4 * i);
  }
  static DEVICE float scale(Block b) { return b.number(208); }
};

struct TileIQ4_XS : Of256<136, 32, false> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    return looked_up(iq4_table(), b.word(8 + 16 * j + 4 * p), h);
  }
  // Two bits a scale, at every fourth bit, to the upper bits of six in every byte.
  static DEVICE uint32_t upper_bits(uint32_t twos) {
    const uint32_t apart = ((twos & 0x3333) | twos << 8) & 0x00330033;
    return ((apart | apart << 4) & TWOS) << 4;
  }
  static DEVICE void scales(Block b, uint32_t* out) {
    const uint32_t low = b.word(4), high = b.half(2);
    const uint32_t even = low_nibbles(low) | upper_bits(high), odd = high_nibbles(low) | upper_bits(high >> 2);
    interleave(minus<32>(even), minus<32>(odd), out);
  }
  static DEVICE float scale(Block b) { return b.number(0); }
};

DEVICE void odd_scales(uint32_t nibbles, uint32_t* out) {
  interleave(low_nibbles(nibbles) * 2 + ONES, high_nibbles(nibbles) * 2 + ONES, out);
}

struct TileIQ2_XXS : Of256<66, 32, false> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    const int i = 2 * h + p / 2;
    const uint32_t signs = eight_signs(b.word(6 + 8 * j) >> 7 * i & 127);
    return signed_each(b.magnitudes(2 * b.byte(2 + 8 * j + i) + p % 2), signs >> p % 2 * 4);
  }
  static DEVICE void scales(Block b, uint32_t* out) {
    UNROLL for (int i = 0; i < 2; ++i) {
      out[i] = ONES;
      UNROLL for (int k = 0; k < 4; ++k) out[i] += (b.half(8 + 8 * (4 * i + k)) >> 12) << (8 * k + 1);
    }
  }
  static DEVICE float scale(Block b) { return b.number(0) * 0.125f; }
};

struct TileIQ2_XS : Of256<74, 16, false> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    const uint32_t both = b.half(2 + 2 * (4 * j + 2 * h + p / 2));
    return signed_each(b.magnitudes(2 * (both & 511) + p % 2), eight_signs(both >> 9) >> p % 2 * 4);
  }
  static DEVICE void scales(Block b, uint32_t* out) {
    odd_scales(b.word(66), out);
    odd_scales(b.word(70), out + 2);
  }
  static DEVICE float scale(Block b) { return b.number(0) * 0.125f; }
};

struct TileIQ2_S : Of256<82, 16, false> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    const int in_four = 2 * h + p / 2, i = 4 * j + in_four;
    const uint32_t row = b.byte(2 + i) | (b.byte(66 + j) >> in_four * 2 & 3) << 8;
    return signed_each(b.magnitudes(2 * row + p % 2), b.byte(34 + i) >> p % 2 * 4);
  }
  static DEVICE void scales(Block b, uint32_t* out) {
    odd_scales(b.word(74), out);
    odd_scales(b.word(78), out + 2);
  }
  static DEVICE float scale(Block b) { return b.number(0) * 0.125f; }
};

struct TileIQ3_XXS : Of256<98, 32, false> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    const int i = 4 * h + p;
    const uint32_t signs = eight_signs(b.word(66 + 4 * j) >> i / 2 * 7 & 127);
    return signed_each(b.magnitudes(b.byte(2 + 8 * j + i)), signs >> i % 2 * 4);
  }
  static DEVICE void scales(Block b, uint32_t* out) {
    UNROLL for (int i = 0; i < 2; ++i) {
      out[i] = ONES;
      UNROLL for (int k = 0; k < 4; ++k) out[i] += (b.half(68 + 4 * (4 * i + k)) >> 12) << (8 * k + 1);
    }
  }
  static DEVICE float scale(Block b) { return b.number(0) * 0.25f; }
};

struct TileIQ3_S : Of256<110, 32, false> {
  static DEVICE uint32_t four(Block b, int j, int h, int p) {
    const int in_eight = 4 * h + p, i = 8 * j + in_eight;
    const uint32_t row = b.byte(2 + i) | (b.byte(66 + j) >> in_eight & 1) << 8;
    return signed_each(b.magnitudes(row), b.byte(74 + i / 2) >> i % 2 * 4);
  }
  static DEVICE void scales(Block b, uint32_t* out) { odd_scales(b.word(106), out); }
  static DEVICE float scale(Block b) { return b.number(0); }
};
