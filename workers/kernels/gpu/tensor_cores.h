// Products of 8-bit integers on the tensor cores: d = A B + c for one warp, A [16, k], B [k, 8], d [16, 8].
//
// Fragments are PTX's of mma.m16n8k32 and mma.m16n8k16 (PTX ISA, 'Matrix Fragments for mma.m16n8k16 with integer
// type' and after it). With group = lane / 4 and place = lane % 4 a lane holds
//   a[i], byte j: row group + 8 (i % 2), k = 4 place + j + 16 (i / 2)
//   b[i], byte j: column group, k = 4 place + j + 16 i
//   c[i], d[i]:   row group + 8 (i / 2), column 2 place + i % 2

#pragma once

#include "warp.h"

// Instructions of 16 rows are there from compute capability 8.0 on; 7.5 has those of 8 rows and 16 columns alone.
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ < 800
constexpr bool SIXTEEN_ROWS = false;
#else
constexpr bool SIXTEEN_ROWS = true;
#endif

// d [8, 8] = A B + d of 16 columns: rows and columns as above, of the rows below 8.
DEVICE void multiply_eight_rows(int32_t* d, uint32_t a, uint32_t b) {
#ifdef __CUDACC_RTC__
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a), "r"(b));
#else
  mma_eight_rows_on_cpu(d, a, b);
#endif
}

// `K` of 32 or 16. With `WHOLE` in one instruction, else in several of eight rows.
template <int K, bool WHOLE = SIXTEEN_ROWS>
DEVICE void multiply(int32_t* d, const uint32_t* a, const uint32_t* b, const int32_t* c) {
  static_assert(K == 32 || K == 16, "fragments of 32 or 16 columns");
  if constexpr (!WHOLE) {
    UNROLL for (int i = 0; i < 4; ++i) d[i] = c[i];
    UNROLL for (int half = 0; half < 2; ++half) {
      UNROLL for (int i = 0; i < K / 16; ++i) multiply_eight_rows(d + 2 * half, a[half + 2 * i], b[i]);
    }
  } else {
#ifdef __CUDACC_RTC__
    if constexpr (K == 32) {
      asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                   "{%10, %11, %12, %13};"
                   : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]),
                     "r"(c[3]));
    } else {
      asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                   "{%7, %8, %9, %10};"
                   : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                   : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
    }
#else
    for (int i = 0; i < 4; ++i) d[i] = c[i];
    mma_on_cpu<K>(d, a, b);
#endif
  }
}
