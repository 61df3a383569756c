// Whole messages in and out of pyzmq's sockets, one call for each instead of several for each frame. pyzmq's own
// calls take longer than all that Potluck does with a message: after a sleep the processor's caches have lost them.
//
// libzmq is the one that pyzmq has loaded; its functions are looked up when the module is first used. Frames' sizes
// are bounded by the socket's MAXMSGSIZE. Only the checks of the two forward messages look into them: in Python these
// took longer than all else that is done with such a message.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __linux__
#include <sys/epoll.h>
#endif

enum { ZMQ_POLLIN = 1, ZMQ_EVENTS = 15, ZMQ_NOBLOCK = 1, ZMQ_SNDMORE = 2, ZMQ_ETERM = 156384765 };
enum { MAX_FRAMES = 4, ALIGNMENT = 8 };

// As libzmq's header promises: its size and alignment are part of the binary interface.
typedef struct { _Alignas(void*) unsigned char opaque[64]; } zmq_msg_t;

static struct {
  int (*msg_init)(zmq_msg_t*);
  int (*msg_init_size)(zmq_msg_t*, size_t);
  int (*msg_recv)(zmq_msg_t*, void*, int);
  int (*msg_send)(zmq_msg_t*, void*, int);
  int (*msg_close)(zmq_msg_t*);
  void* (*msg_data)(zmq_msg_t*);
  size_t (*msg_size)(const zmq_msg_t*);
  int (*msg_more)(const zmq_msg_t*);
  int (*msg_get)(const zmq_msg_t*, int);
  int (*getsockopt)(void*, int, void*, size_t*);
  int (*poll)(void*, int, long);
  int (*error)(void);
} zmq;

// The exception that pyzmq would raise.
static PyObject *error_class, *again_class, *ended_class;

static PyObject* fail_with(int code) {
  PyObject* type = code == EAGAIN ? again_class : code == ZMQ_ETERM ? ended_class : error_class;
  PyObject* raised = PyObject_CallFunction(type, "i", code);
  if (raised != NULL) PyErr_SetObject(type, raised);
  Py_XDECREF(raised);
  return NULL;
}

static PyObject* fail(void) { return fail_with(zmq.error()); }

// ---- A frame that came: libzmq's memory, or an aligned copy of it. -------------------------------------------------

typedef struct {
  PyObject_HEAD
  zmq_msg_t message;
  void* copy;
} Frame;

static void frame_dealloc(Frame* self) {
  PyTypeObject* type = Py_TYPE(self);
  zmq.msg_close(&self->message);
  PyMem_Free(self->copy);
  type->tp_free(self);
  Py_DECREF(type);
}

static Py_ssize_t frame_length(Frame* self) { return (Py_ssize_t)zmq.msg_size(&self->message); }

static int frame_buffer(Frame* self, Py_buffer* view, int flags) {
  void* data = self->copy != NULL ? self->copy : zmq.msg_data(&self->message);
  return PyBuffer_FillInfo(view, (PyObject*)self, data, frame_length(self), 0, flags);
}

static PyObject* frame_get(Frame* self, PyObject* property) {
  const long wanted = PyLong_AsLong(property);
  if (wanted == -1 && PyErr_Occurred()) return NULL;
  const int value = zmq.msg_get(&self->message, (int)wanted);
  if (value == -1) return fail();
  return PyLong_FromLong(value);
}

static PyMethodDef frame_methods[] = {
    {"get", (PyCFunction)frame_get, METH_O, "An integer property of the message (zmq_msg_get)."}, {NULL}};

static PyType_Slot frame_slots[] = {{Py_tp_dealloc, frame_dealloc},
                                    {Py_sq_length, frame_length},
                                    {Py_bf_getbuffer, frame_buffer},
                                    {Py_tp_methods, frame_methods},
                                    {Py_tp_doc, "One received frame, bytes-like and aligned."},
                                    {0, NULL}};
static PyType_Spec frame_spec = {"transport._frames.Frame", sizeof(Frame), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, frame_slots};
static PyTypeObject* frame_type;

static Frame* new_frame(void) {
  Frame* frame = (Frame*)frame_type->tp_alloc(frame_type, 0);
  if (frame != NULL) zmq.msg_init(&frame->message);
  return frame;
}

