// How lanes find weights and scales in blocks of 256 (ggml-common.h; workers/kernels/quantised.h says it plainly).
//
// Four lanes share a block. Lane l has the sixteens l, l + 4, l + 8 and l + 12 of its weights: then the four read
// neighbouring activations, and most types keep these sixteens in bytes of one lane. Each type here has
//   BLOCK_BYTES, ALIGNMENT        of a block; of where blocks begin in memory
//   HAS_MINIMUM                   whether M of docs/arithmetic.md is wanted
//   weights(c, w), scale(c)       of sixteen l + 4 c: four words of four weights, and s
//   d(block), minimum(block), minimums(block, t)    of the whole block; t: sixteen bytes

#pragma once

#include "memory.h"
#include "packed.h"

struct NoMinimum {
  static constexpr bool HAS_MINIMUM = false;
  static DEVICE float minimum(const Bytes&) { return 0.0f; }
  static DEVICE void minimums(const Bytes&, uint32_t*) {}
};

// Q4_K and Q5_K: eight scales and eight minimums of 6 bits in twelve bytes, each for thirty-two weights.
struct Sixes {
  static constexpr bool HAS_MINIMUM = true;
  uint32_t scales[2];
  DEVICE void load_scales(const Bytes& block) {
    uint32_t p[3];
    block.words<4, 3>(4, p);
    scales[0] = p[0] & 0x3f3f3f3fu;
    scales[1] = low_nibbles(p[2]) | (p[0] >> 2 & 0x30303030u);
  }
  // Of sixteen l + 4 c, so thirty-two 2 c + l / 2.
  DEVICE int32_t scale_of(int c, int l) const { return (int32_t)((c < 2 ? scales[0] : scales[1]) >> (c % 2 * 16 + l / 2 * 8) & 63); }
  static DEVICE float d(const Bytes& block) { return block.number(0); }
  static DEVICE float minimum(const Bytes& block) { return -block.number(2); }
  static DEVICE void minimums(const Bytes& block, uint32_t* t) {
    uint32_t p[3];
    block.words<4, 3>(4, p);
    const uint32_t first = p[1] & 0x3f3f3f3fu, last = high_nibbles(p[2]) | (p[1] >> 2 & 0x30303030u);
    t[0] = __byte_perm(first, 0, 0x1100);
    t[1] = __byte_perm(first, 0, 0x3322);
    t[2] = __byte_perm(last, 0, 0x1100);
    t[3] = __byte_perm(last, 0, 0x3322);
  }
};

struct Q4_K : Sixes {
  static constexpr int BLOCK_BYTES = 144, ALIGNMENT = 16;
  Bytes block;
  int l;
  DEVICE Q4_K(const Bytes& block, int l, const uint8_t*) : block(block), l(l) { load_scales(block); }
  DEVICE int32_t scale(int c) const { return scale_of(c, l); }
  DEVICE void weights(int c, uint32_t* w) const {
    block.words<16, 4>(16 + 32 * c + l % 2 * 16, w);
    UNROLL for (int i = 0; i < 4; ++i) w[i] = low_nibbles(w[i] >> l / 2 * 4);
  }
};

struct Q5_K : Sixes {
  static constexpr int BLOCK_BYTES = 176, ALIGNMENT = 16;
  Bytes block;
  int l;
  uint32_t fifth[4];
  DEVICE Q5_K(const Bytes& block, int l, const uint8_t*) : block(block), l(l) {
    load_scales(block);
    block.words<16, 4>(16 + l % 2 * 16, fifth);
    UNROLL for (int i = 0; i < 4; ++i) fifth[i] >>= l / 2;
  }
  DEVICE int32_t scale(int c) const { return scale_of(c, l); }
  DEVICE void weights(int c, uint32_t* w) const {
    block.words<16, 4>(48 + 32 * c + l % 2 * 16, w);
    UNROLL for (int i = 0; i < 4; ++i) {
      w[i] = low_nibbles(w[i] >> l / 2 * 4) | (fifth[i] >> 2 * c & 0x01010101u) << 4;
    }
  }
};

struct Q6_K : NoMinimum {
  static constexpr int BLOCK_BYTES = 210, ALIGNMENT = 2;
  Bytes block;
  int l;
  DEVICE Q6_K(const Bytes& block, int l, const uint8_t*) : block(block), l(l) {}
  static DEVICE float d(const Bytes& block) { return block.number(208); }
  DEVICE int32_t scale(int c) const { return (int32_t)(int8_t)block.byte(192 + 4 * c + l); }
  DEVICE void weights(int c, uint32_t* w) const {
    uint32_t low[4], high[4];
    block.words<2, 4>(c / 2 * 64 + 16 * l, low);
    block.words<2, 4>(128 + c / 2 * 32 + l % 2 * 16, high);
    UNROLL for (int i = 0; i < 4; ++i) {
      // Minus 32, so without the sixth bit the byte's upper three are set.
      const uint32_t upper = high[i] << (4 - c % 2 * 4) >> l / 2 * 2, absent = ~upper & 0x20202020u;
      w[i] = low_nibbles(low[i] >> c % 2 * 4) | (absent * 7u + (upper & 0x10101010u));
    }
  }
};

