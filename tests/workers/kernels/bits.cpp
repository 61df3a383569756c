// The bits of kernels on random numbers, a line a case: those of two processors are compared as text.
// Runs on the instruction sets that its arguments name, the best of this machine first, or with no arguments on all
// that it has. Where one gives other bits than the portable form, says so and exits with 1.

#include "arguments.h"

#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

extern "C" {
const char* potluck_isa();
int potluck_set_isa(const char*);
void potluck_set_tables(const Tables*);
int potluck_linear(const float*, const WeightMatrix*, int64_t, float*, int64_t, int64_t, int);
int potluck_round_rows(const float*, int64_t, int64_t, int64_t, int8_t*, float*, int);
void potluck_exp(const float*, float*, int64_t);
void potluck_swiglu(const float*, const float*, float*, int64_t, float, int);
void potluck_noise(const uint64_t*, double*, double*, int64_t);
int potluck_choose_token(const float*, int64_t, const uint32_t*, const RowChoice*, int64_t*);
int potluck_route_top_k(const float*, const float*, int32_t*, float*, int64_t, int64_t, int64_t, int, float, int);
int potluck_attention(const float*, int64_t, const AttentionHeads*, const Rotation*, const SequenceRows*, int64_t,
                      int64_t, int, float*, int);
int potluck_dense_ffn(const float*, const WeightMatrix*, const WeightMatrix*, const WeightMatrix*, float*, int64_t,
                      float, int);
int potluck_format_index(const char*, int64_t, int64_t);
int potluck_moe_partial_sum(const ExpertRowsArgs*, const ExpertMatricesArgs*, int32_t*, uint8_t*, int);
}

// The kernels' own list of quantised types, so that none is left out here. Their decoders are not called.
namespace listed {
#define ALWAYS_INLINE inline __attribute__((always_inline))
float widen_half(uint16_t);
static Tables tables;
#include "quantised.h"
}  // namespace listed

struct Form {
  const char* name;
  int64_t block, block_bytes;
  std::vector<int> halves;  // where a block has float16 scales
};

static std::vector<int> halves_of(const std::string& name) {
  static const std::map<std::string, std::vector<int>> HALVES = {
      {"q8_0", {0}},    {"q6_k", {208}},  {"q5_k", {0, 2}}, {"q4_k", {0, 2}},  {"q3_k", {108}}, {"q2_k", {80, 82}},
      {"q5_1", {0, 2}}, {"q5_0", {0}},    {"q4_1", {0, 2}}, {"q4_0", {0}},     {"iq4_nl", {0}}, {"iq4_xs", {0}},
      {"iq3_s", {0}},   {"iq3_xxs", {0}}, {"iq2_s", {0}},   {"iq2_xs", {0}},   {"iq2_xxs", {0}}, {"mxfp4", {}},
  };
  const auto found = HALVES.find(name);
  if (found == HALVES.end()) {
    std::fprintf(stderr, "where does a block of %s have its scales? Add it to HALVES in bits.cpp\n", name.c_str());
    std::exit(2);
  }
  return found->second;
}

#define FORM(Type, name) {name, listed::Type::BLOCK, listed::Type::BLOCK_BYTES, halves_of(name)},
static const std::vector<Form> FORMS = {
    QUANTISED_TYPES(FORM)
    {"float16", 1, 2, {}}, {"bfloat16", 1, 2, {}}, {"float32", 1, 4, {}}, {"fp8_e4m3", 1, 1, {}},
};
#undef FORM

static const Form& form_of(const std::string& name) {
  for (const Form& form : FORMS) {
    if (name == form.name) return form;
  }
  std::fprintf(stderr, "no form %s\n", name.c_str());
  std::exit(2);
}

// Every case draws anew from a seed of its own, so that all instruction sets see the same numbers.
static std::mt19937_64 bits;

static float number() { return (float)((int64_t)(bits() % 20001) - 10000) * 1e-4f; }

