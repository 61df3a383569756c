// What the exported functions hand to the kernels, and the table of kernels of one instruction set.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "gpu/row_choice.h"

struct bf16 {
  uint16_t bits;
};

enum Status : int {
  OK = 0,
  OUT_OF_MEMORY = -1,
  BAD_EXPERT_ID = -2,
  BAD_EXPONENT = -3,
  BAD_ROUNDED_ROWS = -4,
  PAGES_NOT_HELD = -5
};

// Memory of one call, released with it; 64-byte aligned pieces.
class Scratch {
 public:
  ~Scratch() {
    for (int i = 0; i < count_; ++i) std::free(pieces_[i]);
  }
  template <class T>
  T* take(int64_t n) {
    const size_t bytes = ((size_t)n * sizeof(T) + 127) / 64 * 64;
    void* piece = count_ < MOST ? std::aligned_alloc(64, bytes) : nullptr;
    if (piece == nullptr) {
      failed_ = true;
      return nullptr;
    }
    pieces_[count_++] = piece;
    return static_cast<T*>(piece);
  }
  // x itself, or a copy on a cache line's boundary where several rows are read again for every tile of weights:
  // off it each load takes two lines. Tensors that came in a message lie anywhere.
  const float* aligned(const float* x, int64_t rows, int64_t columns) {
    if (rows < 2 || (uintptr_t)x % 64 == 0) return x;
    float* copy = take<float>(rows * columns);
    if (copy != nullptr) std::memcpy(copy, x, rows * columns * sizeof(float));
    return copy;
  }
  bool failed() const { return failed_; }

 private:
  static constexpr int MOST = 24;
  void* pieces_[MOST];
  int count_ = 0;
  bool failed_ = false;
};

// Small tables of quantised types, which the gguf library has; declared a second time in native.py.
struct Tables {
  const int8_t *iq4, *mxfp4;                                  // [16]
  const uint8_t *iq2_xxs, *iq2_xs, *iq2_s, *iq3_xxs, *iq3_s;  // rows of 8 or 4 magnitudes
  const uint8_t* signs;                                       // [128]: eight sign bits
};

// Activations rounded to 8 bits (docs/arithmetic.md).
struct RoundedRows {
  const int8_t* q;       // [rows, K]
  const float* scales;   // [rows, K / block]
  const int16_t* sums;   // [rows, K / 16]: of sixteen neighbours of q
  int64_t K, block;      // block: 256 or 32
  const int64_t* index;  // row r is row index[r], or r itself where null
};

// out[t * ldo + n] = dot(row t, weight row n) for t < T, n < N; w is the first of the weight rows.
using DotRounded = void (*)(const RoundedRows& x, int64_t T, const uint8_t* w, int64_t row_bytes, int64_t N,
                            float* out, int64_t ldo);

// Rows to multiply, in every form that the matrices at hand want: float32, and rounded in blocks.
struct Inputs {
  const float* x;  // [rows, K], null where only rounded rows came
  RoundedRows by_256, by_32;
  const int64_t* index;
  int64_t K;
  const DotRounded* dots;  // for rounded rows, by form
};

// One weight matrix. Declared a second time in native.py, as are those of experts.
struct WeightMatrix {
  const uint8_t* data;
  const float* scales;                       // one for each square of 128 x 128; null for most forms
  int64_t rows, columns, row_bytes, format;  // format: a row of FORMATS
};

struct LinearArgs {
  const Inputs* x;
  const WeightMatrix* matrices;  // side by side
  int64_t num_matrices;
  float* out;                    // [T, N]
  int64_t T, N;
  int threads;
};

struct RmsNormArgs {
  const float *x, *weight;
  float* out;
  int64_t T, D;
  float eps;
  int zero_centered, threads;
};

struct RouteArgs {
  const float *logits, *bias;
  int32_t* expert_ids;
  float *weights, *scores;  // scores: threads * E floats of scratch
  int64_t T, E, k;
  int normalise;
  float scaling_factor;
  int threads;
};

// Positions of one page of keys and values; sixteen of them make a panel.
constexpr int64_t PAGE_POSITIONS = 128;
constexpr int64_t PANEL = 16;

// Pages that are joined before they meet others: what one thread takes at the least.
constexpr int64_t SPAN_PAGES = 8;

// Query rows of one work item: their sums stay in the second-level cache, and so does a page.
constexpr int64_t MOST_BLOCK_ROWS = 96;

// As large as a configuration may say.
constexpr int64_t MOST_HEAD_DIM = 8192;

// How keys and values are kept.
enum KvForm : int { KV_FLOAT32 = 0, KV_BFLOAT16 = 1, KV_INT8 = 2 };

// What one layer's attention does. Declared a second time in native.py, as are the next two.
struct AttentionHeads {
  const float* qk_norm;  // [num_heads + num_kv_heads, head_dim]
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t window;  // keys a query sees, itself included; 0: all
  float scale, eps;
  int64_t has_gate;
};

// cos and signed sin of positions from 0 on, [positions, head_dim] each. Pairs (d, d + half) rotate.
struct Rotation {
  const float *cos, *sin;
  int64_t half;
};

// One sequence's rows in a pass, from `position` on. The table of layer l is at tables + l * most_pages; its entry i is
// the page of positions from i * PAGE_POSITIONS on, 0 where that is not held.
struct SequenceRows {
  const int64_t* tables;
  int64_t most_pages, position, num_rows;
};

// The first key that the query at a position sees.
static inline int64_t first_key(int64_t position, int64_t window) {
  return window > 0 && position >= window ? position + 1 - window : 0;
}

