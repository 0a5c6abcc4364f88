// The torch objects that mmfast/ops/around.py gives to the extension once, and checks of what surrounds a call. In
// Python these checks take a dozen calls, which is half the time of a cold call.
#pragma once

#include "python.h"

namespace mmfast {

// The result of inspecting a call: an unusual case; nothing special; only a gradient to record; tensors on another
// device. mmfast/ops/backends/__init__.py uses the same numbers.
enum Seen : long { kUnusual = 0, kPlain = 1, kRecorded = 2, kElsewhere = 3 };

struct TorchState {
    PyObject *tensor_type = nullptr, *parameter_type = nullptr, *torch = nullptr, *dtypes = nullptr;
    PyObject *block_type = nullptr, *kept_tables_type = nullptr;  // Block and KeptTables in mmfast/ops/call.py
    PyObject *watchers = nullptr, *forward_ad = nullptr, *seed_tensor = nullptr;  // null: it cannot inspect a call
    PyObject *is_neg, *requires_grad, *current_level, *new_empty, *is_grad_enabled, *num_threads, *dtype_keyword, *empty_like;
    PyObject *random, *lowest;
};
inline TorchState torch_state;

inline PyObject* interned(const char* name) {
    PyObject* text = PyUnicode_InternFromString(name);
    if (!text) throw PythonError();
    return text;
}

// tell(Tensor, Parameter, torch, (float32, float64, bfloat16, float16, int64), Block, KeptTables): the order of Type,
// then int64.
inline PyObject* py_tell(PyObject* const* a, Py_ssize_t count) {
    expect(count == 6 && PyTuple_Check(a[3]) && PyTuple_GET_SIZE(a[3]) == 5, "tell takes 6 arguments");
    for (Py_ssize_t i = 0; i < count; ++i) Py_INCREF(a[i]);
    torch_state.tensor_type = a[0], torch_state.parameter_type = a[1];
    torch_state.torch = a[2], torch_state.dtypes = a[3], torch_state.block_type = a[4];
    torch_state.kept_tables_type = a[5];
    torch_state.is_neg = interned("is_neg");
    torch_state.requires_grad = interned("requires_grad");
    torch_state.current_level = interned("_current_level");
    torch_state.new_empty = interned("new_empty");
    torch_state.is_grad_enabled = PyObject_GetAttrString(a[2], "is_grad_enabled");
    torch_state.num_threads = PyObject_GetAttrString(a[2], "get_num_threads");
    torch_state.lowest = PyLong_FromLongLong(INT64_MIN);
    if (!torch_state.is_grad_enabled || !torch_state.num_threads || !torch_state.lowest) throw PythonError();
    torch_state.empty_like = interned("empty_like"), torch_state.random = interned("random_");
    const Reference keyword(interned("dtype"));
    torch_state.dtype_keyword = PyTuple_Pack(1, keyword.get());
    if (!torch_state.dtype_keyword) throw PythonError();
    Py_RETURN_NONE;
}

// watch(functions, forward_ad, seed_tensor): functions that return 0 or None unless a compiler, tracer, transform or
// dispatch mode has to see the ops; the module whose _current_level is -1 unless forward-mode differentiation is
// active; a function that returns this thread's int64 buffer for drawing a seed.
inline PyObject* py_watch(PyObject* const* a, Py_ssize_t count) {
    expect(count == 3 && PyTuple_Check(a[0]), "watch takes 3 arguments, the first a tuple");
    for (Py_ssize_t i = 0; i < count; ++i) Py_INCREF(a[i]);
    torch_state.watchers = a[0], torch_state.forward_ad = a[1], torch_state.seed_tensor = a[2];
    Py_RETURN_NONE;
}

// use_exchange_api(capsule or None) -> whether it can be used
inline PyObject* py_use_exchange_api(PyObject* const* a, Py_ssize_t count) {
    expect(count == 1, "use_exchange_api takes 1 argument");
    use_exchange_api(a[0]);
    return PyBool_FromLong(exchange_api() != nullptr);
}

// An entry for a function in CPython's table of methods.
template <PyObject* (*f)(PyObject* const*, Py_ssize_t)>
constexpr PyMethodDef fast(const char* name) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&method<f>)), METH_FASTCALL, nullptr};
}

// Clear a Python error that means "unusual case"; pass on Ctrl-C and the like.
inline void clear_error() {
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception)) throw PythonError();
    PyErr_Clear();
}

inline bool truth(const Reference& value) {
    const int yes = PyObject_IsTrue(value.get());
    if (yes < 0) throw PythonError();
    return yes;
}