static std::vector<float> numbers(int64_t n) {
  std::vector<float> out(n);
  for (float& x : out) x = number();
  return out;
}

// Rows to round: blocks of zeros, of the largest magnitude everywhere, tiny ones, one that is not finite.
static std::vector<float> activations(int64_t T, int64_t K) {
  std::vector<float> x = numbers(T * K);
  for (int64_t k = 0; k + 32 <= T * K; k += 32) {
    const uint64_t kind = bits() % 10;
    for (int64_t i = k; i < k + 32; ++i) {
      if (kind == 0) x[i] = 0.0f;
      if (kind == 1) x[i] = x[i] < 0 ? -1.0f : 1.0f;
      if (kind == 2) x[i] *= 1e-30f;
    }
  }
  if (T > 3) x[2 * K + K / 2] = INFINITY;
  return x;
}

enum class Fill { RANDOM, ONES, ZEROS, ANY };

// A matrix and its bytes. Scales are of sensible size, but with ANY, where they too are any bits.
struct Owned {
  std::vector<uint8_t> bytes;
  std::vector<float> scales;  // of fp8_e4m3
  WeightMatrix matrix;

  WeightMatrix whole() const {
    WeightMatrix of = matrix;
    of.data = bytes.data();
    of.scales = scales.empty() ? nullptr : scales.data();
    return of;
  }
};

static Owned matrix_of(const Form& form, int64_t rows, int64_t columns, Fill fill = Fill::RANDOM) {
  const int64_t blocks = columns / form.block, row_bytes = blocks * form.block_bytes;
  Owned out{std::vector<uint8_t>(rows * row_bytes), {}, {}};
  if (form.block_bytes == 1) out.scales = numbers((rows + 127) / 128 * ((columns + 127) / 128));
  for (uint8_t& byte : out.bytes) byte = fill == Fill::ONES ? 255 : fill == Fill::ZEROS ? 0 : (uint8_t)bits();
  for (int64_t b = 0; b < rows * blocks; ++b) {
    uint8_t* p = &out.bytes[b * form.block_bytes];
    if (form.block == 1) {
      const float weight = number() * 0.1f;
      const uint32_t wide = __builtin_bit_cast(uint32_t, weight);
      if (form.block_bytes == 4) std::memcpy(p, &weight, 4);
      if (form.block_bytes == 2) p[1] = std::string(form.name) == "bfloat16" ? (uint8_t)(wide >> 24) : p[1] & 0xbf;
      continue;
    }
    if (fill == Fill::ANY) continue;
    for (const int at : form.halves) {
      const uint16_t half = (uint16_t)((bits() % 2 << 15) | (0x1c00 + bits() % 0x800));  // 2^-8 to 2^-6
      std::memcpy(p + at, &half, 2);
    }
    if (form.halves.empty()) p[0] = (uint8_t)(118 + bits() % 6);
  }
  const int64_t index = potluck_format_index(form.name, form.block, form.block_bytes);
  out.matrix = {nullptr, nullptr, rows, columns, row_bytes, index};
  return out;
}

// FNV-1a of what a case computed. Which NaN it is depends on the processor.
struct Hash {
  uint64_t value = 14695981039346656037u;
  void add(const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) value = (value ^ ((const uint8_t*)data)[i]) * 1099511628211u;
  }
  void add(const std::vector<float>& x) {
    for (float v : x) {
      if (std::isnan(v)) v = __builtin_bit_cast(float, 0x7fc00000u);
      add(&v, 4);
    }
  }
  template <class T>
  void add(const std::vector<T>& x) { add(x.data(), x.size() * sizeof(T)); }
};

static std::vector<std::string> lines;

static void note(const std::string& name, int status, const Hash& hash) {
  char text[200];
  std::snprintf(text, sizeof text, "%s: status %d, %016llx", name.c_str(), status, (unsigned long long)hash.value);
  lines.push_back(text);
}

