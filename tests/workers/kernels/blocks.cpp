// Every quantised type in vectors of 256 bits against the definition, on any bits; prints the types that differ.
// With POTLUCK_VNNI defined, vpdpbusd is spelled out, so that processors without it test what those with it run.

#include "arguments.h"
#include "thread_pool.h"

#include <immintrin.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

static Tables tables;

static inline __m256i products_of_four(__m256i sum, __m256i a, __m256i b) {
  int32_t sums[8];
  uint8_t x[32];
  int8_t y[32];
  std::memcpy(sums, &sum, 32);
  std::memcpy(x, &a, 32);
  std::memcpy(y, &b, 32);
  for (int i = 0; i < 32; ++i) sums[i / 4] += (int32_t)x[i] * y[i];
  std::memcpy(&sum, sums, 32);
  return sum;
}

static inline __m128 sum_eights(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 rows[4] = {a, b, c, d};
  float sums[4];
  for (int i = 0; i < 4; ++i) {
    float v[8];
    std::memcpy(v, rows + i, 32);
    sums[i] = ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
  }
  return _mm_loadu_ps(sums);
}

#ifdef POTLUCK_VNNI
#define _mm256_dpbusd_epi32 products_of_four
#endif

namespace baseline {
#include "lanes_baseline.h"

#include "work_items.h"

#include "weights.h"

#include "dot.h"

#include "elementwise.h"

#include "quantised.h"

#include "rounded.h"

#include "blocks_256.h"

#include "small_blocks_256.h"

#include "grids_256.h"

#include "panels.h"
}  // namespace baseline
using namespace baseline;

void parallel_for(int64_t items, int, WorkItem run, void* context) {
  for (int64_t item = 0; item < items; ++item) run(context, item, 0);
}

static std::mt19937_64 random_bits(1);

static float any_scale() {
  switch (random_bits() % 12) {
    case 0: return 0.0f;
    case 1: return 0x1p-126f;
    case 2: return 3e30f;
    case 3: return NAN;
    default: return (float)(random_bits() % 1000 + 1) * 1e-4f;
  }
}

// Blocks of any bits, now and then all ones or zeros, scales of any float16.
template <class Block, DotRounded DOT>
static bool same(const char* name) {
  for (int round = 0; round < 24; ++round) {
    const int64_t T = round % 3 == 0 ? 1 : 1 + random_bits() % (round % 2 ? 5 : 40), N = 1 + random_bits() % 9;
    const int64_t blocks = 1 + random_bits() % (Block::BLOCK == 256 ? 19 : 50), K = blocks * Block::BLOCK;
    std::vector<uint8_t> w(N * blocks * Block::BLOCK_BYTES);
    for (auto& byte : w) byte = (uint8_t)random_bits();
    for (int64_t b = 0; b < N * blocks; ++b) {
      if (random_bits() % 8 == 0) std::memset(&w[b * Block::BLOCK_BYTES], random_bits() % 2 ? 255 : 0, Block::BLOCK_BYTES);
    }
    std::vector<int8_t> q(T * K);
    std::vector<float> scales(T * blocks);
    std::vector<int16_t> sums(T * K / 16);
    for (auto& value : q) value = (int8_t)((int)(random_bits() % 255) - 127);
    for (int64_t b = 0; b < T * blocks; ++b) {
      if (random_bits() % 6 == 0) std::memset(&q[b * Block::BLOCK], random_bits() % 2 ? 127 : -127, Block::BLOCK);
      scales[b] = any_scale();
    }
    for (int64_t t = 0; t < T; ++t) sum_sixteens(&q[t * K], K, &sums[t * K / 16]);
    const RoundedRows x{q.data(), scales.data(), sums.data(), K, Block::BLOCK, nullptr};
    std::vector<float> found(T * N), wanted(T * N);
    DOT(x, T, w.data(), blocks * Block::BLOCK_BYTES, N, found.data(), N);
    dot_decoded<Block>(x, T, w.data(), blocks * Block::BLOCK_BYTES, N, wanted.data(), N);
    for (int64_t i = 0; i < T * N; ++i) {
      if (std::isnan(found[i]) && std::isnan(wanted[i])) continue;
      if (std::memcmp(&found[i], &wanted[i], 4) == 0) continue;
      std::printf("%s: %ld rows, %ld x %ld: %g, expected %g\n", name, (long)T, (long)N, (long)K, found[i], wanted[i]);
      return false;
    }
  }
  return true;
}

int main() {
  static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  static const int8_t mxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  static uint8_t grid[8192], signs[128];
  for (auto& magnitude : grid) magnitude = (uint8_t)(random_bits() % 63);
  // Seven signs, and one that makes the number of minus signs even.
  for (int i = 0; i < 128; ++i) signs[i] = (uint8_t)(i | __builtin_parity(i) << 7);
  tables = {iq4, mxfp4, grid, grid, grid, grid, grid, signs};
  bool all = true;
#define PANELS(type) dot_panels<Fast##type, dot_decoded<Block##type>>
#define CHECK(type) all &= same<Block##type, PANELS(type)>(#type);
#define CHECK_ONE(type) all &= same<Block##type, dot_one_or_more<OneRow##type, PANELS(type)>>("one row of " #type);
  CHECK(Q8_0) CHECK(Q6_K) CHECK(Q5_K) CHECK(Q4_K) CHECK(Q3_K) CHECK(IQ4_XS)
  CHECK_ONE(Q8_0) CHECK_ONE(Q6_K)
#ifndef POTLUCK_VNNI
  CHECK(Q2_K) CHECK(Q5_1) CHECK(Q5_0) CHECK(Q4_1) CHECK(Q4_0) CHECK(IQ4_NL) CHECK(MXFP4) CHECK(IQ3_S)
  CHECK(IQ3_XXS) CHECK(IQ2_S) CHECK(IQ2_XS) CHECK(IQ2_XXS)
#endif
  return all ? 0 : 1;
}
