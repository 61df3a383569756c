// The dense feed-forward and the routed experts' sum on a fixed-point grid.

static ALWAYS_INLINE int64_t block_columns(int64_t item, int64_t total) {
  const int64_t left = total - item * FFN_COLUMNS;
  return left < FFN_COLUMNS ? left : FFN_COLUMNS;
}

// act(gate) * up of `columns` intermediate units, in place of the gate: gate [rows, ldg], up [rows, columns].
static ALWAYS_INLINE void activate(float* gate, int64_t ldg, const float* up, int64_t rows, int64_t columns,
                                   float limit) {
  for (int64_t r = 0; r < rows; ++r) swiglu_run(gate + r * ldg, up + r * columns, gate + r * ldg, columns, limit);
}

// The rows between an FFN's two halves, as the second half takes them.
static ALWAYS_INLINE Inputs inputs_of(const Between& between, int64_t I, const DotRounded* dots) {
  const RoundedRows rounded{between.q, between.scales, between.sums, I, between.block, nullptr};
  return {between.x, rounded, rounded, nullptr, I, dots};
}

static ALWAYS_INLINE void round_between(const Between& between, int64_t row, int64_t I) {
  round_row(between.x + row * I, I, between.block, between.q + row * I, between.scales + row * (I / between.block),
            between.sums + row * (I / 16));
}

static void dense_ffn(const FfnArgs& a) {
  const int threads = threads_for(3 * a.T * a.H * a.I, a.threads);
  const int64_t up_items = (a.I + FFN_COLUMNS - 1) / FFN_COLUMNS;
  const int64_t down_items = (a.H + FFN_COLUMNS - 1) / FFN_COLUMNS;
  const Inputs activations = inputs_of(a.between, a.I, a.x->dots);
  each_item(up_items, threads, [&](int64_t item, int thread) {
    float* up_scratch = a.up_scratch + thread * a.T * FFN_COLUMNS;
    const int64_t i = item * FFN_COLUMNS;
    const int64_t columns = block_columns(item, a.I);
    dot_matrix(*a.x, 0, a.T, *a.gate, i, columns, a.between.x + i, a.I);
    dot_matrix(*a.x, 0, a.T, *a.up, i, columns, up_scratch, columns);
    activate(a.between.x + i, a.I, up_scratch, a.T, columns, a.limit);
  });
  if (a.between.block > 0) {
    each_item(a.T, threads, [&](int64_t t, int) { round_between(a.between, t, a.I); });
  }
  each_item(down_items, threads, [&](int64_t item, int) {
    const int64_t h = item * FFN_COLUMNS;
    dot_matrix(activations, 0, a.T, *a.down, h, block_columns(item, a.H), a.out + h, a.H);
  });
}

// Adds rint(weight * y * 2^-e) to out. Returns whether a value left the grid or was not finite. The product
// is one float32; scaling it by a power of two in float64 is exact for every exponent.
static bool add_on_grid(const float* y, int64_t n, float weight, double grid_scale, int32_t max_magnitude,
                        int32_t* out) {
  const double bound = (double)max_magnitude + 0.5;
  int32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float product = weight * y[i];
    const double value = (double)product * grid_scale;
    const int32_t fits = __builtin_fabs(value) < bound;  // false for NaN
    out[i] += (int32_t)__builtin_rint(fits ? value : 0.0);
    bad |= !fits;
  }
  return bad != 0;
}

// float32(values) * 2^exponent, rounded once.
static void grid_to_float32(const int32_t* values, const double* grid_units, float* out, int64_t T, int64_t H,
                            int threads) {
  if (T * H < SERIAL_ELEMENTS) threads = 1;
  each_item(T, threads, [&](int64_t t, int) {
    const double unit = grid_units[t];
    for (int64_t h = 0; h < H; ++h) out[t * H + h] = (float)((double)values[t * H + h] * unit);
  });
}

static ALWAYS_INLINE WeightMatrix of_expert(const ExpertMatrix& matrix, int64_t slot) {
  const float* scales = matrix.scales == nullptr ? nullptr : matrix.scales[slot];
  return {matrix.data[slot], scales, matrix.rows, matrix.columns, matrix.row_bytes, matrix.format};
}

static void moe(const MoeArgs& a) {
  const int64_t entries = a.group_starts[a.num_groups];
  const int threads = threads_for(3 * entries * a.H * a.I, a.threads);
  const int64_t up_items = (a.I + FFN_COLUMNS - 1) / FFN_COLUMNS;
  const int64_t down_items = (a.H + FFN_COLUMNS - 1) / FFN_COLUMNS;
  const Inputs between = inputs_of(a.between, a.I, a.x->dots);
  each_item(a.num_groups * up_items, threads, [&](int64_t item, int thread) {
    float* tile = a.tiles + thread * a.max_rows * FFN_COLUMNS;
    const int64_t group = item / up_items, i = item % up_items * FFN_COLUMNS;
    const int64_t start = a.group_starts[group], rows = a.group_starts[group + 1] - start;
    const int64_t columns = block_columns(item % up_items, a.I), slot = a.group_slots[group];
    float* activations = a.between.x + start * a.I + i;
    dot_matrix(*a.x, start, rows, of_expert(a.experts->gate, slot), i, columns, activations, a.I);
    dot_matrix(*a.x, start, rows, of_expert(a.experts->up, slot), i, columns, tile, columns);
    activate(activations, a.I, tile, rows, columns, a.experts->limit);
  });
  if (a.between.block > 0) {
    each_item(entries, threads, [&](int64_t entry, int) { round_between(a.between, entry, a.I); });
  }
  // A work item owns its columns of every token, so integer additions need no lock.
  each_item(down_items, threads, [&](int64_t item, int thread) {
    float* tile = a.tiles + thread * a.max_rows * FFN_COLUMNS;
    uint8_t* flags = a.flags + thread * a.T;
    const int64_t h = item * FFN_COLUMNS, columns = block_columns(item, a.H);
    for (int64_t t = 0; t < a.T; ++t) {
      for (int64_t i = 0; i < columns; ++i) a.out[t * a.H + h + i] = 0;
    }
    for (int64_t group = 0; group < a.num_groups; ++group) {
      const int64_t start = a.group_starts[group], rows = a.group_starts[group + 1] - start;
      const WeightMatrix down = of_expert(a.experts->down, a.group_slots[group]);
      dot_matrix(between, start, rows, down, h, columns, tile, columns);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t t = a.entry_tokens[start + r];
        const float weight = a.weights[t * a.k + a.entry_columns[start + r]];
        flags[t] |= add_on_grid(tile + r * columns, columns, weight, a.grid_scales[t], a.experts->max_magnitude,
                                a.out + t * a.H + h);
      }
    }
  });
  for (int64_t t = 0; t < a.T; ++t) {
    uint8_t any = 0;
    for (int i = 0; i < threads; ++i) any |= a.flags[i * a.T + t];
    a.saturated[t] = any;
  }
}
