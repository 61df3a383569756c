// AVX-512 in plain C++, so that processors without it compute what those with it do. Included before the kernels,
// which use no other of its intrinsics: those without a name here do not compile for a processor that lacks them.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace spelled_out {

template <class To, class From>
static inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class Number, int N>
struct Each {
  Number at[N];
};
using Floats = Each<float, 16>;
using Ints = Each<int32_t, 16>;

// Lane i is f(i).
template <class Body>
static inline __m512 floats(const Body& f) {
  Floats out;
  for (int i = 0; i < 16; ++i) out.at[i] = f(i);
  return as<__m512>(out);
}
template <class Body>
static inline __m512i ints(const Body& f) {
  Ints out;
  for (int i = 0; i < 16; ++i) out.at[i] = f(i);
  return as<__m512i>(out);
}

static inline __m512 set1_ps(float x) {
  return floats([&](int) { return x; });
}
static inline __m512i set1_epi32(int x) {
  return ints([&](int) { return x; });
}
static inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const Floats x = as<Floats>(a), y = as<Floats>(b), z = as<Floats>(c);
  return floats([&](int i) { return __builtin_fmaf(x.at[i], y.at[i], z.at[i]); });
}
static inline __m512 add_ps(__m512 a, __m512 b) {
  const Floats x = as<Floats>(a), y = as<Floats>(b);
  return floats([&](int i) { return x.at[i] + y.at[i]; });
}
static inline __m512 sub_ps(__m512 a, __m512 b) {
  const Floats x = as<Floats>(a), y = as<Floats>(b);
  return floats([&](int i) { return x.at[i] - y.at[i]; });
}
static inline __m512 mul_ps(__m512 a, __m512 b) {
  const Floats x = as<Floats>(a), y = as<Floats>(b);
  return floats([&](int i) { return x.at[i] * y.at[i]; });
}
// The second where either is not a number, and of two zeros.
static inline __m512 max_ps(__m512 a, __m512 b) {
  const Floats x = as<Floats>(a), y = as<Floats>(b);
  return floats([&](int i) { return x.at[i] > y.at[i] ? x.at[i] : y.at[i]; });
}
static inline __m512i and_si512(__m512i a, __m512i b) {
  const Ints x = as<Ints>(a), y = as<Ints>(b);
  return ints([&](int i) { return x.at[i] & y.at[i]; });
}
static inline __m512i slli_epi32(__m512i a, unsigned count) {
  const Ints x = as<Ints>(a);
  return ints([&](int i) { return (int32_t)((uint32_t)x.at[i] << count); });
}
static inline __m512 cvtepi32_ps(__m512i a) {
  const Ints x = as<Ints>(a);
  return floats([&](int i) { return (float)x.at[i]; });
}
static inline __m512i cvtepi8_epi32(__m128i a) {
  const auto x = as<Each<int8_t, 16>>(a);
  return ints([&](int i) { return (int32_t)x.at[i]; });
}
static inline __m512i cvtepu16_epi32(__m256i a) {
  const auto x = as<Each<uint16_t, 16>>(a);
  return ints([&](int i) { return (int32_t)x.at[i]; });
}
static inline __m256 half_of(__m512 a, int which) { return as<Each<__m256, 2>>(a).at[which]; }

template <int HOW>
static inline uint16_t compare(__m512 a, __m512 b) {
  static_assert(HOW == _CMP_NLT_UQ, "not less than, so true where either is not a number");
  const Floats x = as<Floats>(a), y = as<Floats>(b);
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (unsigned)!(x.at[i] < y.at[i]) << i;
  return (uint16_t)mask;
}
static inline __m512 maskz_mov_ps(uint16_t mask, __m512 a) {
  const Floats x = as<Floats>(a);
  return floats([&](int i) { return mask >> i & 1 ? x.at[i] : 0.0f; });
}
// Lanes that the mask leaves out are not touched in memory.
static inline __m512 maskz_loadu_ps(uint16_t mask, const void* p) {
  return floats([&](int i) { return mask >> i & 1 ? ((const float*)p)[i] : 0.0f; });
}
static inline void mask_storeu_ps(void* p, uint16_t mask, __m512 a) {
  const Floats x = as<Floats>(a);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) ((float*)p)[i] = x.at[i];
  }
}
static inline __m256i maskz_loadu_epi16(uint16_t mask, const void* p) {
  Each<uint16_t, 16> out;
  for (int i = 0; i < 16; ++i) out.at[i] = mask >> i & 1 ? ((const uint16_t*)p)[i] : 0;
  return as<__m256i>(out);
}
template <class Vector>
static inline Vector load(const void* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// Four products of unsigned and signed bytes are added to each lane, without saturation.
static inline __m256i dpbusd_epi32(__m256i sum, __m256i a, __m256i b) {
  auto out = as<Each<int32_t, 8>>(sum);
  const auto x = as<Each<uint8_t, 32>>(a);
  const auto y = as<Each<int8_t, 32>>(b);
  for (int i = 0; i < 32; ++i) out.at[i / 4] += (int32_t)x.at[i] * y.at[i];
  return as<__m256i>(out);
}

}  // namespace spelled_out

#undef _mm512_cmp_ps_mask
#undef _mm512_extractf32x8_ps
#undef _mm512_slli_epi32
#define _mm512_setzero_ps() spelled_out::set1_ps(0.0f)
#define _mm512_set1_ps spelled_out::set1_ps
#define _mm512_set1_epi32 spelled_out::set1_epi32
#define _mm512_fmadd_ps spelled_out::fmadd_ps
#define _mm512_add_ps spelled_out::add_ps
#define _mm512_sub_ps spelled_out::sub_ps
#define _mm512_mul_ps spelled_out::mul_ps
#define _mm512_max_ps spelled_out::max_ps
#define _mm512_and_si512 spelled_out::and_si512
#define _mm512_slli_epi32 spelled_out::slli_epi32
#define _mm512_cvtepi32_ps spelled_out::cvtepi32_ps
#define _mm512_cvtepi8_epi32 spelled_out::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 spelled_out::cvtepu16_epi32
#define _mm512_castps_si512 spelled_out::as<__m512i>
#define _mm512_castsi512_ps spelled_out::as<__m512>
#define _mm512_castps512_ps256(a) spelled_out::half_of(a, 0)
#define _mm512_extractf32x8_ps(a, which) spelled_out::half_of(a, which)
#define _mm512_cmp_ps_mask(a, b, how) spelled_out::compare<how>(a, b)
#define _mm512_maskz_mov_ps spelled_out::maskz_mov_ps
#define _mm512_maskz_loadu_ps spelled_out::maskz_loadu_ps
#define _mm512_mask_storeu_ps spelled_out::mask_storeu_ps
#define _mm256_maskz_loadu_epi16 spelled_out::maskz_loadu_epi16
#define _mm512_loadu_ps spelled_out::load<__m512>
#define _mm512_loadu_si512 spelled_out::load<__m512i>
#define _mm512_storeu_ps(p, v) std::memcpy(p, &(v), sizeof(v))
#define _mm256_dpbusd_epi32 spelled_out::dpbusd_epi32
