// Products of many rows and quantised weight matrices, on the tensor cores: what prompts run through. Same arguments
// and bits as the kernels for few rows. docs/gpu.md, 'Prefill kernels', says why it is cut up so.
//
// A thread block computes 64 rows of a matrix for 32 entries, 256 or 128 columns a step. Bytes of weights come into
// shared memory as they are in the file, each step's while the step before is computed. A warp has sixteen rows of
// weights and sixteen entries, and unpacks weights in registers, straight into fragments. It holds all eight lanes of
// its outputs, so blocks of weights are added in the order in which they lie in the card's memory.
//
// Bytes of a matrix are counted in 32 bits too: a matrix is smaller than 4 GiB.

#pragma once

#include "copy_ahead.h"
#include "linear.h"
#include "tensor_cores.h"
#include "tile_forms.h"

constexpr int TILE_ROWS = 64, TILE_ENTRIES = 32, TILE_THREADS = 256;
// Thread blocks that a multiprocessor is to have room for: that leaves 128 registers a thread.
constexpr int TILE_BLOCKS = 2;

// One step of a tile in shared memory. Rows lie an odd number of 16 bytes apart: then the 32 lanes that load a
// fragment's words, four side by side in each of eight rows, meet 32 banks.
template <class Form>
struct Staged {
  static constexpr int STEP = Form::BLOCK == 256 ? 256 : 128;
  static constexpr int BLOCKS = STEP / Form::BLOCK;
  static constexpr int STEP_BYTES = BLOCKS * Form::BLOCK_BYTES;
  // How far into a piece of 16 bytes a row's step may begin, at the most, and in how many pieces it may lie.
  static constexpr int MAY_BEGIN_AT = 16 - alignment_of(Form::BLOCK_BYTES);
  static constexpr int PIECES = (STEP_BYTES + MAY_BEGIN_AT + 15) / 16;
  static constexpr int ROW = 16 * (PIECES | 1);
  static constexpr int SUMS = Form::MINIMUMS ? STEP / 8 : 0;
  static constexpr int ENTRY = 16 * ((STEP + SUMS) / 16 | 1);

  alignas(16) uint8_t weights[TILE_ROWS * ROW];
  alignas(16) uint8_t entries[TILE_ENTRIES * ENTRY];  // q, then its sums
  alignas(16) float scales[BLOCKS * TILE_ENTRIES];
};

// Which part of a matrix and of a group's entries a tile is: rows from first_row on, entries from `first` to `stop`.
// It lies in shared memory, and is read there each time: registers are what there is least of.
struct TilePlace {
  const uint8_t* matrix;
  int first_row, first, stop;

  // Where a row begins in the matrix. Behind the last row are copies of it, whose products nobody stores.
  DEVICE uint32_t byte_of(const LinearArgs& a, int row_of_tile) const {
    const int row = first_row + row_of_tile, last = (int)a.rows_out - 1;
    return (uint32_t)(row < last ? row : last) * (uint32_t)a.row_bytes;
  }
  // Entries are taken by sixteen. Those sixteen that begin behind the group's end are left out.
  DEVICE bool has(int entry_of_tile) const { return entry_of_tile < 16 || stop - first > 16; }
};

// Begins the copies of a step of `count` blocks. A thread copies a fourth of a row of weights and an eighth of an
// entry, from number q of all activations on.
template <class Form>
DEVICE void stage(const LinearArgs& a, const TilePlace& at, int step, int count, uint32_t q, Staged<Form>& to) {
  using S = Staged<Form>;
  const int row = threadIdx.x / 4, entry = threadIdx.x / 8, part = threadIdx.x % 8;
  {
    const uint8_t* const matrix = at.matrix;
    const uint32_t first = at.byte_of(a, row) + step * S::STEP_BYTES;
    const uint32_t before = S::MAY_BEGIN_AT == 0 ? 0 : (uint32_t)(uint64_t)(matrix + first) & 15;
    const uint32_t stop = before + count * Form::BLOCK_BYTES;
    UNROLL for (int i = 0; i < (S::PIECES + 3) / 4; ++i) {
      const uint32_t place = 16 * (threadIdx.x % 4 + 4 * i);
      if (place < stop) copy_ahead<16>(to.weights + row * S::ROW + place, matrix + (first - before + place));
    }
  }
  if (at.has(entry)) {
    uint8_t* const row_to = to.entries + entry * S::ENTRY;
    UNROLL for (int i = 0; i < S::STEP / 128; ++i) {
      const int place = 16 * (part + 8 * i);
      if (place < count * Form::BLOCK) copy_ahead<16>(row_to + place, a.q + (q + place));
    }
    if (part < count) copy_ahead<4>(to.scales + part * TILE_ENTRIES + entry, a.scales + (q / Form::BLOCK + part));
    if constexpr (Form::MINIMUMS && Form::BLOCK == 256) {
      if (part < 2) copy_ahead<16>(row_to + S::STEP + 16 * part, a.sums + (q / 16 + 8 * part));
    }
    if constexpr (Form::MINIMUMS && Form::BLOCK == 32) {
      if (part < count) copy_ahead<4>(row_to + S::STEP + 4 * part, a.sums + (q / 16 + 2 * part));
    }
  }
}

