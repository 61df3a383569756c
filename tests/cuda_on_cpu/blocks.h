#pragma once

#include <cstddef>

using Body = void (*)(const void* arguments);

// Runs `kernel` for every thread of every block, block after block; `grid` and `block` are x, y, z.
void run_blocks(Body kernel, const void* arguments, const unsigned* grid, const unsigned* block);

// Whether all these bytes are of the card's memory; where set, asynchronous copies outside of it end the process.
extern bool (*is_card_memory)(const void* at, size_t num_bytes);

struct Kernel {
  const char* name;
  Body body;
  size_t arguments_bytes;
};

// By its name, null where there is none (kernel_table.cpp, which `build.py` writes).
const Kernel* find_kernel(const char* name);
