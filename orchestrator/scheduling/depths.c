// What chooses depths and is asked in each step: corrections of costs, and the search of `FastestDepths`. A pass puts
// what Python reads out of the caches, so in Python both took several hundredths of a small model's step.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

#include "corrections.h"

enum { MOST_DRAFTS = 1 << 16 };
// Far from where numbers of steps overflow, and beyond the logarithm of any number.
static const int64_t MOST_STEPS = INT64_MAX / 2;
static const double MOST_LOGARITHM = 1e4;

// ---- Corrections ---------------------------------------------------------------------------------------------------

typedef struct {
  PyObject_HEAD
  Corrections all;
} PyCorrections;

static PyTypeObject* corrections_type;

static PyObject* corrections_new(PyTypeObject* type, PyObject* arguments, PyObject* names) {
  double common_drift;
  if (names != NULL && PyDict_GET_SIZE(names) != 0)
    return PyErr_SetString(PyExc_TypeError, "Corrections() takes no arguments by name"), NULL;
  if (!PyArg_ParseTuple(arguments, "d", &common_drift)) return NULL;
  if (!(common_drift >= 0 && isfinite(common_drift)))
    return PyErr_SetString(PyExc_ValueError, "expected a variance that is finite and not below 0"), NULL;
  PyCorrections* self = (PyCorrections*)type->tp_alloc(type, 0);
  if (self != NULL) begin(&self->all, common_drift);
  return (PyObject*)self;
}

static PyObject* corrections_learn(PyCorrections* self, PyObject* arguments) {
  double size, found;
  long long step;
  if (!PyArg_ParseTuple(arguments, "ddL", &size, &found, &step)) return NULL;
  if (!(size >= 1 && isfinite(size) && fabs(found) <= MOST_LOGARITHM))
    return PyErr_SetString(PyExc_ValueError, "expected a size of at least 1, and the logarithm of a number"), NULL;
  if (step < 0 || step < self->all.step || step > MOST_STEPS)
    return PyErr_SetString(PyExc_ValueError, "expected a step that is not before the last one"), NULL;
  learn(&self->all, size, found, step);
  Py_RETURN_NONE;
}

static PyObject* corrections_at(PyCorrections* self, PyObject* argument) {
  const double place = PyFloat_AsDouble(argument);
  if (place == -1.0 && PyErr_Occurred()) return NULL;
  return PyFloat_FromDouble(correction_at(&self->all, place));
}

static PyObject* corrections_common(PyCorrections* self, void* closure) {
  (void)closure;
  return PyFloat_FromDouble(self->all.values[0]);
}

static PyObject* corrections_are_known(PyCorrections* self, void* closure) {
  (void)closure;
  return PyBool_FromLong(self->all.step >= 0);
}

static PyMethodDef corrections_methods[] = {
    {"learn", (PyCFunction)corrections_learn, METH_VARARGS, "Take the logarithm of measured by predicted time in."},
    {"at", (PyCFunction)corrections_at, METH_O, "Of a size, given as its logarithm."},
    {NULL}};
static PyGetSetDef corrections_properties[] = {
    {"are_known", (getter)corrections_are_known, NULL, "Whether anything was measured.", NULL},
    {"common", (getter)corrections_common, NULL, "By how much all sizes have changed.", NULL},
    {NULL}};
static PyType_Slot corrections_slots[] = {
    {Py_tp_new, corrections_new},
    {Py_tp_methods, corrections_methods},
    {Py_tp_getset, corrections_properties},
    {Py_tp_doc, "By how much measured times of one kind of work differ from predicted ones, by its size."},
    {0, NULL}};
static PyType_Spec corrections_spec = {"orchestrator.scheduling._depths.Corrections", sizeof(PyCorrections), 0,
                                       Py_TPFLAGS_DEFAULT, corrections_slots};

// ---- What work costs: a predicted time for each size, corrected. --------------------------------------------------

typedef struct {
  Py_buffer predicted_s;
  Py_ssize_t num_sizes;
  Corrections* corrections;
  double common;
} Curve;

static void curve_free(Curve* curve) {
  if (curve->predicted_s.obj != NULL) PyBuffer_Release(&curve->predicted_s);
}

