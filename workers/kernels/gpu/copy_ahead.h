// Copies from a card's memory to a thread block's shared memory that run beside what the thread does next (PTX ISA,
// 'cp.async').

#pragma once

#include "device.h"

// Begins a copy of 16 or 4 bytes, both ends at multiples of that. `copies_done` waits for it.
template <int BYTES>
DEVICE void copy_ahead(void* to, const void* from) {
  static_assert(BYTES == 16 || BYTES == 4, "pieces of 16 or 4 bytes");
#ifndef __CUDACC_RTC__
  copy_on_cpu(to, from, BYTES);
#elif __CUDA_ARCH__ >= 800
  const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(at), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" : : "r"(at), "l"(from) : "memory");
  }
#else
  // Before compute capability 8.0 there are none, and the thread copies itself.
  if constexpr (BYTES == 16) {
    *(uint4*)to = *(const uint4*)from;
  } else {
    *(uint32_t*)to = *(const uint32_t*)from;
  }
#endif
}

// Waits for the copies that this thread began; a barrier then makes them visible to the others of the block.
DEVICE void copies_done() {
#ifndef __CUDACC_RTC__
  copies_done_on_cpu();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}