// libzmq hands out small frames from the middle of its receive buffer, at any address. Without memory for a copy the
// frame stays there: whoever needs it aligned can still say so.
static void align(Frame* frame) {
  void* data = zmq.msg_data(&frame->message);
  if ((uintptr_t)data % ALIGNMENT == 0) return;
  const size_t size = zmq.msg_size(&frame->message);
  if ((frame->copy = PyMem_Malloc(size)) != NULL) memcpy(frame->copy, data, size);
}

// ---- Messages ------------------------------------------------------------------------------------------------------

static PyObject* underlying_name;

// pyzmq's handle; NULL once the socket is closed, which libzmq answers with ENOTSOCK.
static int handle_of(PyObject* socket, void** handle) {
  PyObject* number = PyObject_GetAttr(socket, underlying_name);
  if (number == NULL) return -1;
  *handle = PyLong_AsVoidPtr(number);
  Py_DECREF(number);
  return *handle == NULL && PyErr_Occurred() ? -1 : 0;
}

// 0, or -1 with an exception, or 1 where there is nothing now.
static int take(Frame* frame, void* handle, int flags) {
  for (;;) {
    int size;
    if (flags & ZMQ_NOBLOCK) {
      size = zmq.msg_recv(&frame->message, handle, flags);
    } else {
      Py_BEGIN_ALLOW_THREADS
      size = zmq.msg_recv(&frame->message, handle, flags);
      Py_END_ALLOW_THREADS
    }
    if (size >= 0) return 0;
    const int code = zmq.error();
    if (code == EAGAIN) return 1;
    if (code != EINTR) return fail(), -1;
    if (PyErr_CheckSignals() < 0) return -1;
  }
}

// `is_named`: a ROUTER's message, whose first frame is the peer's name.
static PyObject* receive_all(PyObject* const* args, Py_ssize_t count, int is_named) {
  void* handle;
  if (count != 2) return PyErr_SetString(PyExc_TypeError, "expected a socket and flags"), NULL;
  if (handle_of(args[0], &handle) < 0) return NULL;
  const int flags = (int)PyLong_AsLong(args[1]);
  if (flags == -1 && PyErr_Occurred()) return NULL;
  PyObject* message = PyList_New(0);
  for (int number = 0, more = 1; message != NULL && more; ++number) {
    Frame* frame = new_frame();
    const int state = frame == NULL ? -1 : take(frame, handle, number == 0 ? flags : 0);
    more = state == 0 && zmq.msg_more(&frame->message);
    PyObject* taken = (PyObject*)frame;
    if (state == 0 && number == 0 && is_named) {
      taken = PyBytes_FromStringAndSize(zmq.msg_data(&frame->message), frame_length(frame));
      Py_DECREF(frame);
    } else if (state == 0) {
      align(frame);
    }
    // A stranger's further frames are let go one by one.
    if (state != 0 || taken == NULL || (number < MAX_FRAMES && PyList_Append(message, taken) < 0)) {
      Py_CLEAR(message);
    }
    Py_XDECREF(taken);
    if (state == 1) Py_RETURN_NONE;
  }
  return message;
}

static PyObject* receive(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  return receive_all(args, count, 0);
}

static PyObject* receive_named(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  return receive_all(args, count, 1);
}

static int give(const Py_buffer* frame, void* handle, int flags) {
  zmq_msg_t message;
  if (zmq.msg_init_size(&message, (size_t)frame->len) < 0) return fail(), -1;
  memcpy(zmq.msg_data(&message), frame->buf, (size_t)frame->len);
  while (zmq.msg_send(&message, handle, flags) < 0) {
    if (zmq.error() == EINTR && PyErr_CheckSignals() == 0) continue;
    if (!PyErr_Occurred()) fail();
    zmq.msg_close(&message);
    return -1;
  }
  return 0;
}

// All frames are looked at before the first leaves: a message of which only a part went would be joined to the next.
static PyObject* send_all(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  void* handle;
  Py_buffer frames[MAX_FRAMES];
  if (count < 2 || count > MAX_FRAMES + 1)
    return PyErr_SetString(PyExc_TypeError, "send(socket, *frames): expected 1 to 4 frames"), NULL;
  if (handle_of(args[0], &handle) < 0) return NULL;
  int taken = 0, sent = 0;
  while (taken < count - 1 && PyObject_GetBuffer(args[taken + 1], &frames[taken], PyBUF_CONTIG_RO) == 0) ++taken;
  if (taken == count - 1)
    while (sent < taken && give(&frames[sent], handle, ZMQ_NOBLOCK | (sent + 1 < taken ? ZMQ_SNDMORE : 0)) == 0) ++sent;
  for (int i = 0; i < taken; ++i) PyBuffer_Release(&frames[i]);
  if (sent < count - 1) return NULL;
  Py_RETURN_NONE;
}

