// Products of rows and weight matrices: what the kernels of every form take.

#pragma once

#include "warp.h"

// Groups of rows, each with a matrix of its own in one form: an expert's rows and its gate, say; a linear layer is a
// single group. Entries stand group by group. What is computed for an entry depends on its row and matrix alone.
//   out[entry, n] = dot(row entry_rows[entry], row n of the group's matrix)
// Kernels count activations and rows in 32 bits: rows * columns and rows_out stay below 2^31. They read the weights in pieces of 16 bytes, so
// the memory of a matrix begins and ends at multiples of 16 (what `Device.allocate` gives does).
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
  const uint8_t* grid;                // of IQ2 and IQ3 types: their table of magnitudes; else null
  float* out;                         // [entries, out_stride]
  int64_t out_stride, columns, rows_out, row_bytes;
  int64_t entries;                    // where num_groups is null: of the single group, whose matrix is of slot 0
};

// One group's entries and matrix. `stop` is `first` where there is nothing to do.
struct Group {
  int first, stop, slot;
};

DEVICE Group group_of(const LinearArgs& a, int group) {
  if (a.num_groups == nullptr) return {0, (int)a.entries, 0};
  if (group >= *a.num_groups) return {0, 0, 0};
  return {a.group_starts[group], a.group_starts[group + 1], a.group_slots[group]};
}

DEVICE int row_of_entry(const LinearArgs& a, int entry) {
  return a.entry_rows == nullptr ? entry : a.entry_rows[entry];
}

// Warps of a thread block. Each takes rows of weights of its own and waits for no other.
constexpr int LINEAR_WARPS = 4;

// Rows of weights that a warp takes at a time, by how many entries pass over them together. What is read of several
// entries' activations from the first-level cache is then used twice, or it would be the bottleneck.
DEVICE constexpr int rows_at_once(int entries) { return entries > 1 ? 2 : 1; }

// Whether a warp asks for its next weights before it computes with those that it has. For several entries the registers
// are worth more as further warps, which ask meanwhile.
DEVICE constexpr bool fetches_early(int entries) { return entries == 1; }

// A block's rows of weights times entries first to stop - 1, R at a time. Dot::dot computes N times Dot::ROWS rows of
// weights, for which it wants N times Dot::PIECES sixteens of bytes of shared memory; R is 1, 8, 4 or Dot::LEAST.
template <class Dot, int R, int N>
DEVICE void sweep(const LinearArgs& a, const Group& group, int first, int stop, uint4* memory) {
  const int rows_out = (int)a.rows_out, step = (int)gridDim.x * LINEAR_WARPS * N * Dot::ROWS;
  for (int row = ((int)blockIdx.x * LINEAR_WARPS + warp_of_block()) * N * Dot::ROWS; row < rows_out; row += step) {
    for (int entry = first; entry < stop; entry += R) {
      Dot::template dot<R, N>(a, group, entry, stop - entry, row, memory);
    }
  }
}

// A group by a line of thread blocks. MOST: entries that pass over the weights together, 1 or 8.
template <class Dot, int MOST>
DEVICE void linear_group(const LinearArgs& a) {
  constexpr int N = rows_at_once(MOST);
  __shared__ uint4 memory[LINEAR_WARPS][N * Dot::PIECES];
  const Group group = group_of(a, (int)blockIdx.y);
  if (group.first == group.stop) return;
  uint4* mine = memory[warp_of_block()];
  if constexpr (MOST == 1) {
    sweep<Dot, 1, N>(a, group, group.first, group.stop, mine);
  } else {
    // Eights while more than four are left.
    const int left = (group.stop - group.first) % MOST, rest = left > 4 ? 0 : left, eights = group.stop - rest;
    if (eights > group.first) sweep<Dot, MOST, N>(a, group, group.first, eights, mine);
    if (rest > 2) {
      sweep<Dot, 4, N>(a, group, eights, group.stop, mine);
    } else if (rest > 0) {
      sweep<Dot, Dot::LEAST, N>(a, group, eights, group.stop, mine);
    }
  }
}