static void dot_case(const Form& form, int64_t T, int64_t K, int64_t N, Fill fill) {
  static const char* const FILLS[] = {"", ", all ones", ", all zeros", ", any bits"};
  bits.seed(T * 1000003 + K * 101 + (int)fill);
  const std::vector<float> x = activations(T, K);
  const Owned w = matrix_of(form, N, K, fill);
  const WeightMatrix matrix = w.whole();
  std::vector<float> out(T * N);
  const int status = potluck_linear(x.data(), &matrix, 1, out.data(), T, K, 1);
  Hash hash;
  hash.add(out);
  note(std::string(form.name) + FILLS[(int)fill] + ": " + std::to_string(T) + " rows, " + std::to_string(N) + " x " +
           std::to_string(K), status, hash);
}

static void dots() {
  for (const Form& form : FORMS) {
    const int64_t unit = form.block == 1 ? 32 : form.block;
    for (const int64_t T : {1, 2, 4, 5}) {
      for (const int64_t blocks : {1, 7, 19}) dot_case(form, T, blocks * unit, 5, Fill::RANDOM);
    }
    dot_case(form, 70, 11 * unit, 3, Fill::RANDOM);
    for (const Fill fill : {Fill::ONES, Fill::ZEROS, Fill::ANY}) dot_case(form, 3, 9 * unit, 40, fill);
  }
  for (const char* name : {"q4_k", "q8_0"}) {
    for (const int64_t K : {1 << 17, (1 << 17) + 256, (1 << 18) + 256}) dot_case(form_of(name), 2, K, 1, Fill::RANDOM);
  }
}

static void rounding() {
  for (const int64_t block : {32, 256}) {
    bits.seed(block);
    const int64_t T = 5, K = 1280;
    const std::vector<float> x = activations(T, K);
    std::vector<int8_t> q(T * K);
    std::vector<float> scales(T * K / block);
    Hash hash;
    const int status = potluck_round_rows(x.data(), T, K, block, q.data(), scales.data(), 1);
    hash.add(q);
    hash.add(scales);
    note("rounding in blocks of " + std::to_string(block), status, hash);
  }
}

// One layer's experts on their grid, and the same matrices as a dense FFN.
static void ffn(const char* gate_name, const char* up_name, const char* down_name) {
  bits.seed(7);
  const int64_t T = 6, H = 512, I = 256, E = 4, k = 2;
  std::vector<Owned> owned;
  for (int64_t e = 0; e < E; ++e) {
    owned.push_back(matrix_of(form_of(gate_name), I, H));
    owned.push_back(matrix_of(form_of(up_name), I, H));
    owned.push_back(matrix_of(form_of(down_name), H, I));
  }
  std::vector<const uint8_t*> data[3];
  for (size_t i = 0; i < owned.size(); ++i) data[i % 3].push_back(owned[i].bytes.data());
  const auto matrix = [&](int which) {
    const WeightMatrix& of = owned[which].matrix;
    return ExpertMatrix{data[which].data(), nullptr, of.rows, of.columns, of.row_bytes, of.format};
  };
  const int32_t slots[4] = {2, 0, 3, 1};
  const ExpertMatricesArgs experts{matrix(0), matrix(1), matrix(2), slots, E, 7.0f, (int32_t)(2147483647 / k)};
  const std::vector<float> x = numbers(T * H), weights = numbers(T * k);
  const int32_t ids[] = {0, 3, 2, -1, 1, 0, 3, 1, 2, 0, -1, -1};
  std::vector<int32_t> exponents(T, -18), sums(T * H);
  std::vector<uint8_t> saturated(T);
  const ExpertRowsArgs rows{x.data(), nullptr, nullptr, nullptr, nullptr, ids, weights.data(), exponents.data(),
                            T, H, k};
  const std::string name = std::string(gate_name) + " " + up_name + " " + down_name;
  {
    const int status = potluck_moe_partial_sum(&rows, &experts, sums.data(), saturated.data(), 1);
    Hash hash;
    hash.add(sums);
    hash.add(saturated);
    note("experts in " + name, status, hash);
  }
  const WeightMatrix gate = owned[0].whole(), up = owned[1].whole(), down = owned[2].whole();
  std::vector<float> out(T * H);
  Hash hash;
  const int status = potluck_dense_ffn(x.data(), &gate, &up, &down, out.data(), T, 7.0f, 1);
  hash.add(out);
  note("ffn in " + name, status, hash);
}

