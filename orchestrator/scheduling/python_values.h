// Reads what Python hands over, and hands things back. Whatever fails throws `PythonError`, with Python's error set.

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

struct PythonError {};

// A reference that is given up at the end.
class Ref {
 public:
  // Throws `PythonError` for none: then something has failed.
  explicit Ref(PyObject* object) : object_(object) {
    if (object == nullptr) throw PythonError{};
  }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  ~Ref() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }

 private:
  PyObject* object_;
};

// What a function called from Python returns; errors become Python's.
template <class Function>
PyObject* for_python(Function function) {
  try {
    return function();
  } catch (const PythonError&) {
  } catch (const std::length_error& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

[[noreturn]] inline void refuse(PyObject* type, const char* message) {
  PyErr_SetString(type, message);
  throw PythonError{};
}

inline int64_t integer(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw PythonError{};
  return value;
}

inline double number(PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  if (value == -1.0 && PyErr_Occurred()) throw PythonError{};
  return value;
}

// Of anything that can be iterated over.
template <class Function>
auto each_of(PyObject* objects, Function function) {
  const Ref items(PySequence_Fast(objects, "expected a sequence"));
  std::vector<decltype(function(objects))> found;
  // Whoever converts one may change the sequence.
  for (Py_ssize_t place = 0; place < PySequence_Fast_GET_SIZE(items.get()); place++) {
    PyObject* item = PySequence_Fast_GET_ITEM(items.get(), place);
    Py_INCREF(item);
    const Ref held(item);
    found.push_back(function(item));
  }
  return found;
}

// A tuple of so many, as a NamedTuple is.
inline PyObject* tuple_of(PyObject* object, Py_ssize_t size, const char* expected) {
  if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != size) refuse(PyExc_TypeError, expected);
  return object;
}

inline PyObject* python_of(double value) { return PyFloat_FromDouble(value); }

inline PyObject* python_of(int value) { return PyLong_FromLong(value); }

inline PyObject* python_of(int64_t value) { return PyLong_FromLongLong(value); }

template <class Value>
PyObject* list_of(const std::vector<Value>& values) {
  Ref list(PyList_New((Py_ssize_t)values.size()));
  for (size_t place = 0; place < values.size(); place++)
    PyList_SET_ITEM(list.get(), (Py_ssize_t)place, Ref(python_of(values[place])).release());
  return list.release();
}