static PyObject* events(PyObject* module, PyObject* socket) {
  void* handle;
  int value = 0;
  size_t size = sizeof value;
  if (handle_of(socket, &handle) < 0) return NULL;
  if (zmq.getsockopt(handle, ZMQ_EVENTS, &value, &size) < 0) return fail();
  return PyLong_FromLong(value);
}

// ---- Waiting -------------------------------------------------------------------------------------------------------

typedef struct { void* socket; int fd; short events, revents; } PollItem;  // zmq_pollitem_t

// An interrupted wait counts as one in which nothing came.
static PyObject* wait_any(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  if (count != 2 || !PyTuple_Check(args[0]))
    return PyErr_SetString(PyExc_TypeError, "wait_any(sockets, timeout_ms): expected a tuple and a number"), NULL;
  const int size = (int)PyTuple_GET_SIZE(args[0]);
  const long timeout_ms = PyLong_AsLong(args[1]);
  if (timeout_ms == -1 && PyErr_Occurred()) return NULL;
  PollItem* items = PyMem_Calloc(size + 1, sizeof *items);
  if (items == NULL) return PyErr_NoMemory();
  PyObject* found = NULL;
  int handles = 0, ready = -1;
  while (handles < size && handle_of(PyTuple_GET_ITEM(args[0], handles), &items[handles].socket) == 0) {
    // libzmq would wait for a file in place of a socket that is closed: for file 0.
    if (items[handles].socket == NULL) {
      fail_with(ENOTSOCK);
      break;
    }
    items[handles++].events = ZMQ_POLLIN;
  }
  if (handles == size) {
    Py_BEGIN_ALLOW_THREADS
    ready = zmq.poll(items, size, timeout_ms);
    Py_END_ALLOW_THREADS
    const int is_over = ready >= 0 || (zmq.error() == EINTR && PyErr_CheckSignals() == 0);
    if (is_over) found = PyList_New(0);
    else if (!PyErr_Occurred()) fail();
  }
  for (int i = 0; i < size && ready > 0 && found != NULL; ++i) {
    if (!items[i].revents) continue;
    PyObject* place = PyLong_FromLong(i);
    if (place == NULL || PyList_Append(found, place) < 0) Py_CLEAR(found);
    Py_XDECREF(place);
  }
  PyMem_Free(items);
  return found;
}

#ifdef __linux__
static PyObject* wait_epoll(PyObject* module, PyObject* epoll) {
  struct epoll_event event;
  const int fd = (int)PyLong_AsLong(epoll);
  if (fd == -1 && PyErr_Occurred()) return NULL;
  for (;;) {
    int ready;
    Py_BEGIN_ALLOW_THREADS
    ready = epoll_wait(fd, &event, 1, -1);
    Py_END_ALLOW_THREADS
    if (ready >= 0) Py_RETURN_NONE;
    if (errno != EINTR) return PyErr_SetFromErrno(PyExc_OSError);
    if (PyErr_CheckSignals() < 0) return NULL;
  }
}
#endif

// ---- The headers of the two forward messages (forward.py says what they are) ----------------------------------------

enum { MARK = 0xC1, FORWARD = 3, FORWARD_REPLY = 4, MIN_EXPONENT = -126, MAX_EXPONENT = 126 };

#pragma pack(push, 1)
typedef struct {
  uint8_t mark, version, type, form;
  uint32_t num_rows, hidden_size, top_k, layer;
  uint64_t request_id, session, epoch;
} RequestHeader;

typedef struct {
  uint8_t mark, version, type, none;
  uint32_t num_rows, hidden_size;
  uint64_t request_id;
  double compute_s;
} ReplyHeader;
#pragma pack(pop)

_Static_assert(sizeof(RequestHeader) == 44 && sizeof(ReplyHeader) == 28, "as forward.py packs them");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are little-endian");

