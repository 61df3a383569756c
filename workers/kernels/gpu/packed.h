// Four weights of 8 bits in a word.

#pragma once

#include "device.h"

// Each of four bytes below 128 minus the same byte of `by`, of at most 128, as signed bytes.
DEVICE uint32_t minus_each(uint32_t bytes, uint32_t by) { return ((bytes | 0x80808080u) - by) ^ 0x80808080u; }

// Four of eight nibbles: the low halves of the bytes, or the high ones.
DEVICE uint32_t low_nibbles(uint32_t word) { return word & 0x0f0f0f0fu; }
DEVICE uint32_t high_nibbles(uint32_t word) { return word >> 4 & 0x0f0f0f0fu; }

// Four neighbouring bits, each moved to the lowest of a byte.
DEVICE uint32_t bit_each(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

// Four magnitudes of at least 1, negated where the lowest of four bits, or the next ones, say so.
DEVICE uint32_t signed_each(uint32_t magnitudes, uint32_t bits) {
  const uint32_t ones = bit_each(bits);
  return (magnitudes ^ ones * 255u) + ones;
}

// Seven sign bits of the file and an eighth: their number is even.
DEVICE uint32_t eight_signs(uint32_t seven) { return seven | (uint32_t)(__popc(seven) & 1) << 7; }

// Sixteen signed bytes that nibbles stand for, in the order of the file's table.
struct Table {
  uint32_t words[4];
};

// Of eight nibbles: what the low halves of the bytes stand for, and the high ones.
DEVICE void look_up(const Table& table, uint32_t nibbles, uint32_t* low, uint32_t* high) {
  // A nibble's last three bits choose among eight bytes, its first among the two eights.
  const uint32_t chosen = nibbles & 0x77777777u, upper = (nibbles & 0x88888888u) >> 1 | 0x32103210u;
  uint32_t found[2];
  UNROLL for (int i = 0; i < 2; ++i) {
    const uint32_t first = __byte_perm(table.words[0], table.words[1], chosen >> 16 * i);
    const uint32_t last = __byte_perm(table.words[2], table.words[3], chosen >> 16 * i);
    found[i] = __byte_perm(first, last, upper >> 16 * i);
  }
  *low = __byte_perm(found[0], found[1], 0x6420);
  *high = __byte_perm(found[0], found[1], 0x7531);
}

// ggml-common.h: kvalues_iq4nl, kvalues_mxfp4.
DEVICE Table iq4_table() { return {{0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u}}; }
DEVICE Table mxfp4_table() { return {{0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu}}; }
