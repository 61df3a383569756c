// What every GPU kernel is written in: CUDA C++ as NVRTC compiles it for a card, and as g++ compiles it for the CPU that
// plays the card in tests (tests/cuda_on_cpu). Both compile this very text. The arithmetic is docs/arithmetic.md's: every
// rounding is written out, and NVRTC is told not to contract products and sums.

#pragma once

#ifdef __CUDACC_RTC__
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#define KERNEL extern "C" __global__ void
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#else
#include "cuda_on_cpu.h"
#endif

constexpr int WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

#ifdef __CUDACC_RTC__
// In assembly, so that a test can tell it from one that the compiler made of a product and a sum.
DEVICE float fma_rn(float a, float b, float c) {
  float d;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
}
DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
DEVICE double divide(double a, double b) { return __ddiv_rn(a, b); }
DEVICE float square_root(float a) { return __fsqrt_rn(a); }
DEVICE float round_even(float a) { return rintf(a); }
DEVICE double round_even(double a) { return rint(a); }
DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE double as_double(uint64_t bits) { return __longlong_as_double((int64_t)bits); }
DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }
DEVICE uint64_t as_bits(double x) { return (uint64_t)__double_as_longlong(x); }
DEVICE uint64_t high_word(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
DEVICE int leading_zeros(uint64_t x) { return __clzll((int64_t)x); }
#else
#include "steps_on_cpu.h"
DEVICE float square_root(float a) { return __builtin_sqrtf(a); }
DEVICE float round_even(float a) { return __builtin_rintf(a); }
DEVICE double round_even(double a) { return __builtin_rint(a); }
#endif

// A float16 as float32, exactly.
DEVICE float widen_half(uint16_t h) {
#ifdef __CUDACC_RTC__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(h));
  return wide;
#else
  const uint32_t magnitude = h & 0x7fff, sign = (uint32_t)(h & 0x8000) << 16;
  const uint32_t small = as_bits((float)(int32_t)magnitude * 0x1p-24f);
  const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00 ? 224u << 23 : 112u << 23);
  return as_float((magnitude < 0x400 ? small : normal) | sign);
#endif
}

// To nearest, ties to even; the bits of a bfloat16.
DEVICE uint16_t round_bfloat16(float x) {
  const uint32_t bits = as_bits(x);
  return (uint16_t)(x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
}
DEVICE float widen_bfloat16(uint16_t bits) { return as_float((uint32_t)bits << 16); }

DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

DEVICE float infinite() { return as_float(0x7f800000); }
DEVICE float not_a_number() { return as_float(0x7fc00000); }
