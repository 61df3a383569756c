// Whole messages in and out of pyzmq's sockets, one call for each instead of several for each frame. pyzmq's own
// calls take longer than all that Potluck does with a message: after a sleep the processor's caches have lost them.
//
// libzmq is the one that pyzmq has loaded; its functions are looked up when the module is first used. Frames' sizes
// are bounded by the socket's MAXMSGSIZE. Nothing here looks into them.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

enum { ZMQ_EVENTS = 15, ZMQ_NOBLOCK = 1, ZMQ_SNDMORE = 2, ZMQ_ETERM = 156384765 };
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
  int (*error)(void);
} zmq;

// The exception that pyzmq would raise.
static PyObject *error_class, *again_class, *ended_class;

static PyObject* fail(void) {
  const int code = zmq.error();
  PyObject* type = code == EAGAIN ? again_class : code == ZMQ_ETERM ? ended_class : error_class;
  PyObject* raised = PyObject_CallFunction(type, "i", code);
  if (raised != NULL) PyErr_SetObject(type, raised);
  Py_XDECREF(raised);
  return NULL;
}

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

static int give(PyObject* bytes_like, void* handle, int flags) {
  Py_buffer view;
  zmq_msg_t message;
  if (PyObject_GetBuffer(bytes_like, &view, PyBUF_CONTIG_RO) < 0) return -1;
  const int made = zmq.msg_init_size(&message, (size_t)view.len);
  if (made == 0) memcpy(zmq.msg_data(&message), view.buf, (size_t)view.len);
  PyBuffer_Release(&view);
  if (made < 0) return fail(), -1;
  while (zmq.msg_send(&message, handle, flags) < 0) {
    if (zmq.error() == EINTR && PyErr_CheckSignals() == 0) continue;
    if (!PyErr_Occurred()) fail();
    zmq.msg_close(&message);
    return -1;
  }
  return 0;
}

static PyObject* send_all(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  void* handle;
  if (count < 2) return PyErr_SetString(PyExc_TypeError, "send(socket, *frames)"), NULL;
  if (handle_of(args[0], &handle) < 0) return NULL;
  for (Py_ssize_t i = 1; i < count; ++i)
    if (give(args[i], handle, ZMQ_NOBLOCK | (i + 1 < count ? ZMQ_SNDMORE : 0)) < 0) return NULL;
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

static PyMethodDef methods[] = {
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, "receive(socket, flags) -> frames or None"},
    {"receive_named", (PyCFunction)(void (*)(void))receive_named, METH_FASTCALL,
     "receive_named(socket, flags) -> a ROUTER's peer, as bytes, and frames; or None"},
    {"send", (PyCFunction)(void (*)(void))send_all, METH_FASTCALL, "send(socket, *frames), without waiting"},
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
      {"zmq_errno", &zmq.error}};
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
