// How kernels read: weights once and past the first-level cache, activations again and again through it.

#pragma once

#include "warp.h"

// Of what this launch does not write.
template <class T>
DEVICE T kept(const T* at) {
#ifdef __CUDACC_RTC__
  return __ldg(at);
#else
  return *at;
#endif
}

// Of what is read once. Sixteen bytes at a multiple of sixteen.
DEVICE uint4 passing(const uint8_t* at) {
#ifdef __CUDACC_RTC__
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(at));
  return v;
#else
  return *(const uint4*)at;
#endif
}

// A stretch of weights on its way from memory to a warp's part of shared memory. Blocks of most types begin at any
// multiple of 2 bytes. So the warp copies whole pieces of sixteen bytes, side by side, and looks for the blocks in shared
// memory. BYTES: of the longest stretch; ALIGNMENT: of where stretches begin.
template <int BYTES, int ALIGNMENT>
struct Stretch {
  static constexpr int PIECES = (BYTES + 15 + (ALIGNMENT < 16 ? 16 - ALIGNMENT : 0)) / 16;
  static constexpr int EACH = (PIECES + WARP - 1) / WARP;

  uint4 pieces[EACH];

  // Bytes before the stretch in its first piece.
  static DEVICE int offset(const uint8_t* from) { return ALIGNMENT < 16 ? (int)((uint64_t)from & 15) : 0; }

  DEVICE void fetch(const uint8_t* from, int bytes) {
    const int before = offset(from), count = (before + bytes + 15) / 16;
    const uint8_t* first = from - before;
    UNROLL for (int i = 0; i < EACH; ++i) {
      const int piece = lane_of_warp() + i * WARP;
      if (piece < count) pieces[i] = passing(first + piece * 16);
    }
  }

  // All of it may be read after the next __syncwarp. What the stretch does not have is left over from before.
  DEVICE void put(uint4* to) const {
    UNROLL for (int i = 0; i < EACH; ++i) {
      const int piece = lane_of_warp() + i * WARP;
      if (piece < PIECES) to[piece] = pieces[i];
    }
  }
};

// Bytes in shared memory from some place on, of any alignment.
struct Bytes {
  const uint4* memory;
  int at;

  DEVICE Bytes from(int place) const { return {memory, at + place}; }
  DEVICE uint32_t byte(int place) const { return ((const uint8_t*)memory)[at + place]; }
  DEVICE uint16_t half(int place) const { return ((const uint16_t*)memory)[(at + place) >> 1]; }  // at a multiple of 2
  DEVICE float number(int place) const { return widen_half(half(place)); }

  // N words from a multiple of ALIGNMENT on. Words that lie across two are put together from both.
  template <int ALIGNMENT, int N>
  DEVICE void words(int place, uint32_t* out) const {
    const int from = at + place;
    if constexpr (ALIGNMENT == 16 && N % 4 == 0) {
      UNROLL for (int i = 0; i < N; i += 4) {
        const uint4 v = memory[(from >> 4) + i / 4];
        out[i] = v.x;
        out[i + 1] = v.y;
        out[i + 2] = v.z;
        out[i + 3] = v.w;
      }
    } else if constexpr (ALIGNMENT == 8 && N % 2 == 0) {
      UNROLL for (int i = 0; i < N; i += 2) {
        const uint2 v = ((const uint2*)memory)[(from >> 3) + i / 2];
        out[i] = v.x;
        out[i + 1] = v.y;
      }
    } else if constexpr (ALIGNMENT >= 4) {
      const uint32_t* all = (const uint32_t*)memory + (from >> 2);
      UNROLL for (int i = 0; i < N; ++i) out[i] = all[i];
    } else {
      const uint32_t* all = (const uint32_t*)memory + (from >> 2);
      const int shift = from % 4 * 8;
      uint32_t low = all[0];
      UNROLL for (int i = 0; i < N; ++i) {
        const uint32_t high = all[i + 1];
        out[i] = __funnelshift_r(low, high, shift);
        low = high;
      }
    }
  }

  template <int ALIGNMENT>
  DEVICE uint32_t word(int place) const {
    uint32_t out;
    words<ALIGNMENT, 1>(place, &out);
    return out;
  }
};
