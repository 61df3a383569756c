// libcuda.so.1 for machines without a card: the functions of CUDA's driver that Potluck calls, whose card is the CPU.
//
// So tests run the very code that drives a card, through the same bindings. Three things are stricter than a card:
// - A stream does nothing until somebody waits for it. What forgets to wait finds old numbers, every time.
// - Copies outside of an allocation are refused, and so is another card's memory.
// - What our kernels may not do ends the process (cuda_on_cpu.h).
//
// `cuda_on_cpu_set` changes what the card is and what goes wrong; the environment's CUDA_ON_CPU ("memory=8000000,count=2")
// says it at the start.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <time.h>

#include "blocks.h"

#define API extern "C" __attribute__((visibility("default")))



namespace {

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
Card card;

std::recursive_mutex everything;
using Lock = std::lock_guard<std::recursive_mutex>;

double now_ms() {
  timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * 1e3 + at.tv_nsec * 1e-6;
}

struct Stream;

struct Event {
  intptr_t context;
  std::shared_ptr<Stream> stream;
  size_t place = 0;  // operations of the stream before it
  double at_ms = 0;
};

// The card of this thread's next call, as a context: 1 for the first.
thread_local intptr_t current = 0;

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
thread_local Stream* strict = nullptr;

using StreamRef = std::shared_ptr<Stream>*;
using EventRef = std::shared_ptr<Event>*;

struct Graph {
  std::vector<std::function<void()>> operations;
};

struct Stretch {
  size_t num_bytes;
  intptr_t context;
};

bool lost = false;
std::map<uintptr_t, Stretch> device_memory, host_memory;
std::map<intptr_t, size_t> used;
intptr_t computing = 0;  // the card of the kernel that runs

bool inside(const std::map<uintptr_t, Stretch>& memory, uintptr_t at, size_t num_bytes, intptr_t context) {
  auto after = memory.upper_bound(at);
  if (after == memory.begin()) return false;
  --after;
  return after->second.context == context && at + num_bytes <= after->first + after->second.num_bytes;
}

// Allocations are of whole 256 bytes.
bool in_device_memory(const void* at, size_t num_bytes) {
  auto after = device_memory.upper_bound((uintptr_t)at);
  if (after == device_memory.begin()) return false;
  --after;
  const auto& [size, context] = after->second;
  return context == computing && (uintptr_t)at + num_bytes <= after->first + (size + 255) / 256 * 256;
}

Stream& of(void* handle) { return **static_cast<StreamRef>(handle); }

void set(const std::string& name, long value) {
  static const std::map<std::string, long Card::*> fields = {
      {"count", &Card::count}, {"memory", &Card::memory}, {"capability", &Card::capability}, {"version", &Card::version},
      {"others", &Card::others}, {"fail_after", &Card::fail_after}, {"init", &Card::init}, {"taken", &Card::taken}, {"launches", &Card::launches},
      {"graphs", &Card::graphs}, {"waits", &Card::waits}, {"copied", &Card::copied}};
  auto field = fields.find(name);
  if (field == fields.end()) {
    std::fprintf(stderr, "cuda_on_cpu: no setting %s\n", name.c_str());
    std::abort();
  }
  card.*field->second = value;
  if (name == "fail_after") lost = false;
}

struct AtStart {
  AtStart() {
    const char* given = std::getenv("CUDA_ON_CPU");
    std::string text = given ? given : "";
    for (size_t at = 0; at < text.size();) {
      const size_t stop = std::min(text.find(',', at), text.size()), equals = text.find('=', at);
      set(text.substr(at, equals - at), std::atol(text.c_str() + equals + 1));
      at = stop + 1;
    }
  }
} at_start;

}  // namespace

// For tests.
API void cuda_on_cpu_set(const char* name, long value) {
  Lock lock(everything);
  set(name, value);
}
API long cuda_on_cpu_get(const char* name) {
  Lock lock(everything);
  const std::string text = name;
  if (text == "launches") return card.launches;
  if (text == "graphs") return card.graphs;
  if (text == "waits") return card.waits;
  if (text == "copied") return card.copied;
  long all = 0;
  for (const auto& [context, num_bytes] : used) all += (long)num_bytes;
  return text == "used" ? all : -1;
}

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

