// What the files that CPUs and cards share are written in, on a CPU: of the CPU kernels, which include this once for each
// instruction set, and of the CPU that plays a card. DEVICE is whatever the including file says.

DEVICE float fma_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float divide(float a, float b) { return a / b; }
DEVICE double divide(double a, double b) { return a / b; }
DEVICE float as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
DEVICE double as_double(uint64_t bits) { return __builtin_bit_cast(double, bits); }
DEVICE uint32_t as_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
DEVICE uint64_t as_bits(double x) { return __builtin_bit_cast(uint64_t, x); }
DEVICE uint64_t high_word(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }
DEVICE int leading_zeros(uint64_t x) { return __builtin_clzll(x); }
