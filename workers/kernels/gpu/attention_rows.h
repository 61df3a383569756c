// What attention's kernels share: what a row sees, how that is cut into parts, and what is done to sums of parts.

#pragma once

#include "elementwise.h"
#include "kv_page.h"

struct AttentionArgs {
  const float* queries;  // [rows, num_heads, head_dim]
  const float* gate;     // [rows, gate_stride]: a logit for each query head; or null
  float* out;            // [rows, num_heads, head_dim]; 0 where there is no such row
  kv::RowPlaces places;
  float* mixes;          // [rows, num_heads, num_parts, width]: of parts, before they are joined
  float* sums;           // [rows, num_heads, num_parts, 2]: their largest score, and sum of weights
  int64_t rows, num_heads, num_kv_heads, head_dim, gate_stride, window, num_parts;
  float bits;            // the scale of scores times log2(e)
};

namespace kv {

constexpr int MOST_PAGE_PARTS = 128;
constexpr float LEAST_FLOAT = -3.4028234663852886e38f;

// 2^t for t <= 0.
DEVICE float exp2_one(float t) {
  const float magic = 12582912.0f + 127.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float biased = t + magic;
  const float r = t - (biased - magic);
  float p = fma_rn(1.53533620e-4f, r, 1.33988750e-3f);
  p = fma_rn(p, r, 9.61843692e-3f);
  p = fma_rn(p, r, 5.55033237e-2f);
  p = fma_rn(p, r, 2.40226477e-1f);
  p = fma_rn(p, r, 6.93147182e-1f);
  p = fma_rn(p, r, 1.0f);
  const float result = p * as_float(as_bits(biased) << 23);
  return t < -126.0f ? 0.0f : result;
}
DEVICE float weight_of(float score, float most, float bits) { return exp2_one((score - most) * bits); }
DEVICE float larger(float a, float b) { return a > b ? a : b; }

// What a row sees: positions `first` to `stop` - 1.
struct Range {
  int first, stop;

  DEVICE bool any() const { return first < stop; }
  DEVICE int first_page() const { return first / PAGE; }
  DEVICE int last_page() const { return (stop - 1) / PAGE; }
};
DEVICE Range seen_from(int32_t position, int64_t window) {
  if (position < 0) return {0, 0};
  const int stop = position + 1;
  return {window > 0 && stop > window ? (int)(stop - window) : 0, stop};
}

// How the pages that a row sees are cut into parts.
struct Parts {
  int first_page, pages;
  bool by_page;

  static DEVICE Parts of(Range seen) {
    const int pages = seen.last_page() - seen.first_page() + 1;
    return {seen.first_page(), pages, pages <= MOST_PAGE_PARTS};
  }
  DEVICE int first_span() const { return first_page / SPAN_PAGES; }
  DEVICE int spans() const { return (first_page + pages - 1) / SPAN_PAGES - first_span() + 1; }
  DEVICE int count() const { return by_page ? pages : spans(); }
  DEVICE int begin(int part) const {
    if (by_page) return first_page + part;
    const int page = (first_span() + part) * SPAN_PAGES;
    return page < first_page ? first_page : page;
  }
  DEVICE int end(int part) const {
    if (by_page) return first_page + part + 1;
    const int page = (first_span() + part + 1) * SPAN_PAGES, stop = first_page + pages;
    return page > stop ? stop : page;
  }
};

DEVICE float gated(const AttentionArgs& a, int64_t row, int64_t head, float x, float inverse) {
  const float out = x * inverse;
  return a.gate ? out * sigmoid_one(a.gate[row * a.gate_stride + head]) : out;
}

}  // namespace kv
