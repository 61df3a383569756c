// What the driver's files share: what the card is, its streams, and what lies in its memory.

#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace driver {

enum Result {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, DEVICE_UNAVAILABLE = 46, NO_DEVICE = 100, INVALID_DEVICE = 101,
  INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901
};

// What the card is and what goes wrong. `fail_after`: launches until the card is lost, -1 never. `others`: bytes that other
// programs have taken.
struct Card {
  long count = 1, memory = 1l << 30, capability = 86, version = 13000, others = 0, fail_after = -1, init = 0, taken = 0;
  long launches = 0, graphs = 0, waits = 0, copied = 0;
};
inline Card card;

inline std::recursive_mutex everything;
using Lock = std::lock_guard<std::recursive_mutex>;

struct Stream;

struct Event {
  intptr_t context;
  std::shared_ptr<Stream> stream;
  size_t place = 0;  // operations of the stream before it
  double at_ms = 0;
};

// The card of this thread's next call, as a context: 1 for the first.
inline thread_local intptr_t current = 0;

struct Stream {
  intptr_t context = current;
  std::vector<std::function<void()>> todo;
  size_t done = 0;
  bool capturing = false, invalidated = false;
  std::vector<std::function<void()>> captured;

  void add(std::function<void()> operation) { (capturing ? captured : todo).push_back(std::move(operation)); }
  void run_to(size_t place) {
    while (done < place) {
      auto operation = std::move(todo[done]);
      ++done;
      operation();
    }
    if (done == todo.size()) {
      // Places keep counting; what is done needs no memory.
      for (auto& each : todo) each = nullptr;
    }
  }
  void run() { run_to(todo.size()); }
};

// A stream that this thread captures in a mode that forbids what may wait for other streams, such as allocations.
inline thread_local Stream* strict = nullptr;

using StreamRef = std::shared_ptr<Stream>*;
using EventRef = std::shared_ptr<Event>*;

inline Stream& of(void* handle) { return **static_cast<StreamRef>(handle); }

struct Stretch {
  size_t num_bytes;
  intptr_t context;
};

inline bool lost = false;
inline std::map<uintptr_t, Stretch> device_memory, host_memory;
inline std::map<intptr_t, size_t> used;
inline intptr_t computing = 0;  // the card of the kernel that runs

inline bool inside(const std::map<uintptr_t, Stretch>& memory, uintptr_t at, size_t num_bytes, intptr_t context) {
  auto after = memory.upper_bound(at);
  if (after == memory.begin()) return false;
  --after;
  return after->second.context == context && at + num_bytes <= after->first + after->second.num_bytes;
}

}  // namespace driver

using namespace driver;

#define CHECKED          \
  Lock lock(everything); \
  if (lost) return ILLEGAL_ADDRESS
#define WITH_CARD \
  CHECKED;        \
  if (current == 0) return INVALID_CONTEXT
#define NOT_IN_CAPTURE                                                      \
  if (strict != nullptr) return strict->invalidated = true, CAPTURE_UNSUPPORTED
// What is asked of a stream is asked of its own card.
#define ON_STREAM \
  CHECKED;        \
  if (of(stream).context != current) return INVALID_CONTEXT
