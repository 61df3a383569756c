// Calls of random size from one thread, from two at once, and from forked children: each item runs once, and no
// two that run at once have the same thread number. Prints what went wrong.

#include "thread_pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <random>
#include <thread>
#include <vector>

struct Call {
  std::vector<int> runs;
  int threads, wrong;
  int busy[8];
};

static void run(void* context, int64_t item, int thread) {
  Call& call = *(Call*)context;
  if (thread < 0 || thread >= call.threads) {
    __atomic_fetch_add(&call.wrong, 1, __ATOMIC_SEQ_CST);
    return;
  }
  if (__atomic_fetch_add(&call.busy[thread], 1, __ATOMIC_SEQ_CST) != 0) {
    __atomic_fetch_add(&call.wrong, 1, __ATOMIC_SEQ_CST);
  }
  for (volatile int i = 0; i < item % 7 * 50; i = i + 1) {
  }
  __atomic_fetch_add(&call.runs[item], 1, __ATOMIC_SEQ_CST);
  __atomic_fetch_sub(&call.busy[thread], 1, __ATOMIC_SEQ_CST);
}

static int wrong_of(int calls, unsigned seed) {
  std::mt19937 random(seed);
  int wrong = 0;
  for (int i = 0; i < calls; ++i) {
    Call call{std::vector<int>(random() % 50), 1 + (int)(random() % 8), 0, {}};
    parallel_for((int64_t)call.runs.size(), call.threads, run, &call);
    for (const int runs : call.runs) wrong += runs != 1;
    wrong += call.wrong;
    if (random() % 50 == 0) usleep(random() % 1500);  // the threads go to sleep
  }
  return wrong;
}

int main() {
  int wrong = wrong_of(3000, 1);
  int of_threads[2];
  std::thread first([&] { of_threads[0] = wrong_of(1000, 2); }), second([&] { of_threads[1] = wrong_of(1000, 3); });
  first.join();
  second.join();
  wrong += of_threads[0] + of_threads[1];
  for (unsigned i = 0; i < 10; ++i) {
    const pid_t child = fork();
    if (child == 0) _exit(wrong_of(200, i) != 0);
    int status = 0;
    waitpid(child, &status, 0);
    wrong += status != 0;
  }
  wrong += wrong_of(200, 4);
  if (wrong != 0) std::printf("%d items wrong\n", wrong);
  return wrong != 0;
}