// What is wrong with a message, by its place in forward.py's list.
typedef enum {
  FITS, OTHER_FRAMES, TOO_SHORT, OTHER_VERSION, OTHER_TYPE, UNKNOWN_LAYER, OTHER_TOP_K, OTHER_HIDDEN_SIZE, NO_ROWS,
  TOO_MANY_ROWS, OTHER_ROUTING_BYTES, OTHER_FORM, UNFIT_FORM, OTHER_TENSOR_BYTES, BAD_EXPERT_ID, BAD_EXPONENT,
  BAD_SECONDS, BAD_FLAGS,
} Fault;

// What a message may be: the numbers of WireLimits, in the order in which forward.py gives them.
typedef struct { long long version, hidden_size, top_k, num_experts, max_rows; } Limits;

static int all_within(const char* at, Py_ssize_t count, long low, long high) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    int32_t value;
    memcpy(&value, at + 4 * i, sizeof value);
    if (value < low || value > high) return 0;
  }
  return 1;
}

static Fault fault_of_rows(uint32_t num_rows, uint32_t hidden_size, const Limits* limits) {
  if (hidden_size != limits->hidden_size) return OTHER_HIDDEN_SIZE;
  return num_rows == 0 ? NO_ROWS : num_rows > limits->max_rows ? TOO_MANY_ROWS : FITS;
}

// `row_bytes`: of a row in each form, 0 for one that such rows cannot have.
static Fault fault_of_request(const RequestHeader* header, const Py_buffer* first, const Py_buffer* second,
                              const Limits* limits, PyObject* row_bytes) {
  if (header->top_k != limits->top_k) return OTHER_TOP_K;
  const Fault rows = fault_of_rows(header->num_rows, header->hidden_size, limits);
  if (rows != FITS) return rows;
  const Py_ssize_t pairs = (Py_ssize_t)header->num_rows * header->top_k;
  const Py_ssize_t routing = 8 * pairs + 4 * (Py_ssize_t)header->num_rows;
  if (first->len != (Py_ssize_t)sizeof *header + routing) return OTHER_ROUTING_BYTES;
  if (header->form >= PyTuple_GET_SIZE(row_bytes)) return OTHER_FORM;
  const Py_ssize_t bytes = PyLong_AsSsize_t(PyTuple_GET_ITEM(row_bytes, header->form));
  if (bytes <= 0) return UNFIT_FORM;
  if (second->len != header->num_rows * bytes) return OTHER_TENSOR_BYTES;
  const char* ids = (const char*)first->buf + sizeof *header;
  if (!all_within(ids, pairs, -1, (long)limits->num_experts - 1)) return BAD_EXPERT_ID;
  return all_within(ids + 8 * pairs, header->num_rows, MIN_EXPONENT, MAX_EXPONENT) ? FITS : BAD_EXPONENT;
}

static Fault fault_of_reply(const ReplyHeader* header, const Py_buffer* first, const Py_buffer* second,
                            const Limits* limits) {
  if (!(header->compute_s >= 0 && header->compute_s < HUGE_VAL)) return BAD_SECONDS;
  const Fault rows = fault_of_rows(header->num_rows, header->hidden_size, limits);
  if (rows != FITS) return rows;
  const char* flags = (const char*)first->buf + sizeof *header;
  if (first->len != (Py_ssize_t)sizeof *header + header->num_rows) return BAD_FLAGS;
  for (uint32_t i = 0; i < header->num_rows; ++i)
    if (flags[i] & ~1) return BAD_FLAGS;
  return second->len == 4 * (Py_ssize_t)header->num_rows * header->hidden_size ? FITS : OTHER_TENSOR_BYTES;
}

static Fault fault_of_start(const Py_buffer* first, Py_ssize_t size, uint8_t type, const Limits* limits) {
  const uint8_t* start = first->buf;
  if (first->len < size) return TOO_SHORT;
  return start[1] != limits->version ? OTHER_VERSION : start[2] != type ? OTHER_TYPE : FITS;
}

static PyObject* read_request_header(const Py_buffer* first, const Py_buffer* second, const Limits* limits,
                                     PyObject* row_bytes) {
  RequestHeader header;
  Fault fault = fault_of_start(first, sizeof header, FORWARD, limits);
  if (fault == FITS) {
    memcpy(&header, first->buf, sizeof header);
    fault = fault_of_request(&header, first, second, limits, row_bytes);
  }
  if (fault != FITS) return PyLong_FromLong(fault);
  return Py_BuildValue("KKKIBI", header.request_id, header.session, header.epoch, header.layer, header.form,
                       header.num_rows);
}

