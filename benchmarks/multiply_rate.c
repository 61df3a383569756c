// 256-bit multiply instructions from registers: twelve a turn, no result of which another needs soon.

#define TWELVE(instruction)                                                                                  \
  instruction " %%ymm15, %%ymm14, %%ymm0\n" instruction " %%ymm15, %%ymm14, %%ymm1\n"                        \
  instruction " %%ymm15, %%ymm14, %%ymm2\n" instruction " %%ymm15, %%ymm14, %%ymm3\n"                        \
  instruction " %%ymm15, %%ymm14, %%ymm4\n" instruction " %%ymm15, %%ymm14, %%ymm5\n"                        \
  instruction " %%ymm15, %%ymm14, %%ymm6\n" instruction " %%ymm15, %%ymm14, %%ymm7\n"                        \
  instruction " %%ymm15, %%ymm14, %%ymm8\n" instruction " %%ymm15, %%ymm14, %%ymm9\n"                        \
  instruction " %%ymm15, %%ymm14, %%ymm10\n" instruction " %%ymm15, %%ymm14, %%ymm11\n"

#define LOOP(instruction)                                                                                    \
  void instruction(long turns) {                                                                             \
    for (long i = 0; i < turns; ++i) {                                                                       \
      __asm__ volatile(TWELVE(#instruction)::                                                                \
                           : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                             "xmm10", "xmm11");                                                              \
    }                                                                                                        \
    __asm__ volatile("vzeroupper");                                                                          \
  }

LOOP(vpmaddubsw)
LOOP(vpmaddwd)
LOOP(vpmulld)
LOOP(vpdpbusd)
