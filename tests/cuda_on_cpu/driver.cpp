// libcuda.so.1 for machines without a card: the functions of CUDA's driver that Potluck calls, whose card is the CPU.
//
// So tests run the very code that drives a card, through the same bindings. Three things are stricter than a card:
// - A stream does nothing until somebody waits for it. What forgets to wait finds old numbers, every time.
// - Copies outside of an allocation are refused, and so is another card's memory.
// - What our kernels may not do ends the process (cuda_on_cpu.h).
//
// `cuda_on_cpu_set` changes what the card is and what goes wrong; the environment's CUDA_ON_CPU ("memory=8000000,count=2")
// says it at the start.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "blocks.h"
#include "driver.h"

namespace {

// Allocations are of whole 256 bytes.
bool in_device_memory(const void* at, size_t num_bytes) {
  auto after = device_memory.upper_bound((uintptr_t)at);
  if (after == device_memory.begin()) return false;
  --after;
  const auto& [size, context] = after->second;
  return context == computing && (uintptr_t)at + num_bytes <= after->first + (size + 255) / 256 * 256;
}

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
