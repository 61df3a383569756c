// Switching between stacks within one thread, for x86-64 and 64-bit Arm.

#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

// Saves the callee's registers on this stack, its end in *from, and goes on where `to` was saved.
extern "C" void cuda_on_cpu_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
constexpr int SAVED_WORDS = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, %function
cuda_on_cpu_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
constexpr int SAVED_WORDS = 20;
#else
#error "cuda_on_cpu knows x86-64 and 64-bit Arm"
#endif

// Not a power of two: the ends of all stacks would lie in the same few lines of the cache.
constexpr size_t STACK_BYTES = (128 << 10) + 192;

// A stack on which `begin` runs when first switched to; `begin` never returns.
inline void* fiber_stack(char* memory, void (*begin)()) {
  void** top = (void**)(memory + STACK_BYTES - 64);
#if defined(__x86_64__)
  // As after a call: the return address of `begin`'s caller lies where the stack is 8 bytes off a multiple of 16.
  top[-1] = nullptr;
  top[-2] = (void*)begin;
  for (int i = 0; i < SAVED_WORDS; ++i) top[-3 - i] = nullptr;
  return top - 2 - SAVED_WORDS;
#else
  void** saved = top - SAVED_WORDS;
  for (int i = 0; i < SAVED_WORDS; ++i) saved[i] = nullptr;
  saved[1] = (void*)begin;
  return saved;
#endif
}

inline char* new_stacks(int count) {
  void* memory = mmap(nullptr, count * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return (char*)memory;
}
