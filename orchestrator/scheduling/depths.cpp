// What chooses depths of drafts, for Python: `_depths.pyi` says what it is. It is compiled because every step asks. A
// pass puts what Python reads out of the caches, so in Python choosing took a hundredth of a small model's step.

#include "python_values.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "corrections.h"
#include "draft_depth.h"
#include "fastest_depths.h"
#include "measured_costs.h"

namespace {

// Far from where numbers of steps overflow, and beyond the logarithm of any number.
constexpr int64_t MOST_STEPS = INT64_MAX / 2;
constexpr double MOST_LOGARITHM = 1e4;
// More rows than any pass has.
constexpr long long MOST_ROWS = 1 << 24;
// Of a sequence that is drafted for: its newest row, and about one that was accepted or hung on a draft.
constexpr int ROWS_IN_DRAFTING = 2;

// A C++ object as Python's, with another of Python's that it needs.
template <class Of>
struct Holder {
  PyObject_HEAD
  Of* of;
  PyObject* needs;
};

template <class Of>
Of& of(PyObject* self) {
  return *reinterpret_cast<Holder<Of>*>(self)->of;
}

template <class Of>
PyObject* hold(PyTypeObject* type, std::unique_ptr<Of> object, PyObject* needs) {
  Ref self(type->tp_alloc(type, 0));
  auto* holder = reinterpret_cast<Holder<Of>*>(self.get());
  holder->of = object.release();
  Py_XINCREF(needs);
  holder->needs = needs;
  return self.release();
}

template <class Of>
void let_go(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  auto* holder = reinterpret_cast<Holder<Of>*>(self);
  delete holder->of;
  Py_XDECREF(holder->needs);
  type->tp_free(self);
  Py_DECREF(type);
}

// Without names of arguments, which these have not.
void no_names(PyObject* names) {
  if (names != nullptr && PyDict_GET_SIZE(names) != 0) refuse(PyExc_TypeError, "no argument is given by its name");
}

void parsed(int status) {
  if (status == 0) throw PythonError{};
}

// ---- Corrections ----------------------------------------------------------------------------------------------------

PyObject* corrections_new(PyTypeObject* type, PyObject* arguments, PyObject* names) {
  return for_python([&] {
    double common_drift;
    no_names(names);
    parsed(PyArg_ParseTuple(arguments, "d", &common_drift));
    if (!(common_drift >= 0 && std::isfinite(common_drift)))
      refuse(PyExc_ValueError, "expected a variance that is finite and not below 0");
    return hold(type, std::make_unique<Corrections>(common_drift), nullptr);
  });
}

PyObject* corrections_learn(PyObject* self, PyObject* arguments) {
  return for_python([&]() -> PyObject* {
    double size, found;
    long long step;
    parsed(PyArg_ParseTuple(arguments, "ddL", &size, &found, &step));
    if (!(size >= 1 && std::isfinite(size) && std::fabs(found) <= MOST_LOGARITHM))
      refuse(PyExc_ValueError, "expected a size of at least 1, and the logarithm of a number");
    if (step < 0 || step < of<Corrections>(self).last_step() || step > MOST_STEPS)
      refuse(PyExc_ValueError, "expected a step that is not before the last one");
    of<Corrections>(self).learn(size, found, step);
    Py_RETURN_NONE;
  });
}

PyObject* corrections_at(PyObject* self, PyObject* log_size) {
  return for_python([&] { return PyFloat_FromDouble(of<Corrections>(self).at(number(log_size))); });
}

PyObject* corrections_common(PyObject* self, void*) { return PyFloat_FromDouble(of<Corrections>(self).common()); }

PyObject* corrections_are_known(PyObject* self, void*) { return PyBool_FromLong(of<Corrections>(self).are_known()); }

PyMethodDef corrections_methods[] = {
    {"learn", corrections_learn, METH_VARARGS, "Take the logarithm of measured by predicted time in."},
    {"at", corrections_at, METH_O, "Of a size, given as its logarithm."},
    {}};
PyGetSetDef corrections_properties[] = {
    {"are_known", corrections_are_known, nullptr, "Whether anything was measured.", nullptr},
    {"common", corrections_common, nullptr, "By how much all sizes have changed.", nullptr},
    {}};
PyType_Slot corrections_slots[] = {
    {Py_tp_new, (void*)corrections_new},
    {Py_tp_dealloc, (void*)let_go<Corrections>},
    {Py_tp_methods, corrections_methods},
    {Py_tp_getset, corrections_properties},
    {Py_tp_doc, (void*)"By how much measured times of one kind of work differ from predicted ones, by its size."},
    {}};
PyType_Spec corrections_spec = {"orchestrator.scheduling._depths.Corrections", sizeof(Holder<Corrections>), 0,
                                Py_TPFLAGS_DEFAULT, corrections_slots};

// ---- MeasuredCosts --------------------------------------------------------------------------------------------------

PyTypeObject* measured_costs_type;

std::vector<int64_t> integers(PyObject* objects) { return each_of(objects, integer); }

// `predicted`, a PassCosts, lives as long as what is returned.
std::unique_ptr<MeasuredCosts> costs_of(PyObject* predicted) {
  const Ref layers(PyObject_GetAttrString(predicted, "draft_s"));
  auto row_s = each_of(layers.get(), [](PyObject* layer) {
    return number(PyTuple_GET_ITEM(tuple_of(layer, 2, "expected seconds once a pass, and for each row"), 1));
  });
  std::vector<Predicted::OfSize> drafting_s;
  for (int depth = 1; depth <= (int)row_s.size(); depth++)
    drafting_s.push_back([predicted, depth](int64_t sequences) {
      const long long rows = ROWS_IN_DRAFTING * sequences;
      return number(Ref(PyObject_CallMethod(predicted, "drafting_s", "iL", depth, rows)).get());
    });
  auto pass_s = [predicted](int64_t rows) {
    return number(Ref(PyObject_CallMethod(predicted, "trunk_s", "L", (long long)rows)).get());
  };
  return std::make_unique<MeasuredCosts>(pass_s, std::move(drafting_s), std::move(row_s));
}

void check_rows(long long rows, long long least) {
  if (least <= rows && rows <= MOST_ROWS) return;
  PyErr_Format(PyExc_ValueError, "expected %lld to 16,777,216 rows or sequences, not %lld", least, rows);
  throw PythonError{};
}

PyObject* costs_new(PyTypeObject* type, PyObject* arguments, PyObject* names) {
  return for_python([&] {
    PyObject* predicted;
    no_names(names);
    parsed(PyArg_ParseTuple(arguments, "O", &predicted));
    return hold(type, costs_of(predicted), predicted);
  });
}

PyObject* costs_trunk_s(PyObject* self, PyObject* rows) {
  return for_python([&] { return PyFloat_FromDouble(of<MeasuredCosts>(self).trunk_s(integer(rows))); });
}

// Of MTP layers whose cost is predicted.
void check_depth(PyObject* self, int depth) {
  if (depth > of<MeasuredCosts>(self).most_drafts()) refuse(PyExc_ValueError, "drafting so deep is not predicted");
}

PyObject* costs_drafting_s(PyObject* self, PyObject* arguments) {
  return for_python([&] {
    int depth;
    long long sequences;
    parsed(PyArg_ParseTuple(arguments, "iL", &depth, &sequences));
    check_depth(self, depth);
    return PyFloat_FromDouble(of<MeasuredCosts>(self).drafting_s(depth, sequences));
  });
}

PyObject* costs_taking_in_s(PyObject* self, PyObject* rows) {
  return for_python([&] { return PyFloat_FromDouble(of<MeasuredCosts>(self).taking_in_s(integers(rows))); });
}

PyObject* costs_learn_pass(PyObject* self, PyObject* arguments) {
  return for_python([&]() -> PyObject* {
    long long rows;
    double seconds;
    parsed(PyArg_ParseTuple(arguments, "Ld", &rows, &seconds));
    of<MeasuredCosts>(self).learn_pass(rows, seconds);
    Py_RETURN_NONE;
  });
}

PyObject* costs_learn_drafting(PyObject* self, PyObject* arguments) {
  return for_python([&]() -> PyObject* {
    int depth;
    long long sequences;
    double seconds;
    PyObject* taken_in = nullptr;
    parsed(PyArg_ParseTuple(arguments, "iLd|O", &depth, &sequences, &seconds, &taken_in));
    check_depth(self, depth);
    const auto rows = taken_in == nullptr ? std::vector<int64_t>{} : integers(taken_in);
    of<MeasuredCosts>(self).learn_drafting(depth, sequences, seconds, rows);
    Py_RETURN_NONE;
  });
}

PyMethodDef costs_methods[] = {
    {"trunk_s", costs_trunk_s, METH_O, "Of a pass of so many rows."},
    {"drafting_s", costs_drafting_s, METH_VARARGS, "Of the first MTP layers drafting for so many sequences."},
    {"taking_in_s", costs_taking_in_s, METH_O, "Of so many rows more in each of the first MTP layers."},
    {"learn_pass", costs_learn_pass, METH_VARARGS, "A pass of so many rows took so long."},
    {"learn_drafting", costs_learn_drafting, METH_VARARGS, "MTP layers drafted for so many sequences."},
    {}};
PyType_Slot costs_slots[] = {
    {Py_tp_new, (void*)costs_new},
    {Py_tp_dealloc, (void*)let_go<MeasuredCosts>},
    {Py_tp_methods, costs_methods},
    {Py_tp_doc, (void*)"Seconds of passes and of drafting: the prediction times a correction by size."},
    {}};
PyType_Spec costs_spec = {"orchestrator.scheduling._depths.MeasuredCosts", sizeof(Holder<MeasuredCosts>), 0,
                          Py_TPFLAGS_DEFAULT, costs_slots};

// ---- DraftDepth -----------------------------------------------------------------------------------------------------

constexpr char NO_CANDIDATE[] = "expected candidates: a sequence, its most drafts, and what it is behind";
constexpr char NO_VERIFIED[] = "expected a sequence, its drafts, and how many were accepted";

int bounded(PyObject* object) { return (int)std::clamp<int64_t>(integer(object), -1, 1 << 30); }

PyObject* depth_new(PyTypeObject* type, PyObject* arguments, PyObject* names) {
  return for_python([&] {
    int most;
    PyObject* costs;
    no_names(names);
    parsed(PyArg_ParseTuple(arguments, "iO!", &most, measured_costs_type, &costs));
    return hold(type, std::make_unique<DraftDepth>(std::max(0, most), of<MeasuredCosts>(costs)), costs);
  });
}

PyObject* depth_choose(PyObject* self, PyObject* arguments, PyObject* names) {
  return for_python([&] {
    static const char* const expected[] = {"candidates", "other_rows", "most_rows", nullptr};
    PyObject* objects;
    long long other_rows = 0, most_rows = 1 << 30;
    parsed(PyArg_ParseTupleAndKeywords(arguments, names, "O|LL", const_cast<char**>(expected), &objects, &other_rows,
                                       &most_rows));
    check_rows(other_rows, 0);
    const Ref held(PySequence_Tuple(objects));
    Asked asked{{}, other_rows, most_rows};
    std::vector<int> most;
    for (Py_ssize_t place = 0; place < PyTuple_GET_SIZE(held.get()); place++) {
      PyObject* candidate = tuple_of(PyTuple_GET_ITEM(held.get(), place), 3, NO_CANDIDATE);
      asked.sequences.push_back(integer(PyTuple_GET_ITEM(candidate, 0)));
      most.push_back(bounded(PyTuple_GET_ITEM(candidate, 1)));
    }
    const auto candidates = [&] {
      std::vector<Candidate> found;
      for (size_t place = 0; place < most.size(); place++) {
        PyObject* behind = PyTuple_GET_ITEM(PyTuple_GET_ITEM(held.get(), (Py_ssize_t)place), 2);
        found.push_back({asked.sequences[place], most[place], integers(behind)});
      }
      return found;
    };
    const Depths depths = of<DraftDepth>(self).choose(asked, most, candidates);
    Ref chosen(PyDict_New());
    for (size_t place = 0; place < depths.size(); place++) {
      PyObject* sequence = PyTuple_GET_ITEM(PyTuple_GET_ITEM(held.get(), (Py_ssize_t)place), 0);
      const Ref depth(python_of(depths[place]));
      if (PyDict_SetItem(chosen.get(), sequence, depth.get()) < 0) throw PythonError{};
    }
    return chosen.release();
  });
}

PyObject* depth_rests(PyObject* self, PyObject* arguments) {
  return for_python([&] {
    long long num_sequences, other_rows;
    parsed(PyArg_ParseTuple(arguments, "LL", &num_sequences, &other_rows));
    check_rows(num_sequences, 0);
    check_rows(other_rows, 0);
    return PyBool_FromLong(of<DraftDepth>(self).rests(num_sequences, other_rows));
  });
}

PyObject* depth_learn(PyObject* self, PyObject* verified) {
  return for_python([&]() -> PyObject* {
    of<DraftDepth>(self).learn(each_of(verified, [](PyObject* one) {
      tuple_of(one, 3, NO_VERIFIED);
      return Verified{integer(PyTuple_GET_ITEM(one, 0)), bounded(PyTuple_GET_ITEM(one, 1)),
                      bounded(PyTuple_GET_ITEM(one, 2))};
    }));
    Py_RETURN_NONE;
  });
}

PyObject* depth_plan_anew(PyObject* self, PyObject*) {
  of<DraftDepth>(self).plan_anew();
  Py_RETURN_NONE;
}

PyObject* depth_forget(PyObject* self, PyObject* sequence) {
  return for_python([&]() -> PyObject* {
    of<DraftDepth>(self).forget(integer(sequence));
    Py_RETURN_NONE;
  });
}

PyObject* depth_acceptance(PyObject* self, PyObject* sequence) {
  return for_python([&] { return list_of(of<DraftDepth>(self).acceptance(integer(sequence))); });
}

PyObject* depth_most(PyObject* self, void*) { return PyLong_FromLong(of<DraftDepth>(self).most()); }

PyObject* depth_keeps_rows(PyObject* self, void*) { return PyBool_FromLong(of<DraftDepth>(self).keeps_rows()); }

PyObject* depth_context_rows(PyObject*, void*) { return PyLong_FromLongLong(CONTEXT_ROWS); }

PyObject* depth_plans_made(PyObject* self, void*) { return PyLong_FromLongLong(of<DraftDepth>(self).plans_made()); }

PyMethodDef depth_methods[] = {
    {"choose", (PyCFunction)(void (*)(void))depth_choose, METH_VARARGS | METH_KEYWORDS, "Drafts of each sequence."},
    {"rests", depth_rests, METH_VARARGS, "Whether so many sequences make no drafts in the next step."},
    {"learn", depth_learn, METH_O, "A step is done, with drafts of these sequences."},
    {"plan_anew", depth_plan_anew, METH_NOARGS, "Somebody was put back: its rows will wait again."},
    {"forget", depth_forget, METH_O, "A sequence has ended."},
    {"acceptance", depth_acceptance, METH_O, "Expected chance of each draft to hold if those before it do."},
    {}};
PyGetSetDef depth_properties[] = {
    {"most", depth_most, nullptr, "Drafts of a sequence in a step.", nullptr},
    {"keeps_rows", depth_keeps_rows, nullptr, "Whether sequences keep their rows for drafts from now on.", nullptr},
    {"context_rows", depth_context_rows, nullptr, "Rows that a sequence's drafts wait for.", nullptr},
    {"plans_made", depth_plans_made, nullptr, "How often the best depths were looked for.", nullptr},
    {}};
PyType_Slot depth_slots[] = {
    {Py_tp_new, (void*)depth_new},
    {Py_tp_dealloc, (void*)let_go<DraftDepth>},
    {Py_tp_methods, depth_methods},
    {Py_tp_getset, depth_properties},
    {Py_tp_doc, (void*)"Chooses depths from measured acceptance and costs."},
    {}};
PyType_Spec depth_spec = {"orchestrator.scheduling._depths.DraftDepth", sizeof(Holder<DraftDepth>), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, depth_slots};

// ---- Functions ------------------------------------------------------------------------------------------------------

PyObject* rows_taken_in(PyObject*, PyObject* drafted) {
  return for_python([&] {
    std::vector<int64_t> total;
    for (const auto& rows : each_of(drafted, [](PyObject* one) {
           tuple_of(one, 2, "expected what a sequence is behind, and how many layers drafted for it");
           const Candidate of{0, 0, integers(PyTuple_GET_ITEM(one, 0))};
           return of.to_take_in(bounded(PyTuple_GET_ITEM(one, 1)));
         })) {
      total.resize(std::max(total.size(), rows.size()));
      std::transform(rows.begin(), rows.end(), total.begin(), total.begin(), std::plus<int64_t>());
    }
    return PyList_AsTuple(Ref(list_of(total)).get());
  });
}

PyObject* fastest(PyObject*, PyObject* arguments) {
  return for_python([&] {
    PyObject *costs, *gains, *waiting;
    PlainStep step;
    long long num_sequences, other_rows, most_rows;
    double least_gain;
    parsed(PyArg_ParseTuple(arguments, "O!OOLLLd", measured_costs_type, &costs, &gains, &waiting, &num_sequences,
                            &other_rows, &most_rows, &least_gain));
    check_rows(num_sequences, 1);
    check_rows(other_rows, 0);
    step = {num_sequences, other_rows, most_rows, of<MeasuredCosts>(costs).most_drafts()};
    const auto numbers = [](PyObject* own) { return each_of(own, number); };
    const Gains of_drafts = each_of(gains, numbers);
    const WaitingSeconds waiting_s = each_of(waiting, numbers);
    if (waiting_s.size() != of_drafts.size()) refuse(PyExc_ValueError, "expected as many that wait as sequences");
    for (const auto& own : of_drafts) {
      if ((int)own.size() > step.most_drafts) refuse(PyExc_ValueError, "a sequence has more drafts than MTP layers");
      for (const double gain : own)
        if (!std::isfinite(gain)) refuse(PyExc_ValueError, "a gain is not finite");
    }
    for (const auto& own : waiting_s)
      if (!own.empty() && (int)own.size() <= step.most_drafts)
        refuse(PyExc_ValueError, "expected seconds for each depth, or none");
    const auto found = fastest_depths(of<MeasuredCosts>(costs), of_drafts, waiting_s, step, least_gain);
    return Py_BuildValue("Nd", list_of(found.depths), found.rate);
  });
}

PyMethodDef functions[] = {
    {"rows_taken_in", rows_taken_in, METH_O, "Rows that had waited for each MTP layer, of all sequences together."},
    {"fastest", fastest, METH_VARARGS, "The depths with the most expected tokens a second, and how many these are."},
    {}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "orchestrator.scheduling._depths", nullptr, -1, functions};

}  // namespace

PyMODINIT_FUNC PyInit__depths() {
  return for_python([] {
    Ref module(PyModule_Create(&definition));
    for (auto* spec : {&corrections_spec, &costs_spec, &depth_spec}) {
      const Ref type(PyType_FromSpec(spec));
      auto* as_type = reinterpret_cast<PyTypeObject*>(type.get());
      if (PyModule_AddType(module.get(), as_type) < 0) throw PythonError{};
      if (spec == &costs_spec) {
        Py_INCREF(as_type);
        measured_costs_type = as_type;
      }
    }
    return module.release();
  });
}