// Two sequences, of 300 positions and of 150. All are written, then the last `T` of each look back.
static void attention(int form, int64_t T, int64_t head_dim, int64_t window) {
  bits.seed(head_dim + window);
  const int64_t heads = 6, kv_heads = 2, width = (head_dim + 15) / 16 * 16, lengths[2] = {300, 150}, all = 450;
  const int64_t stride = (heads + 2 * kv_heads) * head_dim + heads, most_pages = 3;
  const int64_t head_bytes = PAGE_POSITIONS * (2 * width * (form == KV_INT8 ? 1 : form == KV_BFLOAT16 ? 2 : 4) +
                                               (form == KV_INT8 ? 8 : 0));
  const int64_t page_bytes = kv_heads * head_bytes;
  std::vector<uint8_t> memory(2 * most_pages * page_bytes + 64);
  uint8_t* pages = (uint8_t*)(((uintptr_t)memory.data() + 63) / 64 * 64);
  int64_t tables[2][3];
  for (int64_t i = 0; i < 6; ++i) tables[i / 3][i % 3] = (int64_t)(pages + i * page_bytes);
  const std::vector<float> qkv = numbers(all * stride), norm = numbers((heads + kv_heads) * head_dim);
  const std::vector<float> cos = numbers(lengths[0] * head_dim), sin = numbers(lengths[0] * head_dim);
  const AttentionHeads layer{norm.data(), heads, kv_heads, head_dim, window, 3.0f, 1e-5f, 1};
  const Rotation rotation{cos.data(), sin.data(), head_dim / 4};
  std::vector<float> last, out(all * heads * head_dim);
  SequenceRows rows[2];
  const float* from = qkv.data();
  for (int i = 0; i < 2; ++i) {
    rows[i] = {tables[i], most_pages, 0, lengths[i]};
    from += lengths[i] * stride;
    last.insert(last.end(), from - T * stride, from);
  }
  Hash hash;
  int status = potluck_attention(qkv.data(), stride, &layer, &rotation, rows, 2, 0, form, out.data(), 1);
  hash.add(out);
  for (int i = 0; i < 2; ++i) rows[i] = {tables[i], most_pages, lengths[i] - T, T};
  out.resize(2 * T * heads * head_dim);
  status |= potluck_attention(last.data(), stride, &layer, &rotation, rows, 2, 0, form, out.data(), 1);
  hash.add(out);
  hash.add(pages, 2 * most_pages * page_bytes);
  note("attention, form " + std::to_string(form) + ", " + std::to_string(T) + " rows, heads of " +
           std::to_string(head_dim) + ", window " + std::to_string(window), status, hash);
}

