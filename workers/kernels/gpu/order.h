// Numbers as integers of the same order. CPU kernels include this file too, once for each instruction set, so it has no guard,
// and DEVICE, as_bits and as_float are whatever the including file says.

// -0 is 0, and what is not a number is larger than any.
DEVICE uint32_t order_of(float x) {
  const uint32_t bits = as_bits(x + 0.0f);
  return x != x ? 0xffffffffu : bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEVICE bool is_finite_order(uint32_t order) { return order > 0x007fffffu && order < 0xff800000u; }
// The number again.
DEVICE float from_order(uint32_t order) { return as_float(order >> 31 ? order & 0x7fffffffu : ~order); }