// A lane's outputs: weight rows group + 8 (i / 2) of the warp's sixteen, entries 8 t + 2 place + i % 2 of its sixteen.
using Outputs = float[2][4];

// Adding an integer below 2^22 to the bits of 1.5 * 2^23 makes the float of it and 1.5 * 2^23: conversions by the
// instruction for them are four to eight times slower.
constexpr int32_t MAGIC_BITS = 0x4b400000;
DEVICE float small_as_float(int32_t above_magic) { return as_float((uint32_t)above_magic) - 12582912.0f; }

// What a lane sees of a step.
template <class Form>
struct TileView {
  using S = Staged<Form>;
  const S& staged;
  const uint8_t* rows[2];  // the step's bytes of weight rows `group` and `group + 8`
  const uint8_t* grid;
  int entry, place;        // `group` of the first eight entries; place

  DEVICE typename Form::Block block(int row, int in_step) const {
    return {rows[row] + in_step * Form::BLOCK_BYTES, grid};
  }
  DEVICE const uint8_t* q(int eight, int k) const {
    return staged.entries + (entry + 8 * eight) * S::ENTRY + k + 4 * place;
  }
  DEVICE const uint8_t* sums(int entry_of_tile) const {
    return staged.entries + entry_of_tile * S::ENTRY + S::STEP;
  }
  // Of entries 2 place and 2 place + 1 of an eight: which is the first one's number in the tile.
  DEVICE int first_output(int eight) const { return entry / 16 * 16 + 8 * eight + 2 * place; }
  DEVICE float scale(int in_step, int entry_of_tile) const {
    return staged.scales[in_step * TILE_ENTRIES + entry_of_tile];
  }
};

DEVICE void fill(int32_t* four, int32_t value) {
  UNROLL for (int i = 0; i < 4; ++i) four[i] = value;
}

// The fragment of thirty-two weights j of a block.
template <class Form>
DEVICE void weights_of(const TileView<Form>& view, int in_step, int j, uint32_t* a) {
  UNROLL for (int i = 0; i < 4; ++i) a[i] = Form::four(view.block(i % 2, in_step), j, i / 2, view.place);
}

template <class Form>
DEVICE void entries_of(const TileView<Form>& view, int eight, int k, uint32_t* b) {
  b[0] = load_as<uint32_t>(view.q(eight, k));
  b[1] = load_as<uint32_t>(view.q(eight, k + 16));
}

// lane = fma(factor * scale, value, lane) for a block's S or M.
DEVICE void add_terms(const Outputs& factors, const Outputs& values, Outputs& lane) {
  UNROLL for (int t = 0; t < 2; ++t) {
    UNROLL for (int i = 0; i < 4; ++i) lane[t][i] = fma_rn(factors[t][i], values[t][i], lane[t][i]);
  }
}

template <class Form>
DEVICE void scale_factors(const TileView<Form>& view, int in_step, const float* of_rows, Outputs& out) {
  UNROLL for (int t = 0; t < 2; ++t) {
    UNROLL for (int i = 0; i < 4; ++i) {
      out[t][i] = of_rows[i / 2] * view.scale(in_step, view.first_output(t) + i % 2);
    }
  }
}

// M of a block of 256, on tensor cores too: sums of sixteen neighbours have 12 bits, so they are taken apart into 128
// times five bits and a rest of seven.
template <class Form, bool WHOLE>
DEVICE void minimums_of_256(const TileView<Form>& view, Outputs& out) {
  const uint32_t a[2] = {Form::minimums(view.block(0, 0), view.place), Form::minimums(view.block(1, 0), view.place)};
  UNROLL for (int t = 0; t < 2; ++t) {
    const uint8_t* sums = view.sums(view.entry + 8 * t) + 8 * view.place;
    const uint32_t first = load_as<uint32_t>(sums), last = load_as<uint32_t>(sums + 4);
    const uint32_t rest = __byte_perm(first, last, 0x6420) & 0x7f7f7f7f;
    const uint32_t upper = __byte_perm(first << 1, last << 1, 0x7531);
    int32_t c[4], d[4];
    fill(c, 0);
    multiply<16, WHOLE>(d, a, &upper, c);
    UNROLL for (int i = 0; i < 4; ++i) c[i] = d[i] * 128 + MAGIC_BITS;
    multiply<16, WHOLE>(d, a, &rest, c);
    UNROLL for (int i = 0; i < 4; ++i) out[t][i] = small_as_float(d[i]);
  }
}