inline bool grad_enabled() {
    return truth(Reference(PyObject_CallNoArgs(torch_state.is_grad_enabled)));
}

// Whether no compiler, tracer, transform or mode is active.
inline bool nothing_at_work() {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch_state.watchers); ++i)
        if (truth(Reference(PyObject_CallNoArgs(PyTuple_GET_ITEM(torch_state.watchers, i))))) return false;
    const Reference level(PyObject_GetAttr(torch_state.forward_ad, torch_state.current_level));
    return integer(level.get()) < 0;
}

// Whether this is a plain tensor or parameter, not another subclass.
inline bool ordinary(PyObject* x) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(x));
    return type == torch_state.tensor_type || type == torch_state.parameter_type;
}
// The same, and without a pending negation.
inline bool plain_tensor(PyObject* x) {
    return ordinary(x) && Reference(PyObject_CallMethodNoArgs(x, torch_state.is_neg)).get() != Py_True;
}

// Whether a tensor is on a device of this extension's kind.
inline bool on_our_device(PyObject* x) {
    dlpack::Tensor t;
    if (exchange_api()->from_object(x, &t) != 0) throw PythonError();
    return t.device.type == kDevice;
}

inline bool requires_grad(PyObject* x) {
    return Reference(PyObject_GetAttr(x, torch_state.requires_grad)).get() == Py_True;
}

inline PyObject* dtype_of(Type type) { return PyTuple_GET_ITEM(torch_state.dtypes, static_cast<int>(type)); }

// Owned Python ints as the positional arguments of a call, between its first argument and one more.
class Sizes {
public:
    Sizes(PyObject* first, const int64_t* sizes, int count, PyObject* last) : Sizes(first) {
        for (; count_ < count; ++count_) {
            arguments[1 + count_] = PyLong_FromLongLong(sizes[count_]);
            if (!arguments[1 + count_]) throw PythonError();
        }
        arguments[1 + count] = last;
    }
    ~Sizes() {
        for (int d = 0; d < count_; ++d) Py_DECREF(arguments[1 + d]);
    }
    Sizes(const Sizes&) = delete;
    Sizes& operator=(const Sizes&) = delete;

    PyObject* arguments[kMaxRank + 2];

private:
    explicit Sizes(PyObject* first) { arguments[0] = first; }

    int count_ = 0;
};

// A new tensor of this shape, of at least one dimension, on the device of `like`; dtype: null for that of `like`. It
// calls new_empty(2, 3), which torch parses in a third less time than new_empty((2, 3)).
inline PyObject* new_tensor(PyObject* like, const int64_t* shape, int rank, PyObject* dtype) {
    const Sizes sizes(like, shape, rank, dtype);
    PyObject* keywords = dtype ? torch_state.dtype_keyword : nullptr;
    PyObject* made = PyObject_VectorcallMethod(torch_state.new_empty, sizes.arguments, 1 + rank, keywords);
    if (!made) throw PythonError();
    return made;
}

// A new tensor like `like`, which must be contiguous. Faster than new_tensor.
inline PyObject* new_like(PyObject* like) {
    PyObject* made = PyObject_CallMethodOneArg(torch_state.torch, torch_state.empty_like, like);
    if (!made) throw PythonError();
    return made;
}

// This thread's buffer for drawing a seed. mmfast/ops/around.py owns it for as long as the Python thread lives, so it is
// only asked for once per thread. The number of a thread is never used again.
inline PyObject* seed_buffer() {
    thread_local uint64_t thread = 0;
    thread_local PyObject* borrowed = nullptr;
    const uint64_t now = PyThreadState_GetID(PyThreadState_Get());
    if (!borrowed || thread != now) {
        borrowed = Reference(PyObject_CallNoArgs(torch_state.seed_tensor)).get();
        thread = now;
    }
    return borrowed;
}

// A fresh seed from torch's default generator; mmfast/ops/around.py has the same function.
inline int64_t fresh_seed() {
    PyObject* buffer = seed_buffer();
    PyObject* arguments[] = {buffer, torch_state.lowest, Py_None};
    const Reference filled(PyObject_VectorcallMethod(torch_state.random, arguments, 3, nullptr));
    dlpack::Tensor t;
    if (exchange_api()->from_object(buffer, &t) != 0) throw PythonError();
    int64_t seed;
    std::memcpy(&seed, static_cast<char*>(t.data) + t.byte_offset, sizeof seed);
    return seed;
}

inline int thread_count() {
    return static_cast<int>(integer(Reference(PyObject_CallNoArgs(torch_state.num_threads)).get()));
}

}  // namespace mmfast
