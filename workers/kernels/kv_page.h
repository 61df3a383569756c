// Pages of keys and values, and how rows get into them. docs/attention.md has the layout.
//
// A page holds PAGE_POSITIONS positions of one layer, head by head: keys, values, and in int8 the scales of both.
// Keys and values lie in panels of sixteen columns. A key is a column of its panel, so that the scores of sixteen
// keys are summed side by side; of the values, a dimension is a column. In bfloat16 two successive rows of a panel
// are interleaved, so that widening takes one operation.

template <class W>
struct Panel {
  const W* data;

  static ALWAYS_INLINE int64_t offset(int64_t row, int64_t column) { return row * PANEL + column; }
  // Rows `row` and `row` + 1; `row` is even.
  ALWAYS_INLINE Lanes even(int64_t row) const { return Lanes::load(data + row * PANEL); }
  ALWAYS_INLINE Lanes odd(int64_t row) const { return Lanes::load(data + (row + 1) * PANEL); }
};

template <>
struct Panel<bf16> {
  const bf16* data;

  static ALWAYS_INLINE int64_t offset(int64_t row, int64_t column) {
    return row / 2 * 2 * PANEL + 2 * column + row % 2;
  }
  ALWAYS_INLINE Lanes even(int64_t row) const { return Lanes::load_even(data + row * PANEL); }
  ALWAYS_INLINE Lanes odd(int64_t row) const { return Lanes::load_odd(data + row * PANEL); }
};

// One head's part of a page. `width` is head_dim rounded up to whole panels; the rest of it is never written,
// and is zero because pages begin as zeros.
template <class W>
struct HeadPage {
  W* data;
  int64_t width;

  static ALWAYS_INLINE HeadPage at(int64_t page, int64_t head, int64_t width) {
    constexpr int64_t scale_bytes = sizeof(W) == 1 ? 2 * sizeof(float) : 0;
    const int64_t bytes = PAGE_POSITIONS * (2 * width * (int64_t)sizeof(W) + scale_bytes);
    return {(W*)(page + head * bytes), width};
  }
  // Keys of positions 16 group to 16 group + 15: rows are dimensions.
  ALWAYS_INLINE Panel<W> keys(int64_t group) const { return {data + group * PANEL * width}; }
  // Dimensions 16 group to 16 group + 15 of all values: rows are positions.
  ALWAYS_INLINE Panel<W> values(int64_t group) const {
    return {data + PAGE_POSITIONS * width + group * PANEL * PAGE_POSITIONS};
  }
  ALWAYS_INLINE float* key_scales() const { return (float*)(data + 2 * PAGE_POSITIONS * width); }
  ALWAYS_INLINE float* value_scales() const { return key_scales() + PAGE_POSITIONS; }
};

// To nearest, ties to even.
static ALWAYS_INLINE bf16 round_bf16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return {(uint16_t)(x == x ? rounded : 0x7fc0)};
}

static ALWAYS_INLINE void round_row(const float* x, float* out, int64_t D, float*) {
  std::memcpy(out, x, D * sizeof(float));
}

static ALWAYS_INLINE void round_row(const float* x, bf16* out, int64_t D, float*) {
  for (int64_t d = 0; d < D; ++d) out[d] = round_bf16(x[d]);
}

static ALWAYS_INLINE void round_row(const float* x, int8_t* out, int64_t D, float* scale) {
  *scale = round_bytes(x, D, out);
}

// Rotates pairs (d, d + half) of a row, with cos and sin of both members; sin of the first is negated already.
static ALWAYS_INLINE void rotate(const float* x, const float* cos, const float* sin, float* out, int64_t D,
                                 int64_t half) {
  for (int64_t d = 0; d < half; ++d) out[d] = x[d] * cos[d] + x[d + half] * sin[d];
  for (int64_t d = half; d < 2 * half; ++d) out[d] = x[d] * cos[d] + x[d - half] * sin[d];
  for (int64_t d = 2 * half; d < D; ++d) out[d] = x[d];
}

// A projected row of head h < num_heads + num_kv_heads, normed and rotated.
static void norm_and_rotate(const AttentionArgs& a, int64_t row, int64_t position, int64_t h, float* out) {
  const int64_t D = a.heads->head_dim;
  const float* x = a.qkv + row * a.stride + h * D;
  const float* weight = a.heads->qk_norm + h * D;
  const float inverse = 1.0f / __builtin_sqrtf(dot_self(x, D) / (float)D + a.heads->eps);
  float normed[MOST_HEAD_DIM];
  for (int64_t d = 0; d < D; ++d) normed[d] = x[d] * inverse * weight[d];
  rotate(normed, a.rotation->cos + position * D, a.rotation->sin + position * D, out, D, a.rotation->half);
}

template <class W>
static void write_row(const AttentionArgs& a, const SequenceWork& of, int64_t row, int64_t kv_head) {
  const AttentionHeads& heads = *a.heads;
  const int64_t D = heads.head_dim, position = of.position + row - of.row, j = position % PAGE_POSITIONS;
  const int64_t width = (D + PANEL - 1) / PANEL * PANEL;
  const HeadPage<W> page = HeadPage<W>::at(of.pages[position / PAGE_POSITIONS], kv_head, width);
  float rotated[MOST_HEAD_DIM], scale = 0.0f;
  W key[MOST_HEAD_DIM], value[MOST_HEAD_DIM];

  norm_and_rotate(a, row, position, heads.num_heads + kv_head, rotated);
  round_row(rotated, key, D, &scale);
  if (sizeof(W) == 1) page.key_scales()[j] = scale;
  round_row(a.qkv + row * a.stride + (heads.num_heads + heads.num_kv_heads + kv_head) * D, value, D, &scale);
  if (sizeof(W) == 1) page.value_scales()[j] = scale;

  W* keys = const_cast<W*>(page.keys(j / PANEL).data);
  for (int64_t d = 0; d < D; ++d) keys[Panel<W>::offset(d, j % PANEL)] = key[d];
  for (int64_t group = 0; group * PANEL < D; ++group) {
    W* values = const_cast<W*>(page.values(group).data) + Panel<W>::offset(j, 0);
    const int64_t columns = D - group * PANEL < PANEL ? D - group * PANEL : PANEL;
    const int64_t step = Panel<W>::offset(0, 1);
    for (int64_t c = 0; c < columns; ++c) values[c * step] = value[group * PANEL + c];
  }
}

// Whose row, work item or join number `at` is; FIRST is each sequence's first one. A sequence may have no joins: then
// the next one has the same first.
template <int64_t SequenceWork::*FIRST>
static ALWAYS_INLINE const SequenceWork& sequence_of(const AttentionWork& work, int64_t at) {
  const SequenceWork* first = work.sequences;
  for (int64_t left = work.num_sequences; left > 1;) {
    const int64_t half = left / 2;
    if (first[half].*FIRST <= at) first += half;
    left -= half;
  }
  return *first;
}

// New keys and values into their pages.
template <class W>
static void write_rows(const AttentionArgs& a) {
  const int64_t kv_heads = a.heads->num_kv_heads;
  const int threads = 2 * a.num_rows * kv_heads * a.heads->head_dim < SERIAL_ELEMENTS ? 1 : a.threads;
  each_item(a.num_rows, threads, [&](int64_t row, int) {
    const SequenceWork& of = sequence_of<&SequenceWork::row>(*a.work, row);
    for (int64_t h = 0; h < kv_heads; ++h) write_row<W>(a, of, row, h);
  });
}