static PyObject* read_reply_header(const Py_buffer* first, const Py_buffer* second, const Limits* limits) {
  ReplyHeader header;
  Fault fault = fault_of_start(first, sizeof header, FORWARD_REPLY, limits);
  if (fault == FITS) {
    memcpy(&header, first->buf, sizeof header);
    fault = fault_of_reply(&header, first, second, limits);
  }
  if (fault != FITS) return PyLong_FromLong(fault);
  return Py_BuildValue("KId", header.request_id, header.num_rows, header.compute_s);
}

// (frames, limits[, row_bytes]): the two frames of a message and what they may be, as `fault_of` wants them.
static PyObject* read_header(PyObject* const* args, Py_ssize_t count, int is_request) {
  Limits limits;
  long long* const numbers[] = {&limits.version, &limits.hidden_size, &limits.top_k, &limits.num_experts,
                                &limits.max_rows};
  const int is_right = count == 2 + is_request && PyList_Check(args[0]) && PyTuple_Check(args[1]) &&
                       PyTuple_GET_SIZE(args[1]) == 5 && (!is_request || PyTuple_Check(args[2]));
  if (!is_right) return PyErr_SetString(PyExc_TypeError, "expected a list of frames, and limits"), NULL;
  for (int i = 0; i < 5; ++i) *numbers[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(args[1], i));
  if (PyErr_Occurred()) return NULL;
  const Py_ssize_t num_frames = PyList_GET_SIZE(args[0]);
  if (num_frames == 0) Py_RETURN_NONE;
  Py_buffer first, second;
  if (PyObject_GetBuffer(PyList_GET_ITEM(args[0], 0), &first, PyBUF_CONTIG_RO) < 0) return NULL;
  PyObject* found = NULL;
  if (first.len == 0 || *(const uint8_t*)first.buf != MARK) {
    found = Py_NewRef(Py_None);
  } else if (num_frames != 2) {
    found = PyLong_FromLong(OTHER_FRAMES);
  } else if (PyObject_GetBuffer(PyList_GET_ITEM(args[0], 1), &second, PyBUF_CONTIG_RO) == 0) {
    found = is_request ? read_request_header(&first, &second, &limits, args[2])
                       : read_reply_header(&first, &second, &limits);
    PyBuffer_Release(&second);
  }
  PyBuffer_Release(&first);
  return found;
}

static PyObject* read_request(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  return read_header(args, count, 1);
}

static PyObject* read_reply(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  return read_header(args, count, 0);
}

