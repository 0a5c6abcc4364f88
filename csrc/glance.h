// What is at work around an op, seen at a glance.
#pragma once

#include "call.h"

namespace mmfast {

// What `glance` looks at: torch.Tensor and Parameter; torch.is_grad_enabled; functions that return 0 or None unless a compiler,
// tracer, transform or dispatch mode has to see the ops; the module whose _current_level is -1 unless forward-mode
// differentiation is at work. And what `express` calls: a function that gives a fresh seed, torch.empty_like,
// torch.get_num_threads. Set once, by watch().
struct TorchState {
    PyObject *tensor_type = nullptr, *parameter_type = nullptr, *grad_enabled = nullptr, *watchers = nullptr;
    PyObject *forward_ad = nullptr, *fresh_seed = nullptr, *empty_like = nullptr, *num_threads = nullptr;
    PyObject *requires_grad = nullptr, *current_level = nullptr, *is_neg = nullptr;
};
inline TorchState torch_state;

inline PyObject* py_watch(PyObject* const* a, Py_ssize_t count) {
    expect(count == 8 && PyTuple_Check(a[3]), "watch takes 8 arguments, the fourth a tuple");
    for (Py_ssize_t i = 0; i < count; ++i) Py_INCREF(a[i]);
    torch_state.tensor_type = a[0], torch_state.parameter_type = a[1], torch_state.grad_enabled = a[2];
    torch_state.watchers = a[3], torch_state.forward_ad = a[4];
    torch_state.fresh_seed = a[5], torch_state.empty_like = a[6], torch_state.num_threads = a[7];
    torch_state.is_neg = PyUnicode_InternFromString("is_neg");
    torch_state.current_level = PyUnicode_InternFromString("_current_level");
    torch_state.requires_grad = PyUnicode_InternFromString("requires_grad");
    Py_RETURN_NONE;
}

// Whether calling f() gives something true.
inline bool holds(PyObject* f) {
    PyObject* result = PyObject_CallNoArgs(f);
    if (!result) throw PythonError();
    const int truth = PyObject_IsTrue(result);
    Py_DECREF(result);
    if (truth < 0) throw PythonError();
    return truth;
}

// False for a tensor that DLPack does not know, on the meta device for one.
inline bool describe(PyObject* tensor, dlpack::Tensor* out) {
    try {
        if (exchange_api()->from_object(tensor, out) == 0) return true;
    } catch (const std::exception&) {
    }
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception)) throw PythonError();  // Ctrl-C, say
    PyErr_Clear();
    return false;
}

// What x.name is, or x.name() gives, taken as true or false.
inline bool attribute(PyObject* x, PyObject* name) {
    PyObject* value = PyObject_GetAttr(x, name);
    return Reference(value).get() == Py_True;
}
inline bool method_holds(PyObject* x, PyObject* name) {
    PyObject* value = PyObject_CallMethodNoArgs(x, name);
    return Reference(value).get() == Py_True;
}

// glance(tensors): 0 unless these are torch's own tensors of one shape and floating type in the CPU's memory, with no
// compiler, tracer, transform or mode at work; then 1, or 2 where one of them is to be differentiated. One look at
// what takes Python a dozen; on a cold call that is half of it.
inline long glance(PyObject* list) {
    expect(PyList_Check(list), "glance takes a list");
    const Py_ssize_t n = PyList_GET_SIZE(list);
    if (!exchange_api() || !torch_state.tensor_type || n == 0) return 0;
    for (Py_ssize_t k = 0; k < n; ++k) {
        PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(PyList_GET_ITEM(list, k)));
        if (type != torch_state.tensor_type && type != torch_state.parameter_type) return 0;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch_state.watchers); ++i)
        if (holds(PyTuple_GET_ITEM(torch_state.watchers, i))) return 0;
    PyObject* level = PyObject_GetAttr(torch_state.forward_ad, torch_state.current_level);
    if (!level) throw PythonError();
    const long depth = PyLong_AsLong(level);
    Py_DECREF(level);
    if (depth >= 0) return 0;
    const bool grad = holds(torch_state.grad_enabled);
    bool recorded = false;
    dlpack::Tensor first{};
    for (Py_ssize_t k = 0; k < n; ++k) {
        PyObject* x = PyList_GET_ITEM(list, k);
        dlpack::Tensor t;
        if (!describe(x, &t) || method_holds(x, torch_state.is_neg)) return 0;
        recorded |= grad && attribute(x, torch_state.requires_grad);
        const bool floats = (t.dtype.code == dlpack::kFloat && t.dtype.bits >= 16) ||
                            (t.dtype.code == dlpack::kBfloat && t.dtype.bits == 16);
        if (k == 0) first = t;
        bool same = t.ndim == first.ndim && t.dtype.code == first.dtype.code && t.dtype.bits == first.dtype.bits;
        bool empty = false;
        for (int d = 0; same && d < t.ndim; ++d) same = t.shape[d] == first.shape[d], empty |= t.shape[d] == 0;
        if (t.device.type != 1 || !floats || t.ndim == 0 || !same || (!t.data && !empty)) return 0;
    }
    return recorded ? 2 : 1;
}

inline PyObject* py_glance(PyObject* const* a, Py_ssize_t count) {
    expect(count == 1, "glance takes a list");
    return PyLong_FromLong(glance(a[0]));
}

}  // namespace mmfast
