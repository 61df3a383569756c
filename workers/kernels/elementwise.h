// The exponential and what is made of it, norms, and the router's choice.

#define DEVICE static ALWAYS_INLINE
#include "gpu/steps_on_cpu.h"

#include "gpu/exponential.h"

static ALWAYS_INLINE float sigmoid_one(float x) { return 1.0f / (1.0f + exp_one(-x)); }

static ALWAYS_INLINE float swiglu_one(float gate, float up, float limit) {
  const float act = gate / (1.0f + exp_one(-gate));
  const float act_clamped = act > limit ? limit : act;
  const float up_clamped = up > limit ? limit : (up < -limit ? -limit : up);
  return act_clamped * up_clamped;
}

static void exponentials(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = exp_one(x[i]);
}

// Elements that one thread does in the time another takes to wake.
constexpr int64_t SERIAL_ELEMENTS = 1 << 15;

static void sigmoid(const float* x, float* out, int64_t n, int threads) {
  if (n < SERIAL_ELEMENTS) threads = 1;
  each_stretch(n, threads, [&](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) out[i] = sigmoid_one(x[i]);
  });
}

static void swiglu_run(const float* gate, const float* up, float* out, int64_t n, float limit) {
  const float bound = limit > 0.0f ? limit : __builtin_inff();
  for (int64_t i = 0; i < n; ++i) out[i] = swiglu_one(gate[i], up[i], bound);
}

static void swiglu(const float* gate, const float* up, float* out, int64_t n, float limit, int threads) {
  if (n < SERIAL_ELEMENTS) threads = 1;
  each_stretch(n, threads, [&](int64_t first, int64_t count) {
    swiglu_run(gate + first, up + first, out + first, count, limit);
  });
}

static void rms_norm(const RmsNormArgs& a) {
  const float offset = a.zero_centered ? 1.0f : 0.0f;
  const int threads = a.T * a.D < SERIAL_ELEMENTS ? 1 : a.threads;
  each_item(a.T, threads, [&](int64_t t, int) {
    const float* x = a.x + t * a.D;
    float* out = a.out + t * a.D;
    const float inverse = 1.0f / __builtin_sqrtf(dot_self(x, a.D) / (float)a.D + a.eps);
    for (int64_t i = 0; i < a.D; ++i) out[i] = x[i] * inverse * (a.weight[i] + offset);
  });
}

// floor(log2(rms(row))) + offset, kept within [low, high]. Before that a row of zeros or of subnormal size
// counts as -126 or -127, one that is not finite as 128.
static void row_exponents(const float* x, int32_t* out, int64_t T, int64_t D, int32_t offset, int32_t low,
                          int32_t high, int threads) {
  if (T * D < SERIAL_ELEMENTS) threads = 1;
  each_item(T, threads, [&](int64_t t, int) {
    const float rms = __builtin_sqrtf(dot_self(x + t * D, D) / (float)D);
    const int32_t exponent = (int32_t)(__builtin_bit_cast(uint32_t, rms) >> 23 & 255) - 127 + offset;
    out[t] = exponent < low ? low : (exponent > high ? high : exponent);
  });
}

static void route_row(const float* logits, const float* bias, int32_t* ids, float* weights, float* scores,
                      const RouteArgs& a) {
  for (int64_t e = 0; e < a.E; ++e) scores[e] = sigmoid_one(logits[e]);
  float* keys = weights;  // the output row holds the sorted keys until the weights are known
  int64_t count = 0;
  for (int64_t e = 0; e < a.E; ++e) {
    const float sum = bias ? scores[e] + bias[e] : scores[e];
    const float key = sum == sum ? sum : -__builtin_inff();
    if (count == a.k && !(key > keys[count - 1])) continue;
    int64_t place = count < a.k ? count++ : count - 1;
    for (; place > 0 && key > keys[place - 1]; --place) {
      keys[place] = keys[place - 1];
      ids[place] = ids[place - 1];
    }
    keys[place] = key;
    ids[place] = (int32_t)e;
  }
  float total = 0.0f;
  for (int64_t j = 0; j < a.k; ++j) {
    weights[j] = scores[ids[j]];
    total += weights[j];
  }
  for (int64_t j = 0; j < a.k; ++j) {
    weights[j] = (a.normalise ? weights[j] / total : weights[j]) * a.scaling_factor;
  }
}

static void route(const RouteArgs& a) {
  const int threads = a.T * a.E < SERIAL_ELEMENTS ? 1 : a.threads;
  each_item(a.T, threads, [&](int64_t t, int thread) {
    route_row(a.logits + t * a.E, a.bias, a.expert_ids + t * a.k, a.weights + t * a.k, a.scores + thread * a.E, a);
  });
}