// Numbers from arguments, of whatever size they fit.
static int number_of(PyObject* argument, uint64_t* number) {
  *number = PyLong_AsUnsignedLongLong(argument);
  return *number == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

// A header's bytes, then those of some buffers; NULL with an exception where one is no contiguous buffer.
static PyObject* with_rows(const void* header, size_t size, PyObject* const* buffers, int count) {
  Py_buffer views[3];
  Py_ssize_t total = (Py_ssize_t)size;
  int taken = 0;
  while (taken < count && PyObject_GetBuffer(buffers[taken], &views[taken], PyBUF_CONTIG_RO) == 0)
    total += views[taken++].len;
  PyObject* bytes = taken == count ? PyBytes_FromStringAndSize(NULL, total) : NULL;
  char* at = bytes == NULL ? NULL : PyBytes_AS_STRING(bytes);
  if (at != NULL) at = (char*)memcpy(at, header, size) + size;
  for (int i = 0; i < taken; ++i) {
    if (at != NULL) at = (char*)memcpy(at, views[i].buf, views[i].len) + views[i].len;
    PyBuffer_Release(&views[i]);
  }
  return bytes;
}

static PyObject* request_header(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  uint64_t numbers[9];
  if (count != 12) return PyErr_SetString(PyExc_TypeError, "request_header: expected 9 numbers, 3 buffers"), NULL;
  for (int i = 0; i < 9; ++i)
    if (number_of(args[i], &numbers[i]) < 0) return NULL;
  const RequestHeader header = {MARK, numbers[0], FORWARD, numbers[1], numbers[2], numbers[3],
                                numbers[4], numbers[5], numbers[6], numbers[7], numbers[8]};
  return with_rows(&header, sizeof header, args + 9, 3);
}

static PyObject* reply_header(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  uint64_t numbers[4];
  if (count != 6) return PyErr_SetString(PyExc_TypeError, "reply_header: expected 5 numbers and a buffer"), NULL;
  for (int i = 0; i < 4; ++i)
    if (number_of(args[i], &numbers[i]) < 0) return NULL;
  const double compute_s = PyFloat_AsDouble(args[4]);
  if (compute_s == -1 && PyErr_Occurred()) return NULL;
  const ReplyHeader header = {MARK, numbers[0], FORWARD_REPLY, 0, numbers[1], numbers[2], numbers[3], compute_s};
  return with_rows(&header, sizeof header, args + 5, 1);
}

static PyMethodDef methods[] = {
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, "receive(socket, flags) -> frames or None"},
    {"receive_named", (PyCFunction)(void (*)(void))receive_named, METH_FASTCALL,
     "receive_named(socket, flags) -> a ROUTER's peer, as bytes, and frames; or None"},
    {"send", (PyCFunction)(void (*)(void))send_all, METH_FASTCALL, "send(socket, *frames), without waiting"},
    {"wait_any", (PyCFunction)(void (*)(void))wait_any, METH_FASTCALL,
     "wait_any(sockets, timeout_ms) -> the places of those that can be received from"},
#ifdef __linux__
    {"wait_epoll", wait_epoll, METH_O, "wait_epoll(fd): sleep until it has one event, which is taken"},
#endif
    {"request_header", (PyCFunction)(void (*)(void))request_header, METH_FASTCALL,
     "request_header(version, form, num_rows, hidden_size, top_k, layer, request_id, session, epoch, *routing)"},
    {"reply_header", (PyCFunction)(void (*)(void))reply_header, METH_FASTCALL,
     "reply_header(version, num_rows, hidden_size, request_id, compute_s, saturated)"},
    {"read_request", (PyCFunction)(void (*)(void))read_request, METH_FASTCALL,
     "read_request(frames, limits, row_bytes) -> fields, or what is wrong; None for another kind of message"},
    {"read_reply", (PyCFunction)(void (*)(void))read_reply, METH_FASTCALL, "read_reply(frames, limits), likewise"},
    {"events", events, METH_O, "events(socket) -> ZMQ_EVENTS"},
    {NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "transport._frames", NULL, -1, methods};

PyMODINIT_FUNC PyInit__frames(void) {
  PyObject* pyzmq = PyImport_ImportModule("zmq.backend.cython._zmq");
  if (pyzmq == NULL) return NULL;
  PyObject* path = PyObject_GetAttrString(pyzmq, "__file__");
  Py_DECREF(pyzmq);
  if (path == NULL) return NULL;
  void* library = dlopen(PyUnicode_AsUTF8(path), RTLD_LAZY | RTLD_NOLOAD);
  Py_DECREF(path);
  const struct { const char* name; void* function; } wanted[] = {
      {"zmq_msg_init", &zmq.msg_init},   {"zmq_msg_init_size", &zmq.msg_init_size},
      {"zmq_msg_recv", &zmq.msg_recv},   {"zmq_msg_send", &zmq.msg_send},
      {"zmq_msg_close", &zmq.msg_close}, {"zmq_msg_data", &zmq.msg_data},
      {"zmq_msg_size", &zmq.msg_size},   {"zmq_msg_more", &zmq.msg_more},
      {"zmq_msg_get", &zmq.msg_get},     {"zmq_getsockopt", &zmq.getsockopt},
      {"zmq_poll", &zmq.poll},           {"zmq_errno", &zmq.error}};
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; ++i) {
    void* found = library != NULL ? dlsym(library, wanted[i].name) : NULL;
    if (found == NULL) return PyErr_Format(PyExc_ImportError, "pyzmq's libzmq has no %s", wanted[i].name);
    memcpy(wanted[i].function, &found, sizeof found);
  }
  PyObject* errors = PyImport_ImportModule("zmq.error");
  if (errors == NULL) return NULL;
  error_class = PyObject_GetAttrString(errors, "ZMQError");
  again_class = PyObject_GetAttrString(errors, "Again");
  ended_class = PyObject_GetAttrString(errors, "ContextTerminated");
  Py_DECREF(errors);
  if (error_class == NULL || again_class == NULL || ended_class == NULL) return NULL;
  underlying_name = PyUnicode_InternFromString("underlying");
  frame_type = (PyTypeObject*)PyType_FromSpec(&frame_spec);
  return underlying_name != NULL && frame_type != NULL ? PyModule_Create(&definition) : NULL;
}
