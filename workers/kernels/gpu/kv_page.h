// Pages of keys and values on a card: the bytes that docs/attention.md describes, and how a thread reads four columns of a
// panel at once. A page's address is a multiple of 16.

#pragma once

#include "warp.h"

namespace kv {

constexpr int PAGE = 128, PANEL = 16, SPAN_PAGES = 8;

// Where rows stand, read from the card's memory, so that a graph serves every step.
struct RowPlaces {
  const int64_t* pages;      // [sequences, table_stride]: entry i of a sequence is the page of positions from 128 i on
  const int32_t* sequences;  // [rows]
  const int32_t* positions;  // [rows]; below 0: there is no such row
  int64_t table_stride;
};

// What is loaded, or stored, in one operation.
template <class T, int N>
struct alignas(N * sizeof(T)) Together {
  T v[N];
};

// Four columns of a panel's rows. A load has ROWS rows of them, the first of which is a multiple of ROWS.
template <class W>
struct Columns;

template <>
struct Columns<float> {
  using Load = Together<float, 4>;
  static constexpr int ROWS = 1;
  const float* data;

  static DEVICE int64_t offset(int64_t row, int64_t column) { return row * PANEL + column; }
  DEVICE Load load(int row) const { return *(const Load*)(data + row * PANEL); }
  static DEVICE float get(const Load& load, int, int column) { return load.v[column]; }
};

// Two successive rows take turns.
template <>
struct Columns<uint16_t> {
  using Load = Together<uint32_t, 4>;
  static constexpr int ROWS = 2;
  const uint16_t* data;

  static DEVICE int64_t offset(int64_t row, int64_t column) { return row / 2 * 2 * PANEL + 2 * column + row % 2; }
  DEVICE Load load(int row) const { return *(const Load*)(data + row * PANEL); }
  static DEVICE float get(const Load& load, int row, int column) {
    return as_float(row ? load.v[column] & 0xffff0000u : load.v[column] << 16);
  }
};

template <>
struct Columns<int8_t> {
  using Load = uint32_t;
  static constexpr int ROWS = 1;
  const int8_t* data;

  static DEVICE int64_t offset(int64_t row, int64_t column) { return row * PANEL + column; }
  DEVICE Load load(int row) const { return *(const Load*)(data + row * PANEL); }
  // A byte below 2^23's bits is 2^23 + byte: two cheap operations, where a card converts few integers at a time.
  static DEVICE float get(Load load, int, int column) {
    return as_float(0x4b000000u | ((load ^ 0x80808080u) >> 8 * column & 0xff)) - (8388608.0f + 128.0f);
  }
};

// One head's part of a page; `width` is head_dim rounded up to whole panels.
template <class W>
struct HeadPage {
  W* data;
  int width;

  static DEVICE HeadPage at(int64_t page, int64_t head, int width) {
    constexpr int64_t scale_bytes = sizeof(W) == 1 ? 2 * sizeof(float) : 0;
    return {(W*)(page + head * PAGE * (2 * width * (int64_t)sizeof(W) + scale_bytes)), width};
  }
  // Dimension d of the key at position j, and of the value.
  DEVICE W* key(int d, int j) const {
    return data + (int64_t)(j / PANEL) * PANEL * width + Columns<W>::offset(d, j % PANEL);
  }
  DEVICE W* value(int d, int j) const {
    return data + (int64_t)PAGE * width + (int64_t)(d / PANEL) * PANEL * PAGE + Columns<W>::offset(j, d % PANEL);
  }
  // Rows are dimensions, columns positions from j on, a multiple of 4; and the other way round.
  DEVICE Columns<W> keys(int j) const { return {key(0, j)}; }
  DEVICE Columns<W> values(int d) const { return {value(d, 0)}; }
  DEVICE float* key_scales() const { return (float*)(data + 2 * PAGE * (int64_t)width); }
  DEVICE float* value_scales() const { return key_scales() + PAGE; }
};

}  // namespace kv
