// Projected queries, keys and values: normed, rotated, and written into pages (docs/attention.md, 'What goes into a page').

#pragma once

#include "kv_page.h"

struct KvRowsArgs {
  const float* qkv;      // [rows, stride]: query, key and value heads, then what is not wanted here
  const float* qk_norm;  // [num_heads + num_kv_heads, head_dim]
  const float* cos;      // [rows, head_dim]
  const float* sin;      // [rows, head_dim]: negated for the first of each pair
  float* queries;        // [rows, num_heads, head_dim], written
  kv::RowPlaces places;
  int64_t rows, stride, num_heads, num_kv_heads, head_dim, half;
  float eps;
};

namespace kv {

DEVICE void put(float x, float, float* to) { *to = x; }
DEVICE void put(float x, float, uint16_t* to) { *to = round_bfloat16(x); }
DEVICE void put(float x, float scale, int8_t* to) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  *to = scale > 0.0f ? (int8_t)(int32_t)((divide(x, scale) + magic) - magic) : (int8_t)0;
}

// A row on its way into a page: `of(d)` is its number d, `at(d)` where it goes.
template <class W, class Of, class At>
DEVICE void write_row(int head_dim, float* to_scale, const Of& of, const At& at) {
  float scale = 0.0f;
  if constexpr (sizeof(W) == 1) {
    uint32_t most = 0;
    for (int d = lane_of_warp(); d < head_dim; d += WARP) {
      const uint32_t magnitude = as_bits(of(d)) & 0x7fffffff;
      most = magnitude > most ? magnitude : most;
    }
    most = warp_max(most);
    scale = divide(as_float(most), 127.0f);
    if (scale < 0x1p-126f) scale = 0.0f;
    if (most >= 0x7f800000) scale = not_a_number();
    if (lane_of_warp() == 0) *to_scale = scale;
  }
  for (int d = lane_of_warp(); d < head_dim; d += WARP) put(of(d), scale, at(d));
}

// A warp has a head of a row. What it reads again comes from the first-level cache: a head's row is 0.5 KB. The bytes are
// those of qkv once, so that a layer's share is a few hundredths of what its projections read; what counts is that no
// launch is needed for the parts.
template <class W>
DEVICE void kv_rows(const KvRowsArgs& a) {
  const int64_t item = (int64_t)blockIdx.x * (blockDim.x / WARP) + warp_of_block();
  const int64_t heads = a.num_heads + 2 * a.num_kv_heads;
  if (item >= a.rows * heads) return;
  const int64_t row = item / heads, head = item % heads;
  const int32_t position = a.places.positions[row];
  if (position < 0) return;
  const int lane = lane_of_warp(), head_dim = (int)a.head_dim, half = (int)a.half;
  const float* x = a.qkv + row * a.stride + head * head_dim;

  const int j = position % PAGE, width = (head_dim + PANEL - 1) / PANEL * PANEL;
  const int64_t kv_head = (head - a.num_heads) % a.num_kv_heads;
  const auto page = [&] {
    const int64_t* table = a.places.pages + a.places.sequences[row] * a.places.table_stride;
    return HeadPage<W>::at(table[position / PAGE], kv_head, width);
  };
  if (head >= a.num_heads + a.num_kv_heads) {
    const HeadPage<W> to = page();
    write_row<W>(head_dim, to.value_scales() + j, [&](int d) { return x[d]; }, [&](int d) { return to.value(d, j); });
    return;
  }

  float sum = 0.0f;
  for (int d = lane % 16; d < head_dim; d += 16) sum = fma_rn(x[d], x[d], sum);
  sum = tree_of_sixteen(sum);
  const float inverse = divide(1.0f, square_root(divide(sum, (float)head_dim) + a.eps));
  const float* weight = a.qk_norm + head * head_dim;
  const float *cos = a.cos + row * head_dim, *sin = a.sin + row * head_dim;
  const auto normed = [&](int d) { return x[d] * inverse * weight[d]; };
  const auto rotated = [&](int d) {
    if (d >= 2 * half) return normed(d);
    return normed(d) * cos[d] + normed(d < half ? d + half : d - half) * sin[d];
  };
  if (head >= a.num_heads) {
    const HeadPage<W> to = page();
    write_row<W>(head_dim, to.key_scales() + j, rotated, [&](int d) { return to.key(d, j); });
    return;
  }
  float* queries = a.queries + (row * a.num_heads + head) * head_dim;
  for (int d = lane; d < head_dim; d += WARP) queries[d] = rotated(d);
}

}  // namespace kv

KERNEL kv_rows_float32(const KvRowsArgs a) { kv::kv_rows<float>(a); }
KERNEL kv_rows_bfloat16(const KvRowsArgs a) { kv::kv_rows<uint16_t>(a); }
KERNEL kv_rows_int8(const KvRowsArgs a) { kv::kv_rows<int8_t>(a); }