API int cuInit(unsigned) { return (int)card.init; }
API int cuDriverGetVersion(int* version) { return *version = (int)card.version, SUCCESS; }
API int cuDeviceGetCount(int* count) { return *count = (int)card.count, SUCCESS; }
API int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal < 0 || ordinal >= card.count ? INVALID_DEVICE : SUCCESS;
}
API int cuDeviceGetName(char* name, int length, int device) {
  std::snprintf(name, length, "CPU that plays card %d", device);
  return SUCCESS;
}
API int cuDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute == 75) *value = (int)card.capability / 10;        // COMPUTE_CAPABILITY_MAJOR
  else if (attribute == 76) *value = (int)card.capability % 10;   // COMPUTE_CAPABILITY_MINOR
  else if (attribute == 16) *value = 4;                           // MULTIPROCESSOR_COUNT
  else return INVALID_VALUE;
  return SUCCESS;
}
API int cuDeviceTotalMem_v2(size_t* num_bytes, int) { return *num_bytes = card.memory, SUCCESS; }
API int cuDevicePrimaryCtxRetain(void** context, int device) {
  CHECKED;
  if (card.taken) return DEVICE_UNAVAILABLE;
  return *context = (void*)(intptr_t)(device + 1), SUCCESS;
}
API int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API int cuCtxSetCurrent(void* context) { return current = (intptr_t)context, SUCCESS; }
API int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  WITH_CARD;
  const long left = card.memory - card.others - (long)used[current];
  *free_bytes = left > 0 ? left : 0;
  *total = card.memory;
  return SUCCESS;
}

API int cuMemAlloc_v2(uint64_t* address, size_t num_bytes) {
  WITH_CARD;
  NOT_IN_CAPTURE;
  if (num_bytes == 0) return INVALID_VALUE;
  if ((long)(used[current] + num_bytes) > card.memory - card.others) return OUT_OF_MEMORY;
  void* memory = std::aligned_alloc(256, (num_bytes + 255) / 256 * 256);
  if (memory == nullptr) return OUT_OF_MEMORY;
  std::memset(memory, 0xa5, num_bytes);
  used[current] += num_bytes;
  device_memory[(uintptr_t)memory] = {num_bytes, current};
  *address = (uint64_t)memory;
  return SUCCESS;
}
API int cuMemFree_v2(uint64_t address) {
  Lock lock(everything);
  NOT_IN_CAPTURE;
  auto found = device_memory.find(address);
  if (found == device_memory.end()) return INVALID_VALUE;
  used[found->second.context] -= found->second.num_bytes;
  device_memory.erase(found);
  std::free((void*)address);
  return SUCCESS;
}
API int cuMemHostAlloc(void** address, size_t num_bytes, unsigned) {
  WITH_CARD;
  NOT_IN_CAPTURE;
  *address = std::aligned_alloc(4096, (num_bytes + 4095) / 4096 * 4096);
  if (*address == nullptr) return OUT_OF_MEMORY;
  std::memset(*address, 0x5a, num_bytes);
  host_memory[(uintptr_t)*address] = {num_bytes, current};
  return SUCCESS;
}
API int cuMemFreeHost(void* address) {
  Lock lock(everything);
  NOT_IN_CAPTURE;
  host_memory.erase((uintptr_t)address);
  std::free(address);
  return SUCCESS;
}

API int cuStreamCreate(void** stream, unsigned) {
  WITH_CARD;
  *stream = new std::shared_ptr<Stream>(new Stream);
  return SUCCESS;
}
API int cuStreamDestroy_v2(void* stream) {
  Lock lock(everything);
  delete static_cast<StreamRef>(stream);
  return SUCCESS;
}
API int cuStreamSynchronize(void* stream) {
  CHECKED;
  ++card.waits;
  of(stream).run();
  return lost ? ILLEGAL_ADDRESS : SUCCESS;
}
API int cuStreamWaitEvent(void* stream, void* event, unsigned) {
  ON_STREAM;
  if (of(stream).capturing) return CAPTURE_UNSUPPORTED;
  const Event waited = **static_cast<EventRef>(event);
  of(stream).add([waited] {
    if (waited.stream) waited.stream->run_to(waited.place);
  });
  return SUCCESS;
}

