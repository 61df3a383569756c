// Sixteen lanes in two registers. Included in namespace avx2.

struct Lanes {
  __m256 lo, hi;
  static constexpr int TILE_ROWS = 3, TILE_COLUMNS = 2;
  // Rows that the attention kernel takes along with sixteen columns: their sums fit the registers.
  static constexpr int ATTENTION_ROWS = 6;

  static ALWAYS_INLINE Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static ALWAYS_INLINE Lanes set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static ALWAYS_INLINE Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static ALWAYS_INLINE Lanes load(const bf16* p) {
    return {widen(_mm_loadu_si128((const __m128i*)p)), widen(_mm_loadu_si128((const __m128i*)(p + 8)))};
  }
  static ALWAYS_INLINE Lanes load(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
  }
  // The even, or the odd ones, of 32 neighbours.
  static ALWAYS_INLINE Lanes load_even(const bf16* p) { return {even(p), even(p + 16)}; }
  static ALWAYS_INLINE Lanes load_odd(const bf16* p) { return {odd(p), odd(p + 16)}; }
  template <class W>
  static ALWAYS_INLINE Lanes load(const W* p, int n) {
    W padded[16] = {};
    std::memcpy(padded, p, n * sizeof(W));
    return load(padded);
  }
  static ALWAYS_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static ALWAYS_INLINE Lanes add(Lanes a, Lanes b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
  }
  static ALWAYS_INLINE Lanes mul(Lanes a, Lanes b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
  }
  static ALWAYS_INLINE Lanes sub(Lanes a, Lanes b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
  }
  // a where a > b, else b.
  static ALWAYS_INLINE Lanes max(Lanes a, Lanes b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
  }
  // 2^(n - 127), n in the low eight bits of each lane; anything where the lane is not finite.
  static ALWAYS_INLINE Lanes power(Lanes n) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n.lo), 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n.hi), 23))};
  }
  // x, but 0 where t is below `least`.
  static ALWAYS_INLINE Lanes zero_below(Lanes x, Lanes t, float least) {
    const __m256 bound = _mm256_set1_ps(least);
    return {_mm256_andnot_ps(_mm256_cmp_ps(t.lo, bound, _CMP_LT_OQ), x.lo),
            _mm256_andnot_ps(_mm256_cmp_ps(t.hi, bound, _CMP_LT_OQ), x.hi)};
  }
  ALWAYS_INLINE void store(float* p) const {
    _mm256_storeu_ps(p, lo);
    _mm256_storeu_ps(p + 8, hi);
  }
  ALWAYS_INLINE void store(float* p, int n) const {
    float padded[16];
    store(padded);
    std::memcpy(p, padded, n * sizeof(float));
  }

  static ALWAYS_INLINE void sum4(const Lanes* a, float* out) {
    _mm_storeu_ps(out, sum_eights(_mm256_add_ps(a[0].lo, a[0].hi), _mm256_add_ps(a[1].lo, a[1].hi),
                                  _mm256_add_ps(a[2].lo, a[2].hi), _mm256_add_ps(a[3].lo, a[3].hi)));
  }

 private:
  static ALWAYS_INLINE __m256 even(const bf16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)p), 16));
  }
  static ALWAYS_INLINE __m256 odd(const bf16* p) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_loadu_si256((const __m256i*)p), _mm256_set1_epi32(-65536)));
  }
  static ALWAYS_INLINE __m256 widen(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
};
