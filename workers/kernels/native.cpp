// Row-invariant CPU kernels: a row's bits depend on that row and the weights alone.
//
// native_body.h holds every kernel once and is compiled once per instruction set; an instruction set only
// supplies `Lanes`, sixteen float32 lanes. All of them do the same IEEE operations in the same order
// (fused multiply-adds are explicit, contraction is off), so the choice made at load changes speed, not bits.

#include "arguments.h"
#include "thread_pool.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))
#define ALWAYS_INLINE inline __attribute__((always_inline))
// Loops over a tile's rows and columns must unroll completely, or the accumulators live in memory.
#define UNROLL _Pragma("GCC unroll 32")

// Set once by potluck_set_tables, before any matrix that needs them is made.
static Tables tables;

namespace baseline {
#include "lanes_baseline.h"

#include "native_body.h"
}  // namespace baseline

#if defined(__x86_64__)

// The last three steps of the lane sum, (0+4) (0+2) (0+1), for four vectors of eight at once.
__attribute__((target("avx"), always_inline)) static inline __m128 sum_eights(__m256 a, __m256 b, __m256 c,
                                                                              __m256 d) {
  const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
  const __m256 twos = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
  const __m256 ones = _mm256_add_ps(_mm256_shuffle_ps(twos, twos, 0x88), _mm256_shuffle_ps(twos, twos, 0xDD));
  const __m128 ac = _mm256_castps256_ps128(ones), bd = _mm256_extractf128_ps(ones, 1);
  return _mm_unpacklo_ps(ac, bd);
}

// Blocks 0 to 7 of a group write what the later ones read; compilers cannot see that.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define POTLUCK_PLAIN avx2

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define POTLUCK_FAST avx2
#define POTLUCK_OWN_PANELS
namespace avx2 {
#include "lanes_avx2.h"

#include "native_body.h"
}  // namespace avx2
#undef POTLUCK_OWN_PANELS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
namespace avx512 {
#include "lanes_avx512.h"

#include "native_body.h"
}  // namespace avx512
#undef POTLUCK_FAST
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")
#define POTLUCK_FAST avx512vnni
#define POTLUCK_OWN_PANELS
#define POTLUCK_VNNI
// Only the dot products of quantised types differ from those of avx512.
namespace avx512vnni {
using avx512::widen_half;

#include "quantised.h"

template <class Type>
struct Fastest;

#include "blocks_256.h"

#include "small_blocks_256.h"

#include "panels.h"

#include "fastest_256.h"

#include "rounded_dots.h"
}  // namespace avx512vnni
#undef POTLUCK_VNNI
#undef POTLUCK_OWN_PANELS
#undef POTLUCK_FAST
#pragma GCC pop_options

#undef POTLUCK_PLAIN

#elif defined(__aarch64__)

namespace neon {
#include "lanes_neon.h"

#include "native_body.h"
}  // namespace neon

#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
// Only the dot products of quantised types differ from those of neon.
namespace neondot {
using namespace neon;

#include "blocks_neon.h"

#include "rounded_dots.h"
}  // namespace neondot
#pragma GCC pop_options

#endif

// `isa` has the kernels, `name` the dot products of rounded rows.
#define KERNEL_TABLE(name, isa)                                                                        \
  {                                                                                                    \
    #name, isa::linear, isa::rms_norm, isa::exponentials, isa::sigmoid,                                \
        isa::swiglu, isa::route, isa::choose_token, isa::noise_of,                                     \
        {isa::attention<float>, isa::attention<bf16>, isa::attention<int8_t>}, isa::row_exponents,     \
        isa::grid_to_float32, isa::dense_ffn, isa::moe, isa::round_rows, isa::sum_sixteens,            \
        isa::format_index, isa::rounding_block, name::ROUNDED_DOTS                                     \
  }

static const Kernels TABLES[] = {
#if defined(__x86_64__)
    KERNEL_TABLE(avx512vnni, avx512),
    KERNEL_TABLE(avx512, avx512),
    KERNEL_TABLE(avx2, avx2),
#elif defined(__aarch64__)
    KERNEL_TABLE(neondot, neon),
    KERNEL_TABLE(neon, neon),
#endif
    KERNEL_TABLE(baseline, baseline),
};
constexpr int NUM_TABLES = sizeof TABLES / sizeof TABLES[0];

