// Products of rows and weight matrices: what the kernels of every form take.

#pragma once

#include "warp.h"

// Groups of rows, each with a matrix of its own in one form: an expert's rows and its gate, say; a linear layer is a
// single group. Entries stand group by group. What is computed for an entry depends on its row and matrix alone.
//   out[entry, n] = dot(row entry_rows[entry], row n of the group's matrix)
struct LinearArgs {
  const float* x;                     // [rows, columns]: what forms take that do not round, else null
  const int8_t* q;                    // [rows, columns], and below: what RoundRowsArgs has, for forms that round
  const float* scales;                // [rows, columns / block]
  const int16_t* sums;                // [rows, columns / 16]
  const int32_t* entry_rows;          // [entries]: which row an entry is; null: entry e is row e
  const int32_t* num_groups;          // how many there are; groups from there on have nothing to do
  const int32_t* group_starts;        // [num_groups + 1]: the first entry of each, then the number of entries
  const int32_t* group_slots;         // [num_groups]: which of the matrices
  const uint8_t* const* matrices;     // by slot: addresses of [rows_out, row_bytes]
  const float* const* square_scales;  // by slot: of fp8_e4m3, one for each square of 128 x 128; else null
  float* out;                         // [entries, out_stride]
  int64_t out_stride, columns, rows_out, row_bytes;
};
