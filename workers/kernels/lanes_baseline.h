// Sixteen lanes in an array, for any processor. Included in namespace baseline.

struct Lanes {
  float l[16];
  static constexpr int TILE_ROWS = 1, TILE_COLUMNS = 4;
  // Rows that the attention kernel takes along with sixteen columns.
  static constexpr int ATTENTION_ROWS = 1;

  static ALWAYS_INLINE Lanes zero() { return {}; }
  static ALWAYS_INLINE Lanes set1(float x) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = x;
    return r;
  }
  static ALWAYS_INLINE Lanes load(const float* p) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = p[i];
    return r;
  }
  static ALWAYS_INLINE Lanes load(const bf16* p) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = __builtin_bit_cast(float, (uint32_t)p[i].bits << 16);
    return r;
  }
  static ALWAYS_INLINE Lanes load(const int8_t* p) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = (float)p[i];
    return r;
  }
  // The even, or the odd ones, of 32 neighbours.
  static ALWAYS_INLINE Lanes load_even(const bf16* p) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = __builtin_bit_cast(float, (uint32_t)p[2 * i].bits << 16);
    return r;
  }
  static ALWAYS_INLINE Lanes load_odd(const bf16* p) { return load_even(p + 1); }
  template <class W>
  static ALWAYS_INLINE Lanes load(const W* p, int n) {
    W padded[16] = {};
    std::memcpy(padded, p, n * sizeof(W));
    return load(padded);
  }
  static ALWAYS_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
    // Mostly a call of a function for each: unrolled, these would be half of the library.
    Lanes r;
    _Pragma("GCC unroll 1") for (int i = 0; i < 16; ++i) r.l[i] = __builtin_fmaf(a.l[i], b.l[i], c.l[i]);
    return r;
  }
  static ALWAYS_INLINE Lanes add(Lanes a, Lanes b) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = a.l[i] + b.l[i];
    return r;
  }
  static ALWAYS_INLINE Lanes mul(Lanes a, Lanes b) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = a.l[i] * b.l[i];
    return r;
  }
  static ALWAYS_INLINE Lanes sub(Lanes a, Lanes b) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = a.l[i] - b.l[i];
    return r;
  }
  // a where a > b, else b.
  static ALWAYS_INLINE Lanes max(Lanes a, Lanes b) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = a.l[i] > b.l[i] ? a.l[i] : b.l[i];
    return r;
  }
  // 2^(n - 127), n in the low eight bits of each lane; anything where the lane is not finite.
  static ALWAYS_INLINE Lanes power(Lanes n) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) {
      r.l[i] = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, n.l[i]) << 23);
    }
    return r;
  }
  // x, but 0 where t is below `least`.
  static ALWAYS_INLINE Lanes zero_below(Lanes x, Lanes t, float least) {
    Lanes r;
    UNROLL for (int i = 0; i < 16; ++i) r.l[i] = t.l[i] < least ? 0.0f : x.l[i];
    return r;
  }
  ALWAYS_INLINE void store(float* p) const { std::memcpy(p, l, sizeof l); }
  ALWAYS_INLINE void store(float* p, int n) const { std::memcpy(p, l, n * sizeof(float)); }

  static ALWAYS_INLINE void sum4(const Lanes* a, float* out) {
    UNROLL for (int j = 0; j < 4; ++j) {
      float s[8];
      UNROLL for (int i = 0; i < 8; ++i) s[i] = a[j].l[i] + a[j].l[i + 8];
      UNROLL for (int i = 0; i < 4; ++i) s[i] = s[i] + s[i + 4];
      out[j] = (s[0] + s[2]) + (s[1] + s[3]);
    }
  }
};