template <class Form, bool WHOLE>
DEVICE void add_block_of_256(const TileView<Form>& view, int block, Outputs* lanes) {
  int32_t sums[2][4], zeros[4];
  fill(zeros, 0);
  UNROLL for (int t = 0; t < 2; ++t) fill(sums[t], Form::SMALL ? MAGIC_BITS : 0);
  uint32_t scales[2][64 / Form::GROUP];
  UNROLL for (int row = 0; row < 2; ++row) Form::scales(view.block(row, 0), scales[row]);
  UNROLL for (int j = 0; j < 8; ++j) {
    uint32_t a[4];
    weights_of(view, 0, j, a);
    UNROLL for (int t = 0; t < 2; ++t) {
      uint32_t b[2];
      entries_of(view, t, 32 * j, b);
      UNROLL for (int group = 0; group < 32 / Form::GROUP; ++group) {
        int32_t d[4];
        multiply<Form::GROUP, WHOLE>(d, a + 2 * group, b + group, zeros);
        const int at = j * (32 / Form::GROUP) + group;
        UNROLL for (int i = 0; i < 4; ++i) sums[t][i] += (int8_t)(scales[i / 2][at / 4] >> at % 4 * 8) * d[i];
      }
    }
  }
  Outputs values, factors, minimums, minimum_factors;
  UNROLL for (int t = 0; t < 2; ++t) {
    UNROLL for (int i = 0; i < 4; ++i) values[t][i] = Form::SMALL ? small_as_float(sums[t][i]) : (float)sums[t][i];
  }
  const float d[2] = {Form::scale(view.block(0, 0)), Form::scale(view.block(1, 0))};
  scale_factors(view, 0, d, factors);
  if constexpr (Form::MINIMUMS) {
    minimums_of_256<Form, WHOLE>(view, minimums);
    const float m[2] = {Form::minimum(view.block(0, 0)), Form::minimum(view.block(1, 0))};
    scale_factors(view, 0, m, minimum_factors);
  }
  // Lanes are registers, which have no index.
  auto add = [&](Outputs& lane) {
    add_terms(factors, values, lane);
    if constexpr (Form::MINIMUMS) add_terms(minimum_factors, minimums, lane);
  };
  switch (block % 8) {
    case 0: add(lanes[0]); break;
    case 1: add(lanes[1]); break;
    case 2: add(lanes[2]); break;
    case 3: add(lanes[3]); break;
    case 4: add(lanes[4]); break;
    case 5: add(lanes[5]); break;
    case 6: add(lanes[6]); break;
    default: add(lanes[7]); break;
  }
}

// A step's blocks of 32, at most `count` of them, to lanes from `FIRST` on.
template <class Form, bool WHOLE, int FIRST>
DEVICE void add_blocks_of_32(const TileView<Form>& view, int count, Outputs* lanes) {
  int32_t magic[4];
  fill(magic, MAGIC_BITS);
  UNROLL for (int block = 0; block < Staged<Form>::BLOCKS; ++block) {
    if (block >= count) break;
    uint32_t a[4];
    weights_of(view, block, 0, a);
    Outputs values, factors;
    UNROLL for (int t = 0; t < 2; ++t) {
      uint32_t b[2];
      entries_of(view, t, 32 * block, b);
      int32_t d[4];
      multiply<32, WHOLE>(d, a, b, magic);
      UNROLL for (int i = 0; i < 4; ++i) values[t][i] = small_as_float(d[i]);
    }
    const float d[2] = {Form::scale(view.block(0, block)), Form::scale(view.block(1, block))};
    scale_factors(view, block, d, factors);
    add_terms(factors, values, lanes[FIRST + block]);
    if constexpr (Form::MINIMUMS) {
      UNROLL for (int t = 0; t < 2; ++t) {
        UNROLL for (int i = 0; i < 2; ++i) {
          const uint32_t both = load_as<uint32_t>(view.sums(view.first_output(t) + i) + 4 * block);
          values[t][i] = values[t][2 + i] = small_as_float((int16_t)both + (int16_t)(both >> 16) + MAGIC_BITS);
        }
      }
      const float m[2] = {Form::minimum(view.block(0, block)), Form::minimum(view.block(1, block))};
      scale_factors(view, block, m, factors);
      add_terms(factors, values, lanes[FIRST + block]);
    }
  }
}

