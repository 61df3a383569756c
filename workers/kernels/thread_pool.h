// Threads of our own for work items. They spin for a moment after each call, since the next one mostly comes at
// once, then sleep. They start when first needed, start anew after a fork, and end with the process.

#pragma once

#include <cstdint>

using WorkItem = void (*)(void* context, int64_t item, int thread);

// Runs run(context, item, thread) for each item of 0 to items - 1, on up to `threads` threads, the caller among
// them; thread is below `threads`, and no two that run at once have the same. Items are handed out one by one in
// order. Returns when all are done. A call that comes while another one has the pool runs on the caller alone.
void parallel_for(int64_t items, int threads, WorkItem run, void* context);
