// The forms that weights may be kept in. Every instruction set has this table; a matrix names its row.

using DotFloat = void (*)(const Rows x, int64_t T, const WeightMatrix& matrix, int64_t first, int64_t N, float* out,
                          int64_t ldo);

template <class W>
static void dot_plain(const Rows x, int64_t T, const WeightMatrix& matrix, int64_t first, int64_t N, float* out,
                      int64_t ldo) {
  const Plain<W> weights{(const W*)matrix.data, matrix.columns};
  dot_block(x, T, weights.from(first), N, matrix.columns, out, ldo);
}

static void dot_half(const Rows x, int64_t T, const WeightMatrix& matrix, int64_t first, int64_t N, float* out,
                     int64_t ldo) {
  const Float16 weights{(const uint16_t*)matrix.data, matrix.columns};
  dot_block(x, T, weights.from(first), N, matrix.columns, out, ldo);
}

static void dot_fp8(const Rows x, int64_t T, const WeightMatrix& matrix, int64_t first, int64_t N, float* out,
                    int64_t ldo) {
  const Fp8E4m3 weights{matrix.data, matrix.scales, matrix.columns, 0};
  dot_block(x, T, weights.from(first), N, matrix.columns, out, ldo);
}

struct Format {
  const char* name;
  int64_t block_weights, block_bytes, rounding_block;
  DotFloat dot;  // null where activations are rounded
};

#define POTLUCK_FORMAT(Type, name) {name, Type::BLOCK, Type::BLOCK_BYTES, Type::BLOCK, nullptr},
static const Format FORMATS[] = {
    {"float32", 1, 4, 0, dot_plain<float>},
    {"bfloat16", 1, 2, 0, dot_plain<bf16>},
    {"float16", 1, 2, 0, dot_half},
    {"fp8_e4m3", 1, 1, 0, dot_fp8},
    QUANTISED_TYPES(POTLUCK_FORMAT)
};
#undef POTLUCK_FORMAT

// The row of a form, -1 where the kernels know none of this name and these blocks.
static int format_index(const char* name, int64_t block_weights, int64_t block_bytes) {
  for (int i = 0; i < (int)(sizeof FORMATS / sizeof FORMATS[0]); ++i) {
    const Format& format = FORMATS[i];
    if (std::strcmp(format.name, name) == 0 && format.block_weights == block_weights &&
        format.block_bytes == block_bytes) {
      return i;
    }
  }
  return -1;
}

static int64_t rounding_block(int64_t format) { return FORMATS[format].rounding_block; }

// out[t * ldo + n] = dot(row start + t, the matrix's row first + n) for t < T, n < N.
static void dot_matrix(const Inputs& x, int64_t start, int64_t T, const WeightMatrix& matrix, int64_t first, int64_t N,
                       float* out, int64_t ldo) {
  const Format& format = FORMATS[matrix.format];
  if (format.rounding_block == 0) {
    format.dot(Rows{x.x, x.K, x.index}.from(start), T, matrix, first, N, out, ldo);
    return;
  }
  RoundedRows rows = format.rounding_block == 256 ? x.by_256 : x.by_32;
  if (x.index != nullptr) {
    rows.index = x.index + start;
  } else {
    rows.q += start * rows.K;
    rows.scales += start * (rows.K / rows.block);
    rows.sums += start * (rows.K / 16);
  }
  x.dots[matrix.format](rows, T, matrix.data + first * matrix.row_bytes, matrix.row_bytes, N, out, ldo);
}

// Columns of one work item of a linear layer.
constexpr int64_t LINEAR_COLUMNS = 48;

static void linear(const LinearArgs& a) {
  const int threads = threads_for(a.T * a.N * a.x->K, a.threads);
  int64_t items = 0;
  for (int64_t m = 0; m < a.num_matrices; ++m) items += (a.matrices[m].rows + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS;
  each_item(items, threads, [&](int64_t item, int) {
    int64_t in_matrix = item, before = 0, m = 0;
    for (;; ++m) {
      const int64_t of_matrix = (a.matrices[m].rows + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS;
      if (in_matrix < of_matrix) break;
      in_matrix -= of_matrix;
      before += a.matrices[m].rows;
    }
    const int64_t n = in_matrix * LINEAR_COLUMNS, left = a.matrices[m].rows - n;
    dot_matrix(*a.x, 0, a.T, a.matrices[m], n, left < LINEAR_COLUMNS ? left : LINEAR_COLUMNS, a.out + before + n, a.N);
  });
}
