// The exponential, step by step. CPU kernels include this file too (workers/kernels/elementwise.h), once for each instruction
// set, so it has no guard, and DEVICE, fma_rn and as_float are whatever the including file says.

// e^x: x = n ln 2 + r (Cody and Waite's two-part ln 2), a degree-7 polynomial on |r| <= ln 2 / 2, times 2^n in two steps
// so that results below 2^-126 round once. NaN gives NaN, +inf inf, -inf 0.
DEVICE float exp_one(float x) {
  const float clamped = x < -104.0f ? -104.0f : (x > 89.0f ? 89.0f : x);
  const float safe = clamped == clamped ? clamped : 0.0f;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = fma_rn(safe, 1.44269504088896341f, magic) - magic;
  float r = fma_rn(n, -0.693359375f, safe);
  r = fma_rn(n, 2.12194440e-4f, r);
  float p = 1.98412698e-4f;
  p = fma_rn(p, r, 1.38888889e-3f);
  p = fma_rn(p, r, 8.33333333e-3f);
  p = fma_rn(p, r, 4.16666667e-2f);
  p = fma_rn(p, r, 1.66666667e-1f);
  p = fma_rn(p, r, 0.5f);
  p = fma_rn(p, r, 1.0f);
  p = fma_rn(p, r, 1.0f);
  const int32_t exponent = (int32_t)n, half = exponent >> 1;
  const float a = as_float((uint32_t)(half + 127) << 23);
  const float b = as_float((uint32_t)(exponent - half + 127) << 23);
  const float result = p * a * b;
  return x == x ? result : x;
}
