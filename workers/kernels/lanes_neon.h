// Sixteen lanes in four registers. Included in namespace neon.

struct Lanes {
  float32x4_t q[4];
  static constexpr int TILE_ROWS = 2, TILE_COLUMNS = 2;

  static ALWAYS_INLINE Lanes zero() { return set1(0.0f); }
  static ALWAYS_INLINE Lanes set1(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {v, v, v, v};
  }
  static ALWAYS_INLINE Lanes load(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
  }
  static ALWAYS_INLINE Lanes load(const bf16* p) {
    const uint16_t* bits = (const uint16_t*)p;
    return {widen(vld1_u16(bits)), widen(vld1_u16(bits + 4)), widen(vld1_u16(bits + 8)),
            widen(vld1_u16(bits + 12))};
  }
  template <class W>
  static ALWAYS_INLINE Lanes load(const W* p, int n) {
    W padded[16] = {};
    std::memcpy(padded, p, n * sizeof(W));
    return load(padded);
  }
  static ALWAYS_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {vfmaq_f32(c.q[0], a.q[0], b.q[0]), vfmaq_f32(c.q[1], a.q[1], b.q[1]),
            vfmaq_f32(c.q[2], a.q[2], b.q[2]), vfmaq_f32(c.q[3], a.q[3], b.q[3])};
  }
  static ALWAYS_INLINE Lanes add(Lanes a, Lanes b) {
    return {vaddq_f32(a.q[0], b.q[0]), vaddq_f32(a.q[1], b.q[1]), vaddq_f32(a.q[2], b.q[2]),
            vaddq_f32(a.q[3], b.q[3])};
  }
  static ALWAYS_INLINE Lanes mul(Lanes a, Lanes b) {
    return {vmulq_f32(a.q[0], b.q[0]), vmulq_f32(a.q[1], b.q[1]), vmulq_f32(a.q[2], b.q[2]),
            vmulq_f32(a.q[3], b.q[3])};
  }
  ALWAYS_INLINE void store(float* p) const {
    UNROLL for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, q[i]);
  }
  ALWAYS_INLINE void store(float* p, int n) const {
    float padded[16];
    store(padded);
    std::memcpy(p, padded, n * sizeof(float));
  }

  static ALWAYS_INLINE void sum4(const Lanes* a, float* out) {
    const float32x4_t ab = sum_halves(a[0].sum_fours(), a[1].sum_fours());
    const float32x4_t cd = sum_halves(a[2].sum_fours(), a[3].sum_fours());
    vst1q_f32(out, vpaddq_f32(ab, cd));
  }

 private:
  ALWAYS_INLINE float32x4_t sum_fours() const {
    return vaddq_f32(vaddq_f32(q[0], q[2]), vaddq_f32(q[1], q[3]));
  }
  // a0 + a2, a1 + a3, b0 + b2, b1 + b3
  static ALWAYS_INLINE float32x4_t sum_halves(float32x4_t a, float32x4_t b) {
    return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
                     vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
  }
  static ALWAYS_INLINE float32x4_t widen(uint16x4_t h) {
    return vreinterpretq_f32_u32(vshll_n_u16(h, 16));
  }
};