static bool supported(int index) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (index == 0) return has_avx512 && __builtin_cpu_supports("avx512vnni");
  if (index == 1) return has_avx512;
  if (index == 2) return has_avx2;
#elif defined(__aarch64__) && defined(__linux__)
  if (index == 0) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__) && !defined(__APPLE__)  // Apple's all have dot products
  if (index == 0) return false;
#endif
  return true;
}

static const Kernels* best() {
  int index = 0;
  while (!supported(index)) ++index;
  return &TABLES[index];
}

static const Kernels* active = best();

EXPORT const char* potluck_isa() { return active->name; }

// Chooses an instruction set by name, for tests and measurements; 0 when this machine lacks it.
EXPORT int potluck_set_isa(const char* name) {
  for (int i = 0; i < NUM_TABLES; ++i) {
    if (std::strcmp(TABLES[i].name, name) == 0 && supported(i)) {
      active = &TABLES[i];
      return 1;
    }
  }
  return 0;
}

EXPORT void potluck_set_tables(const Tables* from) { tables = *from; }

static bool rounds_by(const WeightMatrix& matrix, int64_t block) {
  return active->rounding_block(matrix.format) == block;
}

// Rows rounded in blocks, in memory of the call.
static RoundedRows rounded(Scratch& scratch, const float* x, int64_t T, int64_t K, int64_t block, int threads) {
  int8_t* q = scratch.take<int8_t>(T * K);
  float* scales = scratch.take<float>(T * (K / block));
  int16_t* sums = scratch.take<int16_t>(T * (K / 16));
  if (!scratch.failed()) active->round_rows(x, T, K, block, q, scales, sums, threads);
  return {q, scales, sums, K, block, nullptr};
}

// x [T, K] in the forms that these matrices want.
static Inputs inputs(Scratch& scratch, const float* x, int64_t T, int64_t K, const WeightMatrix* const* matrices,
                     int64_t num_matrices, int threads) {
  bool plain = false, by_256 = false, by_32 = false;
  for (int64_t i = 0; i < num_matrices; ++i) {
    plain |= rounds_by(*matrices[i], 0);
    by_256 |= rounds_by(*matrices[i], 256);
    by_32 |= rounds_by(*matrices[i], 32);
  }
  Inputs in{plain ? scratch.aligned(x, T, K) : x, {}, {}, nullptr, K, active->dots};
  if (by_256) in.by_256 = rounded(scratch, x, T, K, 256, threads);
  if (by_32) in.by_32 = rounded(scratch, x, T, K, 32, threads);
  return in;
}

static Between between(Scratch& scratch, int64_t rows, int64_t I, int64_t block) {
  Between of{scratch.take<float>(rows * I), nullptr, nullptr, nullptr, block};
  if (block > 0) {
    of.q = scratch.take<int8_t>(rows * I);
    of.scales = scratch.take<float>(rows * (I / block));
    of.sums = scratch.take<int16_t>(rows * (I / 16));
  }
  return of;
}

constexpr int64_t MOST_MATRICES = 8;

// out [T, all rows of the matrices]: x [T, K] times each transposed, side by side.
EXPORT int potluck_linear(const float* x, const WeightMatrix* matrices, int64_t num_matrices, float* out, int64_t T,
                          int64_t K, int threads) {
  const WeightMatrix* each[MOST_MATRICES];
  int64_t N = 0;
  for (int64_t i = 0; i < num_matrices; ++i) {
    each[i] = matrices + i;
    N += matrices[i].rows;
  }
  Scratch scratch;
  const Inputs in = inputs(scratch, x, T, K, each, num_matrices, threads);
  if (scratch.failed()) return OUT_OF_MEMORY;
  active->linear({&in, matrices, num_matrices, out, T, N, threads});
  return OK;
}

// Rounds rows [T, K] for the wire: q [T, K], scales [T, K / block].
EXPORT int potluck_round_rows(const float* x, int64_t T, int64_t K, int64_t block, int8_t* q, float* scales,
                              int threads) {
  Scratch scratch;
  int16_t* sums = scratch.take<int16_t>(T * (K / 16));
  if (scratch.failed()) return OUT_OF_MEMORY;
  active->round_rows(x, T, K, block, q, scales, sums, threads);
  return OK;
}

EXPORT void potluck_rms_norm(const float* x, const float* weight, float* out, int64_t T, int64_t D, float eps,
                             int zero_centered, int threads) {
  active->rms_norm({x, weight, out, T, D, eps, zero_centered, threads});
}