static int curve_of(PyObject* object, Curve* curve) {
  PyObject *predicted, *corrections;
  if (!PyTuple_Check(object)) return PyErr_SetString(PyExc_TypeError, "expected a curve"), -1;
  if (!PyArg_ParseTuple(object, "OO!d", &predicted, corrections_type, &corrections, &curve->common)) return -1;
  if (PyObject_GetBuffer(predicted, &curve->predicted_s, PyBUF_FORMAT | PyBUF_ND) < 0) return -1;
  const char* format = curve->predicted_s.format;
  if (format == NULL || format[0] != 'd' || format[1] != 0 || curve->predicted_s.ndim != 1)
    return PyErr_SetString(PyExc_ValueError, "expected predicted seconds as float64 of one dimension"), -1;
  curve->num_sizes = curve->predicted_s.shape[0];
  curve->corrections = &((PyCorrections*)corrections)->all;
  return 0;
}

static double seconds_of(const Curve* curve, Py_ssize_t size) {
  const double* predicted_s = curve->predicted_s.buf;
  return predicted_s[size] * exp(curve->common + correction_at(curve->corrections, log((double)size)));
}

// ---- Drafts, those that gain most first. ---------------------------------------------------------------------------

typedef struct {
  double gain;
  int place, sequence;
} Draft;

static int gains_more(const void* first, const void* second) {
  const Draft *a = first, *b = second;
  if (a->gain != b->gain) return a->gain > b->gain ? -1 : 1;
  if (a->place != b->place) return a->place - b->place;
  return a->sequence - b->sequence;
}

// Fills `drafts`, which have room, from a list of lists; returns how many, or -1.
static Py_ssize_t drafts_of(PyObject* gains, Draft* drafts, Py_ssize_t most) {
  Py_ssize_t count = 0;
  for (Py_ssize_t sequence = 0; sequence < PyList_GET_SIZE(gains); ++sequence) {
    PyObject* own = PyList_GET_ITEM(gains, sequence);
    if (!PyList_Check(own)) return PyErr_SetString(PyExc_TypeError, "expected a list of gains for each sequence"), -1;
    if (PyList_GET_SIZE(own) > most)
      return PyErr_SetString(PyExc_ValueError, "a sequence has more drafts than MTP layers"), -1;
    for (Py_ssize_t place = 0; place < PyList_GET_SIZE(own); ++place) {
      const double gain = PyFloat_AsDouble(PyList_GET_ITEM(own, place));
      if (gain == -1.0 && PyErr_Occurred()) return -1;
      if (!isfinite(gain)) return PyErr_SetString(PyExc_ValueError, "a gain is not finite"), -1;
      drafts[count++] = (Draft){gain, (int)place, (int)sequence};
    }
  }
  qsort(drafts, (size_t)count, sizeof(Draft), gains_more);
  return count;
}

// What a step is longer for a sequence's rows that wait, if it drafts so deep; waiting: a list for each, or None.
static int waiting_of(PyObject* waiting, Py_ssize_t sequence, Py_ssize_t depth, double* seconds) {
  PyObject* own = PyList_GET_ITEM(waiting, sequence);
  *seconds = 0.0;
  if (own == Py_None) return 0;
  if (!PyList_Check(own) || PyList_GET_SIZE(own) <= depth)
    return PyErr_SetString(PyExc_ValueError, "expected seconds for each depth, or None"), -1;
  *seconds = PyFloat_AsDouble(PyList_GET_ITEM(own, depth));
  return *seconds == -1.0 && PyErr_Occurred() ? -1 : 0;
}

// ---- The search ----------------------------------------------------------------------------------------------------

typedef struct {
  Draft* drafts;
  Py_ssize_t num_drafts, most_drafts, rows;
  Curve passes;
  PyObject* waiting;
} Search;

typedef struct {
  Py_ssize_t depth, count;
  double rate;
} Best;

// Takes ever more drafts, none deeper than `depth`; `tokens` come without any.
static int look_at_depth(const Search* search, Py_ssize_t depth, const Curve* drafting, double tokens, Best* best) {
  double drafting_s = 0.0, waiting_s = 0.0, own_s;
  Py_ssize_t count = 0, num_drafting = 0;
  for (Py_ssize_t number = 0; number < search->num_drafts && count < search->most_drafts; ++number) {
    const Draft draft = search->drafts[number];
    if (draft.place >= depth) continue;
    if (draft.place == 0) {
      if (waiting_of(search->waiting, draft.sequence, depth, &own_s) < 0) return -1;
      drafting_s = seconds_of(drafting, ++num_drafting);
      waiting_s += own_s;
    }
    tokens += draft.gain;
    count++;
    const double rate = tokens / (seconds_of(&search->passes, search->rows + count) + drafting_s + waiting_s);
    if (rate > best->rate) *best = (Best){depth, count, rate};
  }
  return 0;
}

