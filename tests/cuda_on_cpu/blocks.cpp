// Runs a block's threads as fibers.

#include "blocks.h"

#include <cstdio>
#include <vector>

#include "cuda_on_cpu.h"
#include "fibers.h"

Dim3 threadIdx, blockIdx, blockDim, gridDim;
bool (*is_card_memory)(const void* at, size_t num_bytes) = nullptr;

namespace {

constexpr int MOST_THREADS = 1024;

struct Copy {
  void* to;
  const void* from;
  int num_bytes;
};

struct Thread {
  void* stack;
  Dim3 index;
  int waits_for;    // ON_CPU_..., 0 while it can run
  bool whole_block; // whether it waits for the block, not for its warp
  bool done;
  unsigned waits;   // how often it has waited for its warp: which of the two shown values is the newest
  on_cpu::Shown shown[2];
  unsigned copied;              // how many copies it began
  std::vector<Copy> copies;     // those that have not happened
};

Thread threads[MOST_THREADS];
char* stacks = nullptr;
int current = 0;
void* scheduler = nullptr;
Body body = nullptr;
const void* arguments = nullptr;

[[noreturn]] void undefined(const char* what) {
  std::fprintf(stderr, "cuda_on_cpu: %s, in block (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  std::abort();
}

void resume(void** from, int index) {
  current = index;
  threadIdx = threads[index].index;
  threads[index].waits_for = 0;
  cuda_on_cpu_switch(from, threads[index].stack);
}

// The lanes of a warp run one after another. After the last one the scheduler looks at all of them.
void next_lane() {
  void** from = &threads[current].stack;
  if (current % 32 == 31) {
    cuda_on_cpu_switch(from, scheduler);
  } else {
    resume(from, current + 1);
  }
}

void run_thread() {
  body(arguments);
  threads[current].done = true;
  next_lane();
  std::abort();
}

void wait(int what, bool whole_block) {
  Thread& thread = threads[current];
  thread.waits_for = what;
  thread.whole_block = whole_block;
  next_lane();
}

// Lets the warp of threads first to stop - 1, none of which has ended, run until each has ended or waits for the block.
void run_warp(int first, int stop) {
  for (;;) {
    resume(&scheduler, first);
    const Thread& one = threads[first];
    for (int i = first; i < stop; ++i) {
      if (threads[i].done != one.done) undefined("a lane ended while others of its warp wait");
      if (one.done) continue;
      if (threads[i].waits_for != one.waits_for || threads[i].whole_block != one.whole_block) {
        undefined("lanes of a warp wait for different things");
      }
    }
    if (one.done || one.whole_block) return;
  }
}

}  // namespace

namespace on_cpu {

int lane() { return current % 32; }
Shown& mine() { return threads[current].shown[(threads[current].waits + 1) % 2]; }
const Shown& of_lane(int lane) { return threads[current / 32 * 32 + lane].shown[threads[current].waits % 2]; }

void wait_for_warp(int what) {
  wait(what, false);
  ++threads[current].waits;
}
void wait_for_block(int what) { wait(what, true); }

void copy(void* to, const void* from, int num_bytes) {
  Thread& thread = threads[current];
  if ((uintptr_t)to % num_bytes != 0 || (uintptr_t)from % num_bytes != 0) undefined("a copy from or to an odd place");
  if (is_card_memory != nullptr && !is_card_memory(from, num_bytes)) undefined("a copy from outside the card's memory");
  if (thread.copied++ % 2 == 0) {
    std::memcpy(to, from, num_bytes);
  } else {
    thread.copies.push_back({to, from, num_bytes});
  }
}
void copies_done() {
  for (const Copy& each : threads[current].copies) std::memcpy(each.to, each.from, each.num_bytes);
  threads[current].copies.clear();
}

}  // namespace on_cpu

void run_blocks(Body kernel, const void* kernel_arguments, const unsigned* grid, const unsigned* block) {
  const int count = (int)(block[0] * block[1] * block[2]);
  if (count < 1 || count > MOST_THREADS || count % 32 != 0 || block[2] != 1) undefined("a block of an unexpected shape");
  if (stacks == nullptr) stacks = new_stacks(MOST_THREADS);
  body = kernel;
  arguments = kernel_arguments;
  blockDim = {block[0], block[1], block[2]};
  gridDim = {grid[0], grid[1], grid[2]};
  for (unsigned z = 0; z < grid[2]; ++z) {
    for (unsigned y = 0; y < grid[1]; ++y) {
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        for (int i = 0; i < count; ++i) {
          const Dim3 index = {i % block[0], i / block[0], 0};
          threads[i] = Thread{fiber_stack(stacks + i * STACK_BYTES, run_thread), index, 0, false, false, 0, {}, 0, {}};
        }
        for (bool ended = false; !ended;) {
          for (int first = 0; first < count; first += 32) run_warp(first, first + 32);
          for (int i = 0; i < count; ++i) {
            if (threads[i].done != threads[0].done) undefined("a thread ended before a barrier");
          }
          ended = threads[0].done;
        }
      }
    }
  }
}