struct Q3_K : NoMinimum {
  static constexpr int BLOCK_BYTES = 110, ALIGNMENT = 2;
  Bytes block;
  int l;
  uint32_t third[4];
  DEVICE Q3_K(const Bytes& block, int l, const uint8_t*) : block(block), l(l) {
    block.words<2, 4>(l % 2 * 16, third);
    UNROLL for (int i = 0; i < 4; ++i) third[i] = ~third[i] >> l / 2;
  }
  static DEVICE float d(const Bytes& block) { return block.number(108); }
  DEVICE int32_t scale(int c) const {
    const uint32_t four = block.byte(96 + c % 2 * 4 + l) >> c / 2 * 4 & 15, two = block.byte(104 + l) >> 2 * c & 3;
    return (int32_t)(four + two * 16) - 32;
  }
  DEVICE void weights(int c, uint32_t* w) const {
    block.words<2, 4>(32 + c / 2 * 32 + l % 2 * 16, w);
    UNROLL for (int i = 0; i < 4; ++i) {
      // Minus 4, so without the third bit all above the second are set.
      const uint32_t absent = third[i] >> 2 * c & 0x01010101u;
      w[i] = (w[i] >> (c % 2 * 4 + l / 2 * 2) & 0x03030303u) | absent * 0xfcu;
    }
  }
};

struct Q2_K {
  static constexpr int BLOCK_BYTES = 84, ALIGNMENT = 4;
  static constexpr bool HAS_MINIMUM = true;
  Bytes block;
  int l;
  DEVICE Q2_K(const Bytes& block, int l, const uint8_t*) : block(block), l(l) {}
  static DEVICE float d(const Bytes& block) { return block.number(80); }
  static DEVICE float minimum(const Bytes& block) { return -block.number(82); }
  static DEVICE void minimums(const Bytes& block, uint32_t* t) {
    block.words<4, 4>(0, t);
    UNROLL for (int i = 0; i < 4; ++i) t[i] = high_nibbles(t[i]);
  }
  DEVICE int32_t scale(int c) const { return (int32_t)(block.byte(4 * c + l) & 15); }
  DEVICE void weights(int c, uint32_t* w) const {
    block.words<4, 4>(16 + c / 2 * 32 + l % 2 * 16, w);
    UNROLL for (int i = 0; i < 4; ++i) w[i] = w[i] >> (c % 2 * 4 + l / 2 * 2) & 0x03030303u;
  }
};

struct IQ4_XS : NoMinimum {
  static constexpr int BLOCK_BYTES = 136, ALIGNMENT = 8;
  Bytes block;
  int l;
  DEVICE IQ4_XS(const Bytes& block, int l, const uint8_t*) : block(block), l(l) {}
  static DEVICE float d(const Bytes& block) { return block.number(0); }
  DEVICE int32_t scale(int c) const {
    const uint32_t four = block.word<4>(4) >> (8 * c + l / 2 * 4) & 15, two = block.half(2) >> (4 * c + l / 2 * 2) & 3;
    return (int32_t)(four + two * 16) - 32;
  }
  DEVICE void weights(int c, uint32_t* w) const {
    uint32_t packed[4];
    block.words<8, 4>(8 + 32 * c + l / 2 * 16, packed);
    // The lane's nibbles of two words side by side, for one look at the table.
    UNROLL for (int i = 0; i < 4; i += 2) {
      const uint32_t first = low_nibbles(packed[i] >> l % 2 * 4), next = low_nibbles(packed[i + 1] >> l % 2 * 4);
      look_up(iq4_table(), first | next << 4, w + i, w + i + 1);
    }
  }
};

// Eight weights of a grid's row.
DEVICE void grid_of_eight(const uint8_t* grid, uint32_t row, uint32_t signs, uint32_t* w) {
  const uint2 magnitudes = kept((const uint2*)grid + row);
  w[0] = signed_each(magnitudes.x, signs);
  w[1] = signed_each(magnitudes.y, signs >> 4);
}

