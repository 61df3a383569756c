#include "thread_pool.h"

#include <pthread.h>
#include <signal.h>

namespace {

constexpr int MOST_WORKERS = 255;
constexpr size_t STACK_BYTES = 4 << 20;  // a tile of activations is on the stack (panels.h)
constexpr int SPINS = 4000;              // about a tenth of a millisecond

struct Pool {
  pthread_mutex_t in_use;   // one call at a time
  pthread_mutex_t sleeping;
  pthread_cond_t work, done;
  int workers;              // threads started
  uint32_t calls;           // counts up with each call
  int sleepers;             // workers that wait for `work`
  int caller_sleeps;
  // The call. A worker takes a seat before it reads the rest.
  int seats, left;          // seats: those still free; left: workers that have left theirs
  int64_t items, next;
  WorkItem run;
  void* context;
};

Pool pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER,
             0, 0, 0, 0, 0, 0, 0, 0, nullptr, nullptr};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Of everything that two threads look at at once. All in one order: who goes to sleep and who wakes them each write
// first and look at the other's word then.
template <class T>
T read(const T& value) {
  return __atomic_load_n(&value, __ATOMIC_SEQ_CST);
}
template <class T>
void write(T& value, T to) {
  __atomic_store_n(&value, to, __ATOMIC_SEQ_CST);
}

void run_items(WorkItem run, void* context, int64_t items, int thread) {
  for (;;) {
    const int64_t item = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED);
    if (item >= items) return;
    run(context, item, thread);
  }
}

// The number of a free seat, 0 if there is none.
int take_seat() {
  int free = read(pool.seats);
  while (free > 0) {
    if (__atomic_compare_exchange_n(&pool.seats, &free, free - 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return free;
  }
  return 0;
}

void wait_for_call(uint32_t seen) {
  for (int i = 0; i < SPINS; ++i) {
    if (read(pool.calls) != seen) return;
    pause();
  }
  pthread_mutex_lock(&pool.sleeping);
  __atomic_fetch_add(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
  while (read(pool.calls) == seen) pthread_cond_wait(&pool.work, &pool.sleeping);
  __atomic_fetch_sub(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
  pthread_mutex_unlock(&pool.sleeping);
}

void* work(void* first_seen) {
  uint32_t seen = (uint32_t)(uintptr_t)first_seen;
  for (;;) {
    wait_for_call(seen);
    seen = read(pool.calls);
    const int seat = take_seat();
    if (seat == 0) continue;
    run_items(pool.run, pool.context, pool.items, seat);
    __atomic_fetch_add(&pool.left, 1, __ATOMIC_SEQ_CST);
    if (read(pool.caller_sleeps)) {
      pthread_mutex_lock(&pool.sleeping);
      pthread_cond_signal(&pool.done);
      pthread_mutex_unlock(&pool.sleeping);
    }
  }
}

// A child has the caller's thread alone.
void after_fork() {
  pthread_mutex_init(&pool.in_use, nullptr);
  pthread_mutex_init(&pool.sleeping, nullptr);
  pthread_cond_init(&pool.work, nullptr);
  pthread_cond_init(&pool.done, nullptr);
  pool.workers = pool.sleepers = pool.caller_sleeps = pool.seats = pool.left = 0;
}

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, after_fork);

// Starts workers until there are `wanted`; fewer where the system gives no more.
void start_workers(int wanted) {
  if (pool.workers >= wanted) return;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  // Signals are for the threads of the program, but for the one that tells of a page that a kernel cannot have.
  sigset_t all, before;
  sigfillset(&all);
  sigdelset(&all, SIGBUS);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (pool.workers < wanted) {
    pthread_t thread;
    if (pthread_create(&thread, &attributes, work, (void*)(uintptr_t)read(pool.calls)) != 0) break;
    ++pool.workers;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
}

void wait_for_workers(int taken) {
  for (int i = 0; i < SPINS; ++i) {
    if (read(pool.left) == taken) return;
    pause();
  }
  pthread_mutex_lock(&pool.sleeping);
  write(pool.caller_sleeps, 1);
  while (read(pool.left) != taken) pthread_cond_wait(&pool.done, &pool.sleeping);
  write(pool.caller_sleeps, 0);
  pthread_mutex_unlock(&pool.sleeping);
}

}  // namespace

void parallel_for(int64_t items, int threads, WorkItem run, void* context) {
  int helpers = threads - 1 < MOST_WORKERS ? threads - 1 : MOST_WORKERS;
  if (helpers > items - 1) helpers = (int)(items - 1);
  if (helpers < 1 || pthread_mutex_trylock(&pool.in_use) != 0) {
    for (int64_t item = 0; item < items; ++item) run(context, item, 0);
    return;
  }
  start_workers(helpers);
  pool.run = run;
  pool.context = context;
  pool.items = items;
  pool.next = 0;
  pool.left = 0;
  write(pool.seats, helpers);
  __atomic_fetch_add(&pool.calls, 1, __ATOMIC_SEQ_CST);
  if (read(pool.sleepers) > 0) {
    pthread_mutex_lock(&pool.sleeping);
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.sleeping);
  }
  run_items(run, context, items, 0);
  // Seats that nobody took are gone; who took one is waited for.
  const int taken = helpers - __atomic_exchange_n(&pool.seats, 0, __ATOMIC_SEQ_CST);
  wait_for_workers(taken);
  pthread_mutex_unlock(&pool.in_use);
}
