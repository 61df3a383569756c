// The part of CUDA C++ that our kernels use, on a CPU: every thread of a block is a fiber, and a fiber that waits for others
// lets the next one run. So kernels run here line for line as a card runs them: barriers, shuffles, the tensor cores'
// fragments. What a card leaves undefined ends the process with a line on standard error: a warp whose lanes wait for
// different things, or a thread that ended before a barrier.
//
// One launch at a time; blocks one after another.

#pragma once

#include <cstdint>
#include <cstring>

struct Dim3 {
  unsigned x, y, z;
};

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern Dim3 threadIdx, blockIdx, blockDim, gridDim;

#define KERNEL static void
#define DEVICE inline __attribute__((always_inline))
#define UNROLL
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)

namespace on_cpu {
// Lets the others of the warp, or of the block, come to the same place. `what` is compared between them.
void wait_for_warp(int what);
void wait_for_block(int what);
// Sixteen bytes that a lane shows the others of its warp at the next wait, and what lane `lane` showed.
struct alignas(16) Shown {
  uint32_t words[8];
};
Shown& mine();
const Shown& of_lane(int lane);
int lane();
// Begins a copy of this thread. Every other one happens at once and the rest when the thread waits, as on a card either may.
void copy(void* to, const void* from, int num_bytes);
void copies_done();
}  // namespace on_cpu

enum { ON_CPU_SYNC = 1, ON_CPU_SHUFFLE, ON_CPU_BALLOT, ON_CPU_MMA, ON_CPU_WARP };

inline void __syncthreads() { on_cpu::wait_for_block(ON_CPU_SYNC); }
inline void __syncwarp(uint32_t = 0xffffffffu) { on_cpu::wait_for_warp(ON_CPU_WARP); }

template <class T>
inline T shuffled(T value, int from) {
  static_assert(sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
  std::memcpy(on_cpu::mine().words, &value, sizeof(T));
  on_cpu::wait_for_warp(ON_CPU_SHUFFLE);
  T found;
  std::memcpy(&found, on_cpu::of_lane(from).words, sizeof(T));
  return found;
}

template <class T>
inline T __shfl_sync(uint32_t, T value, int from) { return shuffled(value, from & 31); }
template <class T>
inline T __shfl_xor_sync(uint32_t, T value, int mask) { return shuffled(value, on_cpu::lane() ^ mask); }
template <class T>
inline T __shfl_down_sync(uint32_t, T value, int by) {
  const int from = on_cpu::lane() + by;
  return shuffled(value, from > 31 ? on_cpu::lane() : from);
}

inline uint32_t __ballot_sync(uint32_t, bool mine) {
  on_cpu::mine().words[0] = mine;
  on_cpu::wait_for_warp(ON_CPU_BALLOT);
  uint32_t found = 0;
  for (int lane = 0; lane < 32; ++lane) found |= on_cpu::of_lane(lane).words[0] << lane;
  return found;
}
inline bool __any_sync(uint32_t mask, bool mine) { return __ballot_sync(mask, mine) != 0; }

// Four products of signed bytes, and c.
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += (int)(int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
  return c;
}

// Two products of 16-bit integers in `a` with the lower, or upper, two signed bytes of `b`, and c.
inline int __dp2a_lo(int a, int b, int c) {
  return c + (int)(int16_t)a * (int8_t)b + (int)(int16_t)(a >> 16) * (int8_t)(b >> 8);
}
inline int __dp2a_hi(int a, int b, int c) { return __dp2a_lo(a, b >> 16, c); }

// The low word of (high, low) shifted right by `by` mod 32.
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
  return (uint32_t)(((uint64_t)high << 32 | low) >> (by & 31));
}

// Four of the eight bytes of (b, a), chosen by the last three bits of the nibbles of `which`.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t which) {
  const uint64_t both = (uint64_t)b << 32 | a;
  uint32_t found = 0;
  for (int i = 0; i < 4; ++i) found |= (uint32_t)(both >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
  return found;
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }

inline void copy_on_cpu(void* to, const void* from, int num_bytes) { on_cpu::copy(to, from, num_bytes); }
inline void copies_done_on_cpu() { on_cpu::copies_done(); }

template <class T>
inline T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}
template <class T>
inline T atomicOr(T* at, T value) {
  const T before = *at;
  *at = before | value;
  return before;
}

// Products of 8-bit integers on the tensor cores, with PTX's fragments (PTX ISA, 'Matrix Fragments for mma.m16n8k32' and
// 'mma.m16n8k16'): group = lane / 4, place = lane % 4. Row r of A, column n of B, row r and column n of D:
//   A register i, byte j: r = group + 8 (i % 2), k = 4 place + j + 16 (i / 2)
//   B register i, byte j: n = group, k = 4 place + j + 16 i
//   D register i: r = group + 8 (i / 2), n = 2 place + i % 2
template <int K>
inline void mma_on_cpu(int* d, const uint32_t* a, const uint32_t* b) {
  constexpr int A = K / 8, B = K / 16;
  std::memcpy(on_cpu::mine().words, a, A * sizeof(uint32_t));
  std::memcpy(on_cpu::mine().words + A, b, B * sizeof(uint32_t));
  on_cpu::wait_for_warp(ON_CPU_MMA);
  const int group = on_cpu::lane() / 4, place = on_cpu::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = group + 8 * (i / 2), column = 2 * place + i % 2;
    for (int k = 0; k < K; ++k) {
      const uint32_t* of_a = on_cpu::of_lane(row % 8 * 4 + k % 16 / 4).words;
      const uint32_t* of_b = on_cpu::of_lane(column * 4 + k % 16 / 4).words + A;
      d[i] += (int)(int8_t)(of_a[row / 8 + 2 * (k / 16)] >> 8 * (k % 4)) * (int8_t)(of_b[k / 16] >> 8 * (k % 4));
    }
  }
}

// mma.m8n8k16 (PTX ISA, 'Matrix Fragments for mma.m8n8k16'):
//   A byte j: r = group, k = 4 place + j
//   B byte j: n = group, k = 4 place + j
//   D register i: r = group, n = 2 place + i
inline void mma_eight_rows_on_cpu(int* d, uint32_t a, uint32_t b) {
  on_cpu::mine().words[0] = a;
  on_cpu::mine().words[1] = b;
  on_cpu::wait_for_warp(ON_CPU_MMA);
  const int group = on_cpu::lane() / 4, place = on_cpu::lane() % 4;
  for (int i = 0; i < 2; ++i) {
    for (int k = 0; k < 16; ++k) {
      const uint32_t of_a = on_cpu::of_lane(group * 4 + k / 4).words[0];
      const uint32_t of_b = on_cpu::of_lane((2 * place + i) * 4 + k / 4).words[1];
      d[i] += (int)(int8_t)(of_a >> 8 * (k % 4)) * (int8_t)(of_b >> 8 * (k % 4));
    }
  }
}