EXPORT void potluck_exp(const float* x, float* out, int64_t n) { active->exponentials(x, out, n); }

EXPORT void potluck_sigmoid(const float* x, float* out, int64_t n, int threads) {
  active->sigmoid(x, out, n, threads);
}

EXPORT void potluck_swiglu(const float* gate, const float* up, float* out, int64_t n, float limit,
                           int threads) {
  active->swiglu(gate, up, out, n, limit, threads);
}

EXPORT void potluck_row_exponents(const float* x, int32_t* out, int64_t T, int64_t D, int32_t offset,
                                  int32_t low, int32_t high, int threads) {
  active->row_exponents(x, out, T, D, offset, low, high, threads);
}

// 2^exponent as float64; false where that is not a normal number with room to spare.
static bool power_of_two(int32_t exponent, double* out) {
  *out = __builtin_bit_cast(double, (uint64_t)(1023 + (int64_t)exponent) << 52);
  return -MAX_EXPONENT <= exponent && exponent <= MAX_EXPONENT;
}

EXPORT int potluck_grid_to_float32(const int32_t* values, const int32_t* exponents, float* out, int64_t T,
                                   int64_t H, int threads) {
  Scratch scratch;
  double* units = scratch.take<double>(T);
  if (scratch.failed()) return OUT_OF_MEMORY;
  for (int64_t t = 0; t < T; ++t) {
    if (!power_of_two(exponents[t], units + t)) return BAD_EXPONENT;
  }
  active->grid_to_float32(values, units, out, T, H, threads);
  return OK;
}

EXPORT int potluck_route_top_k(const float* logits, const float* bias, int32_t* expert_ids, float* weights,
                               int64_t T, int64_t E, int64_t k, int normalise, float scaling_factor,
                               int threads) {
  Scratch scratch;
  RouteArgs args{logits, bias, expert_ids, weights, scratch.take<float>(threads * E), T, E, k,
                 normalise, scaling_factor, threads};
  if (scratch.failed()) return OUT_OF_MEMORY;
  active->route(args);
  return OK;
}

// Gives the id of a row's token, -1 where its largest logit is not finite.
EXPORT int potluck_choose_token(const float* logits, int64_t vocab, const uint32_t* banned, const RowChoice* choice,
                                int64_t* token_id) {
  Scratch scratch;
  ChooseRowArgs args{logits, banned, choice, scratch.take<uint32_t>(vocab), scratch.take<uint32_t>(vocab), vocab};
  if (scratch.failed()) return OUT_OF_MEMORY;
  *token_id = active->choose_token(args);
  return OK;
}

// Words as noise, and its bounds: for tests.
EXPORT void potluck_noise(const uint64_t* words, double* noise, double* bounds, int64_t n) {
  active->noise(words, noise, bounds, n);
}

static bool has_pages(const SequenceRows& rows, int64_t layer, int64_t window) {
  const int64_t* pages = rows.tables + layer * rows.most_pages;
  const int64_t last = (rows.position + rows.num_rows - 1) / PAGE_POSITIONS;
  for (int64_t page = first_key(rows.position, window) / PAGE_POSITIONS; page <= last; ++page) {
    if (pages[page] == 0) return false;
  }
  return true;
}

// Pairs of a row and a key that it sees, as if every row saw as many as the last one.
static int64_t pairs_of(const SequenceRows& rows, int64_t window) {
  const int64_t stop = rows.position + rows.num_rows;
  return rows.num_rows * (window > 0 && window < stop ? window : stop);
}

// A sequence's rows as work items. Its blocks are cut into spans if one of them is more than a quarter of what a thread
// has to do of `pairs`, those of all sequences.
static SequenceWork cut(const AttentionHeads& heads, const SequenceRows& rows, int64_t layer, int64_t pairs,
                        int threads) {
  constexpr int64_t SPAN = SPAN_PAGES * PAGE_POSITIONS;
  const int64_t group = heads.num_heads / heads.num_kv_heads, width = (heads.head_dim + PANEL - 1) / PANEL * PANEL;
  SequenceWork work{};
  work.pages = rows.tables + layer * rows.most_pages;
  work.num_rows = rows.num_rows;
  work.position = rows.position;
  work.tokens = group < MOST_BLOCK_ROWS ? MOST_BLOCK_ROWS / group : 1;
  if (work.tokens > rows.num_rows) work.tokens = rows.num_rows;
  work.blocks = (rows.num_rows + work.tokens - 1) / work.tokens * heads.num_kv_heads;
  work.first_span = first_key(rows.position, heads.window) / SPAN;
  work.spans = (rows.position + rows.num_rows + SPAN - 1) / SPAN - work.first_span;
  work.block_floats = (work.tokens * group * (width + 3) + 15) / 16 * 16;
  const bool is_large = work.blocks * pairs < 4 * threads * pairs_of(rows, heads.window);
  work.is_split = threads > 1 && work.spans > 1 && is_large;
  return work;
}

