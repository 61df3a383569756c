// Both ways to multiply on tensor cores, by instructions of sixteen rows and of eight, against plain products.

#include "tensor_cores.h"

#include <cstdio>
#include <random>

#include "blocks.h"

namespace {

std::mt19937 random_numbers(1);
int8_t any_byte() { return (int8_t)random_numbers(); }

template <int K>
struct Matrices {
  int8_t a[16][K], b[K][8];
  int32_t c[16][8], found[2][16][8];
};

// What a lane has in its registers is put together here as PTX's tables say (PTX ISA, 'Matrix Fragments for
// mma.m16n8k16 with integer type' and '... for mma.m16n8k32'): element i of a fragment, not byte j of register r.
template <int K>
void kernel(const void* given) {
  Matrices<K>& m = **(Matrices<K>* const*)given;
  const int group = lane_of_warp() >> 2, thread_in_group = lane_of_warp() % 4;
  int8_t a[K / 2], b[K / 4];
  for (int i = 0; i < K / 2; ++i) {
    const int row = i < 4 || (i >= 8 && i < 12) ? group : group + 8;
    a[i] = m.a[row][thread_in_group * 4 + (i & 3) + (i >= 8 ? 16 : 0)];
  }
  for (int i = 0; i < K / 4; ++i) b[i] = m.b[thread_in_group * 4 + (i & 3) + (i >= 4 ? 16 : 0)][group];
  uint32_t a_words[K / 8], b_words[K / 16];
  std::memcpy(a_words, a, sizeof a);
  std::memcpy(b_words, b, sizeof b);
  int32_t c[4], d[4];
  auto row_of = [&](int i) { return i < 2 ? group : group + 8; };
  auto column_of = [&](int i) { return thread_in_group * 2 + (i & 1); };
  for (int i = 0; i < 4; ++i) c[i] = m.c[row_of(i)][column_of(i)];
  multiply<K, true>(d, a_words, b_words, c);
  for (int i = 0; i < 4; ++i) m.found[0][row_of(i)][column_of(i)] = d[i];
  multiply<K, false>(d, a_words, b_words, c);
  for (int i = 0; i < 4; ++i) m.found[1][row_of(i)][column_of(i)] = d[i];
}

template <int K>
int wrong(bool largest) {
  Matrices<K> m;
  for (auto& row : m.a) for (auto& each : row) each = largest ? -128 : any_byte();
  for (auto& row : m.b) for (auto& each : row) each = largest ? -128 : any_byte();
  for (auto& row : m.c) for (auto& each : row) each = (int32_t)random_numbers() / 4;
  const Matrices<K>* const at = &m;
  const unsigned grid[] = {1, 1, 1}, block[] = {32, 1, 1};
  run_blocks(kernel<K>, &at, grid, block);
  int count = 0;
  for (int way = 0; way < 2; ++way) {
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        int32_t sum = m.c[row][column];
        for (int k = 0; k < K; ++k) sum += m.a[row][k] * m.b[k][column];
        count += sum != m.found[way][row][column];
      }
    }
  }
  if (count != 0) std::printf("%d of 256 products of %d columns are wrong\n", count, K);
  return count;
}

}  // namespace

int main() {
  int count = wrong<32>(true) + wrong<16>(true);
  for (int i = 0; i < 50; ++i) count += wrong<32>(false) + wrong<16>(false);
  return count != 0;
}
