// The dense feed-forward and the routed experts' sum on a fixed-point grid.

// Activations act(gate x) * up x of `columns` intermediate units of rows of x, to out [rows, ldo].
template <class W>
static void gate_up_block(const Rows x, int64_t rows, int64_t H, const W* gate, const W* up, int64_t columns,
                          float limit, float* up_scratch, float* out, int64_t ldo) {
  dot_block(x, rows, gate, H, columns, H, out, ldo);
  dot_block(x, rows, up, H, columns, H, up_scratch, columns);
  for (int64_t r = 0; r < rows; ++r) {
    swiglu_run(out + r * ldo, up_scratch + r * columns, out + r * ldo, columns, limit);
  }
}

static ALWAYS_INLINE int64_t block_columns(int64_t item, int64_t total) {
  const int64_t left = total - item * FFN_COLUMNS;
  return left < FFN_COLUMNS ? left : FFN_COLUMNS;
}

template <class W>
static void dense_ffn(const FfnArgs& a) {
  const int threads = threads_for(3 * a.T * a.H * a.I, a.threads);
  const int64_t up_items = (a.I + FFN_COLUMNS - 1) / FFN_COLUMNS;
  const int64_t down_items = (a.H + FFN_COLUMNS - 1) / FFN_COLUMNS;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float* up_scratch = a.up_scratch + omp_get_thread_num() * a.T * FFN_COLUMNS;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < up_items; ++item) {
      const int64_t i = item * FFN_COLUMNS;
      gate_up_block(Rows{a.x, a.H, nullptr}, a.T, a.H, (const W*)a.gate + i * a.H, (const W*)a.up + i * a.H,
                    block_columns(item, a.I), a.limit, up_scratch, a.activations + i, a.I);
    }
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < down_items; ++item) {
      const int64_t h = item * FFN_COLUMNS;
      dot_block(Rows{a.activations, a.I, nullptr}, a.T, (const W*)a.down + h * a.I, a.I,
                block_columns(item, a.H), a.I, a.out + h, a.H);
    }
  }
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
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < T; ++t) {
    const double unit = grid_units[t];
    for (int64_t h = 0; h < H; ++h) out[t * H + h] = (float)((double)values[t * H + h] * unit);
  }
}

template <class W>
static void moe(const MoeArgs& a) {
  const int64_t entries = a.group_starts[a.num_groups];
  const int threads = threads_for(3 * entries * a.H * a.I, a.threads);
  const int64_t up_items = (a.I + FFN_COLUMNS - 1) / FFN_COLUMNS;
  const int64_t down_items = (a.H + FFN_COLUMNS - 1) / FFN_COLUMNS;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    float* tile = a.tiles + thread * 2 * a.max_rows * FFN_COLUMNS;
    uint8_t* flags = a.flags + thread * a.T;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < a.num_groups * up_items; ++item) {
      const int64_t group = item / up_items, i = item % up_items * FFN_COLUMNS;
      const int64_t start = a.group_starts[group], rows = a.group_starts[group + 1] - start;
      const int64_t weights_at = (a.group_slots[group] * a.I + i) * a.H;
      gate_up_block(Rows{a.x, a.H, a.entry_tokens + start}, rows, a.H, (const W*)a.gate + weights_at,
                    (const W*)a.up + weights_at, block_columns(item % up_items, a.I), a.limit, tile,
                    a.activations + start * a.I + i, a.I);
    }
    // A work item owns its columns of every token, so integer additions need no lock.
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < down_items; ++item) {
      const int64_t h = item * FFN_COLUMNS, columns = block_columns(item, a.H);
      for (int64_t t = 0; t < a.T; ++t) {
        for (int64_t i = 0; i < columns; ++i) a.out[t * a.H + h + i] = 0;
      }
      for (int64_t group = 0; group < a.num_groups; ++group) {
        const int64_t start = a.group_starts[group], rows = a.group_starts[group + 1] - start;
        const Rows activations{a.activations + start * a.I, a.I, nullptr};
        const W* down = (const W*)a.down + (a.group_slots[group] * a.H + h) * a.I;
        dot_block(activations, rows, down, a.I, columns, a.I, tile, columns);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t t = a.entry_tokens[start + r];
          const float weight = a.weights[t * a.k + a.entry_columns[start + r]];
          flags[t] |= add_on_grid(tile + r * columns, columns, weight, a.grid_scales[t], a.max_magnitude,
                                  a.out + t * a.H + h);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < a.T; ++t) {
      uint8_t any = 0;
      for (int i = 0; i < threads; ++i) any |= a.flags[i * a.T + t];
      a.saturated[t] = any;
    }
  }
}