// How one sequence's rows are cut into work items: blocks of tokens for each KV head, and where that leaves threads
// idle each of these into spans of keys, whose sums are joined afterwards.
struct SequenceWork {
  const int64_t* pages;
  int64_t row, num_rows, position;  // row: its first one in the pass
  int64_t tokens, blocks;           // tokens of a block; blocks of all KV heads
  int64_t first_span, spans;
  int64_t item, join;               // its first work item, and its first block that is joined
  int64_t block_floats;             // of a block's sums
  bool is_split;                    // into spans; else its blocks are whole items
  int64_t sums_at;                  // where those of [blocks, spans] begin, if it is
};

struct AttentionWork {
  SequenceWork* sequences;
  int64_t num_sequences, items, joins;
  float* sums;
  float* memory;  // of each thread three times block_floats: two sums and the queries of the largest block
  int64_t block_floats;
  int threads;
};

struct AttentionArgs {
  const float* qkv;  // [num_rows, stride]: query, key and value heads, then a gate's logit for each query head
  int64_t stride, num_rows;
  const AttentionHeads* heads;
  const Rotation* rotation;
  float* out;        // [num_rows, num_heads, head_dim]
  float bits;        // the scale of scores times log2(e)
  const AttentionWork* work;
  int threads;       // that write rows; of `work` are those that attend, one where that is little work
};

// Where the activations between an FFN's two halves lie, [rows, I], and rounded if the second half wants that.
struct Between {
  float* x;
  int8_t* q;
  float* scales;
  int16_t* sums;
  int64_t block;  // 0: not rounded
};

struct FfnArgs {
  const Inputs* x;
  const WeightMatrix *gate, *up, *down;
  float *out, *up_scratch;  // up_scratch: threads * T * FFN_COLUMNS floats
  Between between;          // T rows
  int64_t T, H, I;
  float limit;
  int threads;
};

// One layer's rows. The next three structures are declared a second time in native.py, field by field.
struct ExpertRowsArgs {
  const float* hidden;             // [T, H]; null where rounded rows came instead
  const int8_t *q_256, *q_32;      // [T, H] each, null where absent
  const float *scales_256, *scales_32;
  const int32_t* expert_ids;       // [T, k], -1 where an expert is computed elsewhere
  const float* weights;            // [T, k]
  const int32_t* scale_exponents;  // [T]
  int64_t T, H, k;
};

// One matrix of each of a layer's experts, by slot, wherever each lies.
struct ExpertMatrix {
  const uint8_t* const* data;
  const float* const* scales;  // null for most forms
  int64_t rows, columns, row_bytes, format;
};

// A layer's experts: gate and up [I, H], down [H, I].
struct ExpertMatricesArgs {
  ExpertMatrix gate, up, down;
  const int32_t* slots;   // [E]: where each expert lies in the matrices, -1 for not here
  int64_t E;
  float limit;            // the SwiGLU clamp, 0 for none
  int32_t max_magnitude;  // of one output in grid units, so that top_k of them fit int32
};

struct MoeArgs {
  const Inputs* x;
  const float* weights;             // [T, k]
  const double* grid_scales;        // [T]: 2^-exponent
  const ExpertMatricesArgs* experts;
  int32_t* out;
  uint8_t* saturated;
  Between between;                  // one row an entry
  float* tiles;                     // threads * max_rows * FFN_COLUMNS floats
  const int64_t* entry_tokens;      // entries grouped by expert: which row of x
  const int64_t* entry_columns;     // and which of its k places
  const int64_t* group_starts;      // num_groups + 1
  const int64_t* group_slots;       // num_groups
  uint8_t* flags;                   // threads * T
  int64_t num_groups, max_rows, T, H, I, k;
  int threads;
};

// One row's choice of a token, and room for it: orders and weights, [vocab] each.
struct ChooseRowArgs {
  const float* logits;
  const uint32_t* banned;  // a bit for each token, lowest first; or null
  const RowChoice* choice;
  uint32_t *orders, *weights;
  int64_t vocab;
};

// Work below this many multiply-adds is done by the caller alone. It takes a core a few tenths of a
// millisecond; waking a thread takes a tenth of that on an idle machine, 10 ms or more when its core is busy.
constexpr int64_t SERIAL_WORK = 1 << 21;

// Grid exponents: beyond any float32, far inside float64.
constexpr int32_t MAX_EXPONENT = 512;

// Columns of one work item of an FFN: enough weights to be worth handing out, few enough to share evenly.
constexpr int64_t FFN_COLUMNS = 64;

struct Kernels {
  const char* name;
  void (*linear)(const LinearArgs&);
  void (*rms_norm)(const RmsNormArgs&);
  void (*exponentials)(const float* x, float* out, int64_t n);
  void (*sigmoid)(const float* x, float* out, int64_t n, int threads);
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t n, float limit, int threads);
  void (*route)(const RouteArgs&);
  int64_t (*choose_token)(const ChooseRowArgs&);
  void (*noise)(const uint64_t* words, double* noise, double* bounds, int64_t n);
  void (*attention[3])(const AttentionArgs&);  // by KvForm
  void (*row_exponents)(const float* x, int32_t* out, int64_t T, int64_t D, int32_t offset, int32_t low,
                        int32_t high, int threads);
  void (*grid_to_float32)(const int32_t* values, const double* grid_units, float* out, int64_t T, int64_t H,
                          int threads);
  void (*dense_ffn)(const FfnArgs&);
  void (*moe)(const MoeArgs&);
  void (*round_rows)(const float* x, int64_t T, int64_t K, int64_t block, int8_t* q, float* scales,
                     int16_t* sums, int threads);
  void (*sum_sixteens)(const int8_t* q, int64_t n, int16_t* sums);
  int (*format_index)(const char* name, int64_t block_weights, int64_t block_bytes);
  int64_t (*rounding_block)(int64_t format);
  const DotRounded* dots;  // by form
};
