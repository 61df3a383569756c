// Sixteen lanes in one register. Included in namespace avx512.

struct Lanes {
  __m512 v;
  static constexpr int TILE_ROWS = 6, TILE_COLUMNS = 4;
  // Rows that the attention kernel takes along with sixteen columns: their sums fit the registers.
  static constexpr int ATTENTION_ROWS = 12;

  static ALWAYS_INLINE Lanes zero() { return {_mm512_setzero_ps()}; }
  static ALWAYS_INLINE Lanes set1(float x) { return {_mm512_set1_ps(x)}; }
  static ALWAYS_INLINE Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static ALWAYS_INLINE Lanes load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
  static ALWAYS_INLINE Lanes load(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
  }
  // The even, or the odd ones, of 32 neighbours.
  static ALWAYS_INLINE Lanes load_even(const bf16* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
  }
  static ALWAYS_INLINE Lanes load_odd(const bf16* p) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)))};
  }
  static ALWAYS_INLINE Lanes load(const float* p, int n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  static ALWAYS_INLINE Lanes load(const bf16* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(mask(n), p));
  }
  static ALWAYS_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static ALWAYS_INLINE Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
  static ALWAYS_INLINE Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static ALWAYS_INLINE Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
  // a where a > b, else b.
  static ALWAYS_INLINE Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
  // 2^(n - 127), n in the low eight bits of each lane; anything where the lane is not finite.
  static ALWAYS_INLINE Lanes power(Lanes n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(n.v), 23))};
  }
  // x, but 0 where t is below `least`.
  static ALWAYS_INLINE Lanes zero_below(Lanes x, Lanes t, float least) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(t.v, _mm512_set1_ps(least), _CMP_NLT_UQ), x.v)};
  }
  ALWAYS_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  ALWAYS_INLINE void store(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }

  static ALWAYS_INLINE void sum4(const Lanes* a, float* out) {
    _mm_storeu_ps(out, sum_eights(a[0].sum8(), a[1].sum8(), a[2].sum8(), a[3].sum8()));
  }

 private:
  ALWAYS_INLINE __m256 sum8() const {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  }
  static ALWAYS_INLINE __mmask16 mask(int n) { return (__mmask16)((1u << n) - 1); }
  static ALWAYS_INLINE Lanes widen(__m256i h) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
  }
};