struct FromGrid : NoMinimum {
  Bytes block;
  int l;
  const uint8_t* grid;
  DEVICE FromGrid(const Bytes& block, int l, const uint8_t* grid) : block(block), l(l), grid(grid) {}
  // Of sixteen l + 4 c, from the four bits of a thirty-two or a sixteen.
  static DEVICE int32_t odd(uint32_t number) { return (int32_t)(2 * number + 1); }
  DEVICE int32_t odd_of_sixteen(int place, int c) const { return odd(block.byte(place + 2 * c + l / 2) >> l % 2 * 4 & 15); }
};

struct IQ2_XXS : FromGrid {
  static constexpr int BLOCK_BYTES = 66, ALIGNMENT = 2;
  using FromGrid::FromGrid;
  static DEVICE float d(const Bytes& block) { return block.number(0) * 0.125f; }
  DEVICE uint32_t signs(int c) const { return block.word<2>(6 + 16 * c + l / 2 * 8); }
  DEVICE int32_t scale(int c) const { return odd(signs(c) >> 28); }
  DEVICE void weights(int c, uint32_t* w) const {
    const uint32_t rows = block.half(2 + 16 * c + l / 2 * 8 + l % 2 * 2), seven = signs(c) >> l % 2 * 14;
    grid_of_eight(grid, rows & 255, eight_signs(seven & 127), w);
    grid_of_eight(grid, rows >> 8, eight_signs(seven >> 7 & 127), w + 2);
  }
};

struct IQ2_XS : FromGrid {
  static constexpr int BLOCK_BYTES = 74, ALIGNMENT = 2;
  using FromGrid::FromGrid;
  static DEVICE float d(const Bytes& block) { return block.number(0) * 0.125f; }
  DEVICE int32_t scale(int c) const { return odd_of_sixteen(66, c); }
  DEVICE void weights(int c, uint32_t* w) const {
    const uint32_t two = block.word<2>(2 + 16 * c + 4 * l);
    grid_of_eight(grid, two & 511, eight_signs(two >> 9 & 127), w);
    grid_of_eight(grid, two >> 16 & 511, eight_signs(two >> 25), w + 2);
  }
};

struct IQ2_S : FromGrid {
  static constexpr int BLOCK_BYTES = 82, ALIGNMENT = 2;
  using FromGrid::FromGrid;
  static DEVICE float d(const Bytes& block) { return block.number(0) * 0.125f; }
  DEVICE int32_t scale(int c) const { return odd_of_sixteen(74, c); }
  DEVICE void weights(int c, uint32_t* w) const {
    const uint32_t rows = block.half(2 + 8 * c + 2 * l), signs = block.half(34 + 8 * c + 2 * l);
    const uint32_t high = block.byte(66 + 2 * c + l / 2) >> l % 2 * 4;
    grid_of_eight(grid, (rows & 255) | (high & 3) << 8, signs & 255, w);
    grid_of_eight(grid, rows >> 8 | (high >> 2 & 3) << 8, signs >> 8, w + 2);
  }
};

struct IQ3_XXS : FromGrid {
  static constexpr int BLOCK_BYTES = 98, ALIGNMENT = 2;
  using FromGrid::FromGrid;
  static DEVICE float d(const Bytes& block) { return block.number(0) * 0.25f; }
  DEVICE uint32_t signs(int c) const { return block.word<2>(66 + 8 * c + l / 2 * 4); }
  DEVICE int32_t scale(int c) const { return odd(signs(c) >> 28); }
  DEVICE void weights(int c, uint32_t* w) const {
    const uint32_t rows = block.word<2>(2 + 16 * c + 4 * l), seven = signs(c) >> l % 2 * 14;
    UNROLL for (int i = 0; i < 4; ++i) {
      const uint32_t eight = eight_signs(seven >> i / 2 * 7 & 127);
      w[i] = signed_each(kept((const uint32_t*)grid + (rows >> 8 * i & 255)), eight >> i % 2 * 4);
    }
  }
};

struct IQ3_S : FromGrid {
  static constexpr int BLOCK_BYTES = 110, ALIGNMENT = 2;
  using FromGrid::FromGrid;
  static DEVICE float d(const Bytes& block) { return block.number(0); }
  DEVICE int32_t scale(int c) const { return odd(block.byte(106 + c) >> l / 2 * 4 & 15); }
  DEVICE void weights(int c, uint32_t* w) const {
    const uint32_t rows = block.word<2>(2 + 16 * c + 4 * l), signs = block.half(74 + 8 * c + 2 * l);
    const uint32_t high = block.byte(66 + 2 * c + l / 2) >> l % 2 * 4;
    UNROLL for (int i = 0; i < 4; ++i) {
      const uint32_t row = (rows >> 8 * i & 255) | (high >> i & 1) << 8;
      w[i] = signed_each(kept((const uint32_t*)grid + row), signs >> 4 * i);
    }
  }
};
