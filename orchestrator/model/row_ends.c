// Rows of many sequences, each copied behind those that the sequence has, in one call. In Python, finding
// the place of a row took longer than copying it.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

// Where a sequence's next rows go. Python finds the place anew where a page is full, or rows are dropped.
typedef struct {
  PyObject_HEAD
  Py_ssize_t stop, room, row_bytes;
  unsigned long long target;
} RowEnd;

static PyMemberDef members[] = {
    {"stop", T_PYSSIZET, offsetof(RowEnd, stop), 0, "The slot behind the last row's."},
    {"room", T_PYSSIZET, offsetof(RowEnd, room), 0, "Rows that can follow without a further page."},
    {"row_bytes", T_PYSSIZET, offsetof(RowEnd, row_bytes), 0, "Of a row."},
    {"target", T_ULONGLONG, offsetof(RowEnd, target), 0, "The address of the next one."},
    {NULL}};

static PyType_Slot slots[] = {
    {Py_tp_members, members}, {Py_tp_doc, "Where a sequence's next rows go."}, {0, NULL}};
static PyType_Spec spec = {"orchestrator.model._row_ends.RowEnd", sizeof(RowEnd), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};
static PyTypeObject* row_end_type;

// Rows of all sequences of a pass, side by side.
typedef struct { const char* address; Py_ssize_t num_rows, row_bytes; } Source;

// Whether the rows had room; -1 with an exception where `source` does not have them, or `end` is no end for them.
static int append(PyObject* end, PyObject* first_row, PyObject* num_rows, const Source* source) {
  if (!PyObject_TypeCheck(end, row_end_type)) return PyErr_SetString(PyExc_TypeError, "expected a RowEnd"), -1;
  const Py_ssize_t first = PyLong_AsSsize_t(first_row);
  const Py_ssize_t count = first == -1 && PyErr_Occurred() ? -1 : PyLong_AsSsize_t(num_rows);
  if (PyErr_Occurred()) return -1;
  if (first < 0 || count < 0 || first > source->num_rows || count > source->num_rows - first)
    return PyErr_Format(PyExc_ValueError, "%zd rows from row %zd on, of %zd", count, first, source->num_rows), -1;
  RowEnd* self = (RowEnd*)end;
  if (self->row_bytes != source->row_bytes)
    return PyErr_Format(PyExc_ValueError, "rows of %zd bytes for an end whose rows have %zd", source->row_bytes,
                        self->row_bytes), -1;
  if (count > self->room) return 0;
  const size_t num_bytes = (size_t)(count * self->row_bytes);
  // Without rows there may be no addresses, which memcpy always wants.
  if (num_bytes > 0)
    memcpy((void*)(uintptr_t)self->target, source->address + first * self->row_bytes, num_bytes);
  self->target += num_bytes;
  self->room -= count;
  self->stop += count;
  return 1;
}

// `part`: an end or None, the first of its rows, and how many.
static int append_part(PyObject* part, const Source* source) {
  if (!PyTuple_Check(part) || PyTuple_GET_SIZE(part) != 3)
    return PyErr_SetString(PyExc_TypeError, "expected an end, a first row and a number of rows"), -1;
  PyObject* end = PyTuple_GET_ITEM(part, 0);
  return end == Py_None ? 0 : append(end, PyTuple_GET_ITEM(part, 1), PyTuple_GET_ITEM(part, 2), source);
}

static PyObject* append_all(PyObject* parts, const Source* source) {
  PyObject* left = PyList_New(0);
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(parts) && left != NULL; ++i) {
    const int is_taken = append_part(PySequence_Fast_GET_ITEM(parts, i), source);
    if (is_taken == 1) continue;
    PyObject* place = is_taken == 0 ? PyLong_FromSsize_t(i) : NULL;
    if (place == NULL || PyList_Append(left, place) < 0) Py_CLEAR(left);
    Py_XDECREF(place);
  }
  return left;
}

static PyObject* append_each(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  if (count != 4) return PyErr_SetString(PyExc_TypeError, "expected a list and three numbers"), NULL;
  Source source = {PyLong_AsVoidPtr(args[1]), 0, 0};
  if (PyErr_Occurred()) return NULL;
  source.num_rows = PyLong_AsSsize_t(args[2]);
  if (PyErr_Occurred()) return NULL;
  source.row_bytes = PyLong_AsSsize_t(args[3]);
  if (PyErr_Occurred()) return NULL;
  if (source.num_rows < 0 || source.row_bytes < 0)
    return PyErr_SetString(PyExc_ValueError, "expected numbers of rows and bytes from 0 on"), NULL;
  PyObject* parts = PySequence_Fast(args[0], "expected a list");
  PyObject* left = parts == NULL ? NULL : append_all(parts, &source);
  Py_XDECREF(parts);
  return left;
}

static PyMethodDef methods[] = {
    {"append_each", (PyCFunction)(void (*)(void))append_each, METH_FASTCALL,
     "append_each(parts, address, num_rows, row_bytes) -> places of those that took none"},
    {NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "orchestrator.model._row_ends", NULL, -1, methods};

PyMODINIT_FUNC PyInit__row_ends(void) {
  PyObject* module = PyModule_Create(&definition);
  if (module == NULL) return NULL;
  row_end_type = (PyTypeObject*)PyType_FromSpec(&spec);
  if (row_end_type == NULL || PyModule_AddObjectRef(module, "RowEnd", (PyObject*)row_end_type) < 0)
    Py_CLEAR(module);
  return module;
}
