// How a token is chosen, step by step: docs/arithmetic.md, 'Choosing a token'. CPU kernels include this file too
// (workers/kernels/choosing_rows.h), once for each instruction set, so it has no guard, and DEVICE, as_bits, divide, high_word
// and leading_zeros are whatever the including file says. It wants row_choice.h, exponential.h and order.h before it.

// A token's logit before noise, at most 0.
DEVICE float scaled(float logit, float largest, float temperature) { return divide(logit - largest, temperature); }

// What a token weighs when some are left out, from 0 to 2^31: sums of such integers are exact in any order.
DEVICE uint32_t weight_of(float x) { return x >= -104.0f ? (uint32_t)(exp_one(x) * 2147483648.0f) : 0; }

// Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four words of noise, for tokens
// 4 block to 4 block + 3.
DEVICE void noise_words(const RowChoice& row, uint64_t block, uint64_t words[4]) {
  uint64_t a = block, b = row.position, c = 0, d = 0, key = row.seed, other_key = row.answer;
  for (int round = 0; round < 10; ++round) {
    const uint64_t high_a = high_word(0xD2E7470EE14C6C93ull, a), low_a = 0xD2E7470EE14C6C93ull * a;
    const uint64_t high_c = high_word(0xCA5A826395121157ull, c), low_c = 0xCA5A826395121157ull * c;
    a = high_c ^ b ^ key;
    b = low_c;
    c = high_a ^ d ^ other_key;
    d = low_a;
    key += 0x9E3779B97F4A7C15ull;
    other_key += 0xBB67AE8584CAA73Bull;
  }
  words[0] = a;
  words[1] = b;
  words[2] = c;
  words[3] = d;
}

// ln x for normal x > 0: x = 2^k m with m from sqrt(1/2) to sqrt(2), and ln m = 2 artanh(s), s = (m - 1) / (m + 1), whose
// series ends where the next term is below 2^-60 of the first.
DEVICE double log_one(double x) {
  const uint64_t bits = as_bits(x);
  int64_t k = (int64_t)(bits >> 52) - 1023;
  double m = as_double((bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull);
  if (m > 1.4142135623730951) {
    m = m * 0.5;
    k = k + 1;
  }
  const double s = divide(m - 1.0, m + 1.0), z = s * s;
  double sum = 2.0 / 21.0;
  sum = sum * z + 2.0 / 19.0;
  sum = sum * z + 2.0 / 17.0;
  sum = sum * z + 2.0 / 15.0;
  sum = sum * z + 2.0 / 13.0;
  sum = sum * z + 2.0 / 11.0;
  sum = sum * z + 2.0 / 9.0;
  sum = sum * z + 2.0 / 7.0;
  sum = sum * z + 2.0 / 5.0;
  sum = sum * z + 2.0 / 3.0;
  sum = sum * z + 2.0;
  return (double)k * 0.6931471805599453 + s * sum;
}

// A word as Gumbel noise: -ln(-ln u), u = (the upper 52 bits + 1/2) / 2^52. From -3.61 to 36.74.
DEVICE double gumbel(uint64_t word) {
  const double u = ((double)(int64_t)(word >> 12) + 0.5) * 0x1p-52;
  return -log_one(-log_one(u));
}

// No less than `gumbel` of the word: -ln u >= 1 - u, and 1 - u >= 2^-(n + 1) where the word begins with n ones.
DEVICE double gumbel_bound(uint64_t word) { return (double)(leading_zeros(~word | 0x800) + 1) * 0.69315; }

// The best token so far, of those that this thread saw.
struct Best {
  double key;
  int64_t token;
};
DEVICE bool is_better(const Best& a, const Best& b) { return a.key > b.key || (a.key == b.key && a.token < b.token); }

// Whether a token is left out for its logit alone.
DEVICE bool is_cut(const RowChoice& row, uint32_t order, uint32_t least, float x) {
  return order < least || (double)weight_of(x) < row.min_p * 2147483648.0;
}

// The tokens 4 block to 4 block + 3, as far as they are below `vocab`.
DEVICE void try_block(const RowChoice& row, const float* logits, const uint32_t* banned, int64_t vocab, float largest,
                      uint32_t least, int64_t block, Best& best) {
  float x[4];
  float highest = -3.0e38f;
  for (int i = 0; i < 4; ++i) {
    const int64_t token = 4 * block + i;
    const bool is_out = token >= vocab || (banned && banned[token / 32] >> token % 32 & 1);
    x[i] = is_out ? -3.0e38f : scaled(logits[token], largest, row.temperature);
    highest = x[i] > highest ? x[i] : highest;
  }
  // The noise is at most 53 ln 2.
  if ((double)highest + 36.8 < best.key) return;
  uint64_t words[4];
  noise_words(row, (uint64_t)block, words);
  for (int i = 0; i < 4; ++i) {
    const int64_t token = 4 * block + i;
    if ((double)x[i] + gumbel_bound(words[i]) < best.key || x[i] <= -3.0e38f) continue;
    if (is_cut(row, order_of(logits[token]), least, x[i])) continue;
    const Best found = {(double)x[i] + gumbel(words[i]), token};
    if (is_better(found, best)) best = found;
  }
}

// Of `total`, which all tokens that top_k leaves weigh: what those that top_p leaves must weigh at least. Totals are below
// 2^53, so the product of one with a top_p below 1 is no more than it.
DEVICE uint64_t weight_wanted(double top_p, uint64_t total) {
  const double wanted = top_p * (double)total;
  const uint64_t whole = (uint64_t)wanted;
  const uint64_t up = (double)whole < wanted ? whole + 1 : whole;
  return up < 1 ? 1 : up;
}