// Writes new keys and values of layer `layer` into their pages, and attends: a pass's rows, one sequence's after
// another's. `form` is a KvForm.
EXPORT int potluck_attention(const float* qkv, int64_t stride, const AttentionHeads* heads, const Rotation* rotation,
                             const SequenceRows* rows, int64_t num_sequences, int64_t layer, int form, float* out,
                             int threads) {
  int64_t pairs = 0;
  for (int64_t i = 0; i < num_sequences; ++i) {
    if (!has_pages(rows[i], layer, heads->window)) return PAGES_NOT_HELD;
    pairs += pairs_of(rows[i], heads->window);
  }
  Scratch scratch;
  AttentionWork work{};
  work.threads = 2 * pairs * heads->num_heads * heads->head_dim < SERIAL_WORK ? 1 : threads;
  work.num_sequences = num_sequences;
  work.sequences = scratch.take<SequenceWork>(num_sequences);
  if (scratch.failed()) return OUT_OF_MEMORY;
  int64_t num_rows = 0, sums = 0;
  for (int64_t i = 0; i < num_sequences; ++i) {
    SequenceWork& of = work.sequences[i] = cut(*heads, rows[i], layer, pairs, work.threads);
    of.row = num_rows;
    of.item = work.items;
    of.join = work.joins;
    num_rows += of.num_rows;
    work.items += of.blocks;
    if (of.block_floats > work.block_floats) work.block_floats = of.block_floats;
    if (!of.is_split) continue;
    of.sums_at = sums;
    sums += of.blocks * of.spans * of.block_floats;
    work.items += of.blocks * (of.spans - 1);
    work.joins += of.blocks;
  }
  work.memory = scratch.take<float>(3 * work.threads * work.block_floats);
  if (sums > 0) work.sums = scratch.take<float>(sums);
  if (scratch.failed()) return OUT_OF_MEMORY;
  const float bits = heads->scale * 1.44269504088896341f;
  active->attention[form]({qkv, stride, num_rows, heads, rotation, out, bits, &work, threads});
  return OK;
}

EXPORT int potluck_dense_ffn(const float* x, const WeightMatrix* gate, const WeightMatrix* up,
                             const WeightMatrix* down, float* out, int64_t T, float limit, int threads) {
  const int64_t H = gate->columns, I = gate->rows;
  const WeightMatrix* const first[] = {gate, up};
  Scratch scratch;
  const Inputs in = inputs(scratch, x, T, H, first, 2, threads);
  FfnArgs args{&in, gate, up, down, out, scratch.take<float>(threads * T * FFN_COLUMNS),
               between(scratch, T, I, active->rounding_block(down->format)), T, H, I, limit, threads};
  if (scratch.failed()) return OUT_OF_MEMORY;
  active->dense_ffn(args);
  return OK;
}

// The index of a form in the kernels' table, -1 where they know none of this name and these blocks.
EXPORT int potluck_format_index(const char* name, int64_t block_weights, int64_t block_bytes) {
  return active->format_index(name, block_weights, block_bytes);
}

// Rows that came rounded. No magnitude above 127: the kernels count on it.
static RoundedRows received(Scratch& scratch, const int8_t* q, const float* scales, int64_t T, int64_t H,
                            int64_t block) {
  int16_t* sums = scratch.take<int16_t>(T * (H / 16));
  if (!scratch.failed()) active->sum_sixteens(q, T * H, sums);
  return {q, scales, sums, H, block, nullptr};
}

static bool has_lowest(const int8_t* q, int64_t n) {
  uint8_t any = 0;
  for (int64_t i = 0; i < n; ++i) any |= q[i] == -128;
  return any != 0;
}

