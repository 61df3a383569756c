// What the files that CPU and cards share are written in (gpu/exponential.h, gpu/choosing.h), for a CPU.

#define DEVICE static ALWAYS_INLINE

static ALWAYS_INLINE float fma_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static ALWAYS_INLINE float divide(float a, float b) { return a / b; }
static ALWAYS_INLINE double divide(double a, double b) { return a / b; }
static ALWAYS_INLINE float as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
static ALWAYS_INLINE double as_double(uint64_t bits) { return __builtin_bit_cast(double, bits); }
static ALWAYS_INLINE uint32_t as_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
static ALWAYS_INLINE uint64_t as_bits(double x) { return __builtin_bit_cast(uint64_t, x); }
static ALWAYS_INLINE uint64_t high_word(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }
static ALWAYS_INLINE int leading_zeros(uint64_t x) { return __builtin_clzll(x); }