template <class Form, bool WHOLE>
DEVICE void one_tile(const LinearArgs& a, const TilePlace& at, Staged<Form>* staged) {
  using S = Staged<Form>;
  const int columns = (int)a.columns;
  const int warp = warp_of_block(), group = lane_of_warp() / 4, place = lane_of_warp() % 4;
  const int row_of_tile = warp % 4 * 16 + group, entry_of_tile = warp / 4 * 16;
  uint32_t q;
  {
    const int entry = at.first + threadIdx.x / 8;
    q = (uint32_t)row_of_entry(a, entry < at.stop ? entry : at.stop - 1) * columns;
  }
  Outputs lanes[8];
  UNROLL for (int l = 0; l < 8; ++l) {
    UNROLL for (int t = 0; t < 2; ++t) {
      UNROLL for (int i = 0; i < 4; ++i) lanes[l][t][i] = 0.0f;
    }
  }
  const int blocks = columns / Form::BLOCK;
  const int steps = (blocks + S::BLOCKS - 1) / S::BLOCKS;
  // Begins a step's copies and computes the one before. One barrier is enough: behind it the step before is there, and
  // nobody reads the half that is written now any more, neither for two steps ago nor for the tile before.
  for (int step = 0; step <= steps; ++step) {
    copies_done();
    __syncthreads();
    if (step < steps) {
      const int left = S::BLOCKS == 1 ? 1 : blocks - step * S::BLOCKS;
      stage<Form>(a, at, step, left < S::BLOCKS ? left : S::BLOCKS, q, staged[step % 2]);
      q += S::STEP;
    }
    if (step == 0 || !at.has(entry_of_tile)) continue;
    const S& now = staged[(step - 1) % 2];
    TileView<Form> view{now, {}, a.grid, entry_of_tile + group, place};
    UNROLL for (int i = 0; i < 2; ++i) {
      const int row = row_of_tile + 8 * i;
      // The lowest bits of its address in the card's memory are those of its place here.
      const uint32_t begins = (uint32_t)(uint64_t)at.matrix + at.byte_of(a, row) + (step - 1) * S::STEP_BYTES;
      view.rows[i] = now.weights + row * S::ROW + (begins & S::MAY_BEGIN_AT);
    }
    if constexpr (Form::BLOCK == 256) {
      add_block_of_256<Form, WHOLE>(view, step - 1, lanes);
    } else {
      const int count = blocks - (step - 1) * S::BLOCKS;
      if (step % 2 == 1) {
        add_blocks_of_32<Form, WHOLE, 0>(view, count, lanes);
      } else {
        add_blocks_of_32<Form, WHOLE, 4>(view, count, lanes);
      }
    }
  }
  UNROLL for (int t = 0; t < 2; ++t) {
    UNROLL for (int i = 0; i < 4; ++i) {
      UNROLL for (int by = 4; by > 0; by /= 2) {
        UNROLL for (int l = 0; l < by; ++l) lanes[l][t][i] = lanes[l][t][i] + lanes[l + by][t][i];
      }
      const int entry = at.first + entry_of_tile + 8 * t + 2 * place + i % 2;
      const int row = at.first_row + row_of_tile + 8 * (i / 2);
      if (entry < at.stop && row < a.rows_out) a.out[(int64_t)entry * a.out_stride + row] = lanes[0][t][i];
    }
  }
}

// Grid: x tiles of entries, y tiles of rows of weights, z groups. A group of more entries than x has tiles for takes
// several turns. Neighbours in x run at about the same time and read the same weights: all but the first find them in
// the card's cache.
template <class Form, bool WHOLE = SIXTEEN_ROWS>
DEVICE void tiles(const LinearArgs& a) {
  __shared__ Staged<Form> staged[2];
  __shared__ TilePlace at;
  static_assert(sizeof staged + sizeof at <= 48 << 10, "shared memory of a block");
  if (threadIdx.x == 0) {
    const Group group = group_of(a, (int)blockIdx.z);
    at = {group.first < group.stop ? a.matrices[group.slot] : nullptr, (int)blockIdx.y * TILE_ROWS,
          group.first + (int)blockIdx.x * TILE_ENTRIES, group.stop};
  }
  __syncthreads();
  while (at.first < at.stop) {
    one_tile<Form, WHOLE>(a, at, staged);
    __syncthreads();
    if (threadIdx.x == 0) at.first += (int)gridDim.x * TILE_ENTRIES;
    __syncthreads();
  }
}
