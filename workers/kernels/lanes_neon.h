// Sixteen lanes in four registers. Included in namespace neon.

struct Lanes {
  float32x4_t q[4];
  static constexpr int TILE_ROWS = 2, TILE_COLUMNS = 2;
  // Rows that the attention kernel takes along with sixteen columns: their sums fit the registers.
  static constexpr int ATTENTION_ROWS = 6;

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
  static ALWAYS_INLINE Lanes load(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
  }
  // The even, or the odd ones, of 32 neighbours.
  static ALWAYS_INLINE Lanes load_even(const bf16* p) {
    Lanes r;
    UNROLL for (int i = 0; i < 4; ++i) r.q[i] = vreinterpretq_f32_u32(vshlq_n_u32(two(p + 8 * i), 16));
    return r;
  }
  static ALWAYS_INLINE Lanes load_odd(const bf16* p) {
    Lanes r;
    UNROLL for (int i = 0; i < 4; ++i) {
      r.q[i] = vreinterpretq_f32_u32(vandq_u32(two(p + 8 * i), vdupq_n_u32(0xffff0000u)));
    }
    return r;
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
  static ALWAYS_INLINE Lanes sub(Lanes a, Lanes b) {
    return {vsubq_f32(a.q[0], b.q[0]), vsubq_f32(a.q[1], b.q[1]), vsubq_f32(a.q[2], b.q[2]),
            vsubq_f32(a.q[3], b.q[3])};
  }
  // a where a > b, else b.
  static ALWAYS_INLINE Lanes max(Lanes a, Lanes b) {
    Lanes r;
    UNROLL for (int i = 0; i < 4; ++i) r.q[i] = vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]);
    return r;
  }
  // 2^(n - 127), n in the low eight bits of each lane; anything where the lane is not finite.
  static ALWAYS_INLINE Lanes power(Lanes n) {
    Lanes r;
    UNROLL for (int i = 0; i < 4; ++i) {
      r.q[i] = vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(n.q[i]), 23));
    }
    return r;
  }
  // x, but 0 where t is below `least`.
  static ALWAYS_INLINE Lanes zero_below(Lanes x, Lanes t, float least) {
    Lanes r;
    UNROLL for (int i = 0; i < 4; ++i) {
      const uint32x4_t below = vcltq_f32(t.q[i], vdupq_n_f32(least));
      r.q[i] = vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x.q[i]), below));
    }
    return r;
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
  static ALWAYS_INLINE uint32x4_t two(const bf16* p) {
    return vreinterpretq_u32_u16(vld1q_u16((const uint16_t*)p));
  }
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