API int cuEventCreate(void** event, unsigned) {
  WITH_CARD;
  *event = new std::shared_ptr<Event>(new Event{current, nullptr});
  return SUCCESS;
}
API int cuEventDestroy_v2(void* event) {
  Lock lock(everything);
  delete static_cast<EventRef>(event);
  return SUCCESS;
}
API int cuEventRecord(void* event, void* stream) {
  ON_STREAM;
  if ((*static_cast<EventRef>(event))->context != current) return INVALID_CONTEXT;
  if (of(stream).capturing) return CAPTURE_UNSUPPORTED;
  auto recorded = *static_cast<EventRef>(event);
  recorded->stream = *static_cast<StreamRef>(stream);
  of(stream).add([recorded] { recorded->at_ms = now_ms(); });
  recorded->place = of(stream).todo.size();
  return SUCCESS;
}
API int cuEventSynchronize(void* event) {
  CHECKED;
  ++card.waits;
  auto& waited = **static_cast<EventRef>(event);
  if (waited.stream) waited.stream->run_to(waited.place);
  return lost ? ILLEGAL_ADDRESS : SUCCESS;
}
API int cuEventElapsedTime_v2(float* ms, void* start, void* stop) {
  CHECKED;
  auto &first = **static_cast<EventRef>(start), &last = **static_cast<EventRef>(stop);
  if (!first.stream || !last.stream || last.stream->done < last.place) return NOT_READY;
  return *ms = (float)(last.at_ms - first.at_ms), SUCCESS;
}
API int cuEventElapsedTime(float* ms, void* start, void* stop) { return cuEventElapsedTime_v2(ms, start, stop); }

static int copy(void* stream, uintptr_t to, uintptr_t from, size_t num_bytes, bool pinned) {
  card.copied += (long)num_bytes;
  if (!pinned) {
    // Memory that is not page-locked is copied at once, behind what the stream has to do.
    if (of(stream).capturing) return CAPTURE_UNSUPPORTED;
    of(stream).run();
    std::memcpy((void*)to, (const void*)from, num_bytes);
    return SUCCESS;
  }
  of(stream).add([=] { std::memcpy((void*)to, (const void*)from, num_bytes); });
  return SUCCESS;
}
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t num_bytes, void* stream) {
  ON_STREAM;
  if (!inside(device_memory, to, num_bytes, current)) return INVALID_VALUE;
  return copy(stream, to, (uintptr_t)from, num_bytes, inside(host_memory, (uintptr_t)from, num_bytes, current));
}
API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t num_bytes, void* stream) {
  ON_STREAM;
  if (!inside(device_memory, from, num_bytes, current)) return INVALID_VALUE;
  return copy(stream, (uintptr_t)to, from, num_bytes, inside(host_memory, (uintptr_t)to, num_bytes, current));
}
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t num_bytes, void* stream) {
  ON_STREAM;
  if (!inside(device_memory, from, num_bytes, current) || !inside(device_memory, to, num_bytes, current)) return INVALID_VALUE;
  return copy(stream, to, from, num_bytes, true);
}
API int cuMemsetD8Async(uint64_t at, unsigned char value, size_t num_bytes, void* stream) {
  ON_STREAM;
  if (!inside(device_memory, at, num_bytes, current)) return INVALID_VALUE;
  of(stream).add([=] { std::memset((void*)at, value, num_bytes); });
  return SUCCESS;
}

