// Work items of a kernel, on the pool's threads.

// body(item, thread) for each item; see parallel_for.
template <class Body>
static ALWAYS_INLINE void each_item(int64_t items, int threads, const Body& body) {
  if (threads <= 1) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
  struct Call {
    static void run(void* context, int64_t item, int thread) { (*(const Body*)context)(item, thread); }
  };
  parallel_for(items, threads, Call::run, (void*)&body);
}

// body(first, count) for n numbers in about four stretches a thread.
template <class Body>
static ALWAYS_INLINE void each_stretch(int64_t n, int threads, const Body& body) {
  const int64_t share = threads <= 1 ? n : (n + 4 * threads - 1) / (4 * threads);
  if (n == 0) return;
  each_item((n + share - 1) / share, threads, [&](int64_t item, int) {
    const int64_t first = item * share;
    body(first, n - first < share ? n - first : share);
  });
}
