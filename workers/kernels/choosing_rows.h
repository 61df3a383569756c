// Choosing a row's token.

#include "gpu/order.h"

#include "gpu/choosing.h"

constexpr int64_t ORDERS_AT_ONCE = 4096;

// The largest of `n`, and its first place.
static uint32_t largest_order(const uint32_t* orders, int64_t n, int64_t* place) {
  uint32_t largest = 0;
  int64_t start = 0;
  for (int64_t first = 0; first < n; first += ORDERS_AT_ONCE) {
    const int64_t count = n - first < ORDERS_AT_ONCE ? n - first : ORDERS_AT_ONCE;
    uint32_t here = 0;
    for (int64_t i = 0; i < count; ++i) here = orders[first + i] > here ? orders[first + i] : here;
    if (here > largest) {
      largest = here;
      start = first;
    }
  }
  while (start < n - 1 && orders[start] != largest) ++start;
  *place = start;
  return largest;
}

// As the cards' function of that name (gpu/sampling.h).
template <class Weight>
static uint32_t least_order(const ChooseRowArgs& a, uint32_t least, uint64_t wanted, const Weight& weight) {
  uint64_t sums[256];
  uint32_t found = 0;
  uint64_t rest = wanted;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int digit = 0; digit < 256; ++digit) sums[digit] = 0;
    for (int64_t i = 0; i < a.vocab; ++i) {
      const uint32_t order = a.orders[i];
      if (order < least || (uint64_t)order >> (shift + 8) != (uint64_t)found >> (shift + 8)) continue;
      sums[order >> shift & 255] += weight(i);
    }
    int digit = 255;
    for (; digit > 0 && sums[digit] < rest; --digit) rest -= sums[digit];
    found |= (uint32_t)digit << shift;
  }
  return found;
}

static uint32_t least_of_row(const ChooseRowArgs& a, float largest) {
  const RowChoice& row = *a.choice;
  uint32_t least = 0;
  if (row.top_k > 0 && row.top_k < a.vocab) {
    least = least_order(a, 0, (uint64_t)row.top_k, [](int64_t) { return (uint64_t)1; });
  }
  if (row.top_p >= 1.0) return least;
  for (int64_t i = 0; i < a.vocab; ++i) {
    a.weights[i] = weight_of(scaled(from_order(a.orders[i]), largest, row.temperature));
  }
  uint64_t total = 0;
  for (int64_t i = 0; i < a.vocab; ++i) total += a.orders[i] >= least ? a.weights[i] : 0;
  const uint64_t wanted = weight_wanted(row.top_p, total);
  return least_order(a, least, wanted, [&](int64_t i) { return (uint64_t)a.weights[i]; });
}

// The token's id; -1 where the largest logit is not finite.
static int64_t choose_token(const ChooseRowArgs& a) {
  const RowChoice& row = *a.choice;
  const uint32_t* banned = row.banned_set ? a.banned : nullptr;
  for (int64_t i = 0; i < a.vocab; ++i) a.orders[i] = order_of(a.logits[i]);
  for (int64_t word = 0; banned && word < (a.vocab + 31) / 32; ++word) {
    for (uint32_t bits = banned[word]; bits != 0; bits &= bits - 1) {
      const int64_t token = 32 * word + __builtin_ctz(bits);
      if (token < a.vocab) a.orders[token] = order_of(-__builtin_inff());
    }
  }
  int64_t token;
  const uint32_t order = largest_order(a.orders, a.vocab, &token);
  if (!is_finite_order(order)) return -1;
  if (row.temperature == 0.0f) return token;
  const float largest = from_order(order);
  const uint32_t least = least_of_row(a, largest);
  Best best = {-__builtin_inf(), a.vocab};
  // The likeliest first: most others are then skipped.
  try_block(row, a.logits, banned, a.vocab, largest, least, token / 4, best);
  for (int64_t block = 0; 4 * block < a.vocab; ++block) {
    try_block(row, a.logits, banned, a.vocab, largest, least, block, best);
  }
  return best.token;
}

// What words are as noise, and what it is bounded by before it is computed.
static void noise_of(const uint64_t* words, double* noise, double* bounds, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    noise[i] = gumbel(words[i]);
    bounds[i] = gumbel_bound(words[i]);
  }
}
