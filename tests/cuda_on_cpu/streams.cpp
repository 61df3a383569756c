// The driver's streams, events, copies and graphs.

#include <time.h>

#include "driver.h"

namespace {

double now_ms() {
  timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * 1e3 + at.tv_nsec * 1e-6;
}

struct Graph {
  std::vector<std::function<void()>> operations;
};

}  // namespace

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