// The rows as gate and up take them; false where they did not come in such a form.
static bool expert_inputs(Scratch& scratch, const ExpertRowsArgs& rows, const ExpertMatricesArgs& experts, int threads,
                          Inputs* in) {
  const int64_t T = rows.T, H = rows.H;
  const int64_t blocks[] = {active->rounding_block(experts.gate.format), active->rounding_block(experts.up.format)};
  *in = {rows.hidden, {}, {}, nullptr, H, active->dots};
  for (const int64_t block : blocks) {
    if (block == 0) {
      if (rows.hidden == nullptr) return false;
      if (in->x == rows.hidden) in->x = scratch.aligned(rows.hidden, T, H);
      continue;
    }
    RoundedRows& of = block == 256 ? in->by_256 : in->by_32;
    if (of.q != nullptr) continue;
    const int8_t* q = block == 256 ? rows.q_256 : rows.q_32;
    if (q != nullptr) {
      if (has_lowest(q, T * H)) return false;
      of = received(scratch, q, block == 256 ? rows.scales_256 : rows.scales_32, T, H, block);
    } else if (rows.hidden != nullptr) {
      of = rounded(scratch, rows.hidden, T, H, block, threads);
    } else {
      return false;
    }
  }
  return true;
}

// Sums to out [T, H], rows that left the grid to saturated [T]. Returns OK, a negative Status, or 1 + the
// expert id that has no slot.
EXPORT int potluck_moe_partial_sum(const ExpertRowsArgs* asked, const ExpertMatricesArgs* experts, int32_t* out,
                                   uint8_t* saturated, int threads) {
  const int64_t T = asked->T, H = asked->H, k = asked->k, I = experts->gate.rows, E = experts->E;
  const int32_t *expert_ids = asked->expert_ids, *slots = experts->slots;
  Scratch scratch;
  int64_t* counts = scratch.take<int64_t>(E + 1);
  double* grid_scales = scratch.take<double>(T);
  if (scratch.failed()) return OUT_OF_MEMORY;

  std::memset(counts, 0, (E + 1) * sizeof(int64_t));
  for (int64_t i = 0; i < T * k; ++i) {
    const int32_t expert = expert_ids[i];
    if (expert == -1) continue;
    if (expert < -1 || expert >= E) return BAD_EXPERT_ID;
    if (slots[expert] < 0) return 1 + expert;
    ++counts[expert + 1];
  }
  for (int64_t t = 0; t < T; ++t) {
    const int32_t e = asked->scale_exponents[t];
    if (e < -MAX_EXPONENT || e > MAX_EXPONENT || !power_of_two(-e, grid_scales + t)) return BAD_EXPONENT;
  }

  int64_t num_groups = 0, max_rows = 0;
  for (int64_t e = 0; e < E; ++e) {
    const int64_t rows = counts[e + 1];
    if (rows > max_rows) max_rows = rows;
    num_groups += rows > 0;
    counts[e + 1] += counts[e];
  }
  const int64_t entries = counts[E];

  int64_t* group_starts = scratch.take<int64_t>(2 * num_groups + 1);
  int64_t* entry_tokens = scratch.take<int64_t>(2 * entries);
  const Between activations = between(scratch, entries, I, active->rounding_block(experts->down.format));
  float* tiles = scratch.take<float>(threads * max_rows * FFN_COLUMNS);
  uint8_t* flags = scratch.take<uint8_t>(threads * T);
  Inputs in;
  if (!expert_inputs(scratch, *asked, *experts, threads, &in)) return BAD_ROUNDED_ROWS;
  if (scratch.failed()) return OUT_OF_MEMORY;

  int64_t* entry_columns = entry_tokens + entries;
  int64_t* group_slots = group_starts + num_groups + 1;
  int64_t group = 0;
  group_starts[0] = 0;
  for (int64_t e = 0; e < E; ++e) {
    if (counts[e + 1] == counts[e]) continue;
    group_slots[group++] = slots[e];
    group_starts[group] = counts[e + 1];
  }
  for (int64_t i = 0; i < T * k; ++i) {
    if (expert_ids[i] < 0) continue;
    const int64_t entry = counts[expert_ids[i]]++;
    entry_tokens[entry] = i / k;
    entry_columns[entry] = i % k;
  }
  std::memset(flags, 0, threads * T);
  in.index = entry_tokens;

  active->moe({&in, asked->weights, grid_scales, experts, out, saturated, activations, tiles, entry_tokens,
               entry_columns, group_starts, group_slots, flags, num_groups, max_rows, T, H, I, k, threads});
  return OK;
}