// A module is what NVRTC made for this card's generation; the kernels of its names are found in this library.
API int cuModuleLoadData(void** module, const void* image) {
  WITH_CARD;
  NOT_IN_CAPTURE;
  if (std::memcmp(image, "\177ELF", 4) != 0) return INVALID_IMAGE;
  uint32_t flags;
  std::memcpy(&flags, (const char*)image + 48, 4);
  const long built_for = (flags >> 8 & 255) >= 70 ? flags >> 8 & 255 : flags & 255;
  if (built_for / 10 != card.capability / 10 || built_for > card.capability) return NO_BINARY_FOR_GPU;
  // Code takes memory of the card, too; how much is not told, so only a full one refuses it.
  if ((long)used[current] >= card.memory - card.others) return OUT_OF_MEMORY;
  *module = (void*)current;
  return SUCCESS;
}
API int cuModuleUnload(void*) { return SUCCESS; }
API int cuModuleGetFunction(void** function, void* module, const char* name) {
  CHECKED;
  if ((intptr_t)module != current) return INVALID_CONTEXT;
  *function = (void*)find_kernel(name);
  return *function ? SUCCESS : NOT_FOUND;
}

API int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void* stream, void** parameters, void** extra) {
  ON_STREAM;
  if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || bx * by * bz > 1024 || shared != 0 || extra != nullptr) {
    return INVALID_VALUE;
  }
  const Kernel* kernel = (const Kernel*)function;
  const char* given = (const char*)parameters[0];
  const std::vector<char> arguments(given, given + kernel->arguments_bytes);
  const intptr_t context = current;
  of(stream).add([=] {
    if (lost) return;
    ++card.launches;
    if (card.fail_after >= 0 && card.fail_after-- == 0) {
      lost = true;
      return;
    }
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    is_card_memory = in_device_memory;
    computing = context;
    run_blocks(kernel->body, arguments.data(), grid, block);
  });
  return SUCCESS;
}

API int cuStreamBeginCapture_v2(void* stream, int mode) {
  ON_STREAM;
  of(stream).capturing = true;
  of(stream).invalidated = false;
  of(stream).captured.clear();
  strict = mode == 2 ? nullptr : &of(stream);
  return SUCCESS;
}
API int cuStreamEndCapture(void* stream, void** graph) {
  ON_STREAM;
  of(stream).capturing = false;
  if (strict == &of(stream)) strict = nullptr;
  if (of(stream).invalidated) return CAPTURE_INVALIDATED;
  *graph = new Graph{std::move(of(stream).captured)};
  return SUCCESS;
}
API int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  WITH_CARD;
  // As code does.
  if ((long)used[current] >= card.memory - card.others) return OUT_OF_MEMORY;
  *executable = new Graph(*static_cast<Graph*>(graph));
  return SUCCESS;
}
API int cuGraphInstantiate(void** executable, void* graph, unsigned long long flags) {
  return cuGraphInstantiateWithFlags(executable, graph, flags);
}
API int cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), SUCCESS; }
API int cuGraphExecDestroy(void* graph) { return delete static_cast<Graph*>(graph), SUCCESS; }
API int cuGraphLaunch(void* executable, void* stream) {
  ON_STREAM;
  ++card.graphs;
  for (const auto& operation : static_cast<Graph*>(executable)->operations) of(stream).add(operation);
  return SUCCESS;
}

API int cuGetErrorName(int error, const char** name) {
  static const std::map<int, const char*> names = {
      {SUCCESS, "CUDA_SUCCESS"}, {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"}, {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
      {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"}, {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
      {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
      {NOT_READY, "CUDA_ERROR_NOT_READY"}, {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"}};
  auto found = names.find(error);
  *name = found == names.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
  return SUCCESS;
}
API int cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }

#include <dlfcn.h>

API int cuGetProcAddress_v2(const char* symbol, void** function, int, unsigned long long, int* status) {
  // This library's own symbols: the newest form of a function first.
  static void* self = [] {
    Dl_info info;
    dladdr((void*)&cuInit, &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  const std::string name = symbol;
  *function = nullptr;
  for (const char* suffix : {"_v2", ""}) {
    if (*function == nullptr) *function = dlsym(self, (name + suffix).c_str());
  }
  if (status) *status = *function ? 0 : 1;
  return *function ? SUCCESS : NOT_FOUND;
}
API int cuGetProcAddress(const char* symbol, void** function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}

// NVRTC asks a driver that is loaded for tables of its own. This one has none: a table says its size first, and this is too
// small for any entry.
API int cuGetExportTable(const void** table, const void*) {
  static const size_t empty[6] = {sizeof empty};
  *table = empty;
  return NOT_FOUND;
}