static int look_at_all(const Search* search, PyObject* curves, Py_ssize_t num_sequences, double tokens, Best* best) {
  for (Py_ssize_t depth = 1; depth <= PyList_GET_SIZE(curves); ++depth) {
    Curve drafting = {0};
    int status = curve_of(PyList_GET_ITEM(curves, depth - 1), &drafting);
    if (status == 0 && drafting.num_sizes <= num_sequences) {
      PyErr_SetString(PyExc_ValueError, "drafting for so many sequences is not predicted");
      status = -1;
    }
    if (status == 0) status = look_at_depth(search, depth, &drafting, tokens, best);
    curve_free(&drafting);
    if (status < 0) return -1;
  }
  return 0;
}

static PyObject* depths_of(const Search* search, Best best, Py_ssize_t num_sequences) {
  long* depths = PyMem_Calloc((size_t)num_sequences + 1, sizeof(long));
  if (depths == NULL) return PyErr_NoMemory();
  for (const Draft* draft = search->drafts; best.count > 0; ++draft) {
    if (draft->place >= best.depth) continue;
    depths[draft->sequence]++;
    best.count--;
  }
  PyObject* found = PyList_New(num_sequences);
  for (Py_ssize_t sequence = 0; found != NULL && sequence < num_sequences; ++sequence) {
    PyObject* depth = PyLong_FromLong(depths[sequence]);
    if (depth == NULL) Py_CLEAR(found);
    else PyList_SET_ITEM(found, sequence, depth);
  }
  PyMem_Free(depths);
  return found == NULL ? NULL : Py_BuildValue("Nd", found, best.rate);
}

static PyObject* searched(Search* search, PyObject* gains, PyObject* curves, double tokens, double least_gain) {
  const Py_ssize_t num_sequences = PyList_GET_SIZE(gains);
  search->num_drafts = drafts_of(gains, search->drafts, PyList_GET_SIZE(curves));
  if (search->num_drafts < 0) return NULL;
  if (search->rows < 1 || search->passes.num_sizes - search->num_drafts <= search->rows)
    return PyErr_SetString(PyExc_ValueError, "a pass of so many rows is not predicted"), NULL;
  Best best = {0, 0, tokens / seconds_of(&search->passes, search->rows) * (1 + least_gain)};
  if (look_at_all(search, curves, num_sequences, tokens, &best) < 0) return NULL;
  return depths_of(search, best, num_sequences);
}

static PyObject* fastest(PyObject* module, PyObject* arguments) {
  (void)module;
  PyObject *gains, *passes, *curves;
  double tokens, least_gain;
  Search search = {0};
  if (!PyArg_ParseTuple(arguments, "O!O!OO!dnnd", &PyList_Type, &gains, &PyList_Type, &search.waiting, &passes,
                        &PyList_Type, &curves, &tokens, &search.rows, &search.most_drafts, &least_gain))
    return NULL;
  const Py_ssize_t num_sequences = PyList_GET_SIZE(gains), depths = PyList_GET_SIZE(curves);
  if (PyList_GET_SIZE(search.waiting) != num_sequences)
    return PyErr_SetString(PyExc_ValueError, "expected as many that wait as sequences"), NULL;
  if (num_sequences > MOST_DRAFTS || depths > MOST_DRAFTS || num_sequences * depths > MOST_DRAFTS)
    return PyErr_SetString(PyExc_ValueError, "too many drafts"), NULL;
  search.drafts = PyMem_Calloc((size_t)(num_sequences * depths) + 1, sizeof(Draft));
  if (search.drafts == NULL) return PyErr_NoMemory();
  PyObject* found = NULL;
  if (curve_of(passes, &search.passes) == 0) found = searched(&search, gains, curves, tokens, least_gain);
  curve_free(&search.passes);
  PyMem_Free(search.drafts);
  return found;
}

static PyMethodDef functions[] = {
    {"fastest", fastest, METH_VARARGS, "The depths with the most expected tokens a second, and how many these are."},
    {NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "orchestrator.scheduling._depths", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__depths(void) {
  PyObject* module = PyModule_Create(&definition);
  if (module == NULL) return NULL;
  corrections_type = (PyTypeObject*)PyType_FromSpec(&corrections_spec);
  if (corrections_type == NULL || PyModule_AddType(module, corrections_type) < 0) return Py_DECREF(module), NULL;
  return module;
}