static void elementwise() {
  bits.seed(11);
  const int64_t T = 5, D = 517, E = 64, k = 8;
  std::vector<float> x(20000), out(x.size());
  for (float& v : x) {
    const uint32_t any = (uint32_t)bits();
    v = __builtin_bit_cast(float, any);
  }
  Hash exponentials;
  potluck_exp(x.data(), out.data(), (int64_t)x.size());
  exponentials.add(out);
  note("exponentials of any bits", 0, exponentials);

  const std::vector<float> gate = numbers(T * D), logits = numbers(T * E), bias = numbers(E);
  Hash products;
  for (const float limit : {0.0f, 0.3f}) {
    potluck_swiglu(gate.data(), x.data(), out.data(), T * D, limit, 1);
    products.add(std::vector<float>(out.begin(), out.begin() + T * D));
  }
  note("swiglu", 0, products);

  Hash routes;
  std::vector<int32_t> ids(T * k);
  std::vector<float> shares(T * k);
  const int status = potluck_route_top_k(logits.data(), bias.data(), ids.data(), shares.data(), T, E, k, 1, 3.0f, 1);
  routes.add(ids);
  routes.add(shares);
  note("routes", status, routes);

  std::vector<uint64_t> words(5000);
  std::vector<double> noise(words.size()), bounds(words.size());
  for (uint64_t& word : words) word = (uint64_t)bits() << 32 | (uint32_t)bits();
  potluck_noise(words.data(), noise.data(), bounds.data(), (int64_t)words.size());
  Hash noises;
  noises.add(noise.data(), noise.size() * sizeof(double));
  note("noise", 0, noises);

  Hash tokens;
  std::vector<int64_t> chosen;
  const std::vector<float> row = numbers(3001);
  for (uint64_t position = 0; position < 40; ++position) {
    const RowChoice choice{7, 1, position, position % 2 ? 50 : 0, position % 3 ? 0.9 : 1.0, 0.001, 1.2f, 0};
    chosen.push_back(-1);
    potluck_choose_token(row.data(), 3001, nullptr, &choice, &chosen.back());
  }
  tokens.add(chosen);
  note("chosen tokens", 0, tokens);
}

static std::vector<std::string> all_cases() {
  lines.clear();
  dots();
  rounding();
  ffn("q4_k", "q4_k", "q5_k");
  ffn("iq3_s", "q3_k", "iq4_xs");
  ffn("q8_0", "q6_k", "q8_0");
  ffn("mxfp4", "q4_0", "bfloat16");
  for (const int form : {KV_FLOAT32, KV_BFLOAT16, KV_INT8}) {
    attention(form, 1, 64, 0);
    attention(form, 5, 48, 0);
    attention(form, 40, 20, 130);
  }
  elementwise();
  return lines;
}

int main(int count, char** names) {
  static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  static const int8_t mxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  static uint8_t grid[8192], signs[128];
  for (uint8_t& magnitude : grid) magnitude = (uint8_t)(bits() % 63);
  // Seven signs, and one that makes the number of minus signs even.
  for (int i = 0; i < 128; ++i) signs[i] = (uint8_t)(i | __builtin_parity(i) << 7);
  const Tables tables{iq4, mxfp4, grid, grid, grid, grid, grid, signs};
  potluck_set_tables(&tables);

  std::vector<std::string> sets(names + 1, names + count);
  if (sets.empty()) {
    for (const char* name : {"avx512vnni", "avx512", "avx2", "neondot", "neon"}) {
      if (potluck_set_isa(name)) sets.push_back(name);
    }
  } else if (sets[0] != potluck_isa()) {
    std::fprintf(stderr, "expected %s as the best instruction set, found %s\n", sets[0].c_str(), potluck_isa());
    return 1;
  }
  potluck_set_isa("baseline");
  const std::vector<std::string> expected = all_cases();
  for (const std::string& line : expected) std::puts(line.c_str());
  int wrong = 0;
  for (const std::string& set : sets) {
    if (!potluck_set_isa(set.c_str())) {
      std::fprintf(stderr, "%s does not run here\n", set.c_str());
      return 1;
    }
    const std::vector<std::string> found = all_cases();
    for (size_t i = 0; i < found.size(); ++i) {
      if (found[i] == expected[i]) continue;
      std::fprintf(stderr, "%s gives other bits than the portable form: %s\n", set.c_str(), found[i].c_str());
      ++wrong;
    }
    std::fprintf(stderr, "%s: %zu cases\n", set.c_str(), found.size());
  }
  return wrong != 0;
}
