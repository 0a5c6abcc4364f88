// The entry points from Python of both extensions: checked and unchecked calls, the products of gradients, masks, and
// the table of methods.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "call.h"

namespace mmfast {

// An op on a call, with its options as passed from Python.
using Op = PyObject* (*)(Call& call, PyObject* const* options);

// op(call, *options) for a complete call.
template <Op op, Py_ssize_t options>
PyObject* serve(PyObject* const* a, Py_ssize_t count) {
    expect(count == 1 + options, "an op takes a call and its options");
    Call call(a[0]);
    return op(call, a + 1);
}

// op(terms, tables, rows, noise, *options) for the fields of an unchecked call. In an unusual case it does nothing and
// returns a number.
template <Op op, Py_ssize_t options>
PyObject* look(PyObject* const* a, Py_ssize_t count) {
    expect(count == 4 + options, "an op takes the first four fields of a call and its options");
    try {
        Call call(a);
        if (call.seen == kUnusual || call.seen == kElsewhere) return PyLong_FromLong(call.seen);
        return op(call, a + 4);
    } catch (const std::invalid_argument&) {
    } catch (const PythonError&) {
        clear_error();
    }
    return PyLong_FromLong(kUnusual);
}

// Computes the products coefs[b, columns[k]] x[b] as new tensors, and passes them to `put` one by one.
using Put = std::function<void(int64_t k, PyObject* out)>;
using Scaled = void (*)(PyObject* x, PyObject* coefs, PyObject* rows, const std::vector<int64_t>& columns, const Put& put);

// scale(x, coefs, rows, columns) -> [coefs[b, k] x[b] for k in columns]
inline PyObject* scale_list(PyObject* const* a, Py_ssize_t count, Scaled scaled) {
    expect(count == 4, "scale takes 4 arguments");
    const Reference list(PySequence_Fast(a[3], "columns is not a sequence"));
    std::vector<int64_t> columns(PySequence_Fast_GET_SIZE(list.get()));
    for (size_t k = 0; k < columns.size(); ++k)
        columns[k] = integer(PySequence_Fast_GET_ITEM(list.get(), static_cast<Py_ssize_t>(k)));
    const Reference outs(PyList_New(static_cast<Py_ssize_t>(columns.size())));
    scaled(a[0], a[1], a[2], columns, [&](int64_t k, PyObject* out) { PyList_SET_ITEM(outs.get(), k, out); });
    return Py_NewRef(outs.get());
}

// look_scale(grad, coefs, rows, needed, before): the gradients of an op whose terms all have the full shape, for an
// unchecked grad. Returns a tuple as long as `needed`, with term k at before + k and None for those not needed; or does
// nothing and returns a number.
inline PyObject* look_scale(PyObject* const* a, Py_ssize_t count, Scaled scaled) {
    expect(count == 5 && PyTuple_Check(a[3]), "look_scale takes 5 arguments");
    if (!exchange_api() || !torch_state.watchers) return PyLong_FromLong(kUnusual);
    try {
        if (!plain_tensor(a[0])) return PyLong_FromLong(kUnusual);
        if (!on_our_device(a[0])) return PyLong_FromLong(kElsewhere);
        if (!nothing_at_work() || grad_enabled()) return PyLong_FromLong(kUnusual);
        const Py_ssize_t n = PyTuple_GET_SIZE(a[3]), before = static_cast<Py_ssize_t>(integer(a[4]));
        const Reference result(PyTuple_New(n));
        std::vector<int64_t> columns;
        for (Py_ssize_t k = 0; k < n; ++k) {
            PyTuple_SET_ITEM(result.get(), k, Py_NewRef(Py_None));
            if (k >= before && PyTuple_GET_ITEM(a[3], k) == Py_True) columns.push_back(k - before);
        }
        scaled(a[0], a[1], a[2], columns, [&](int64_t k, PyObject* out) {
            Py_DECREF(Py_None);
            PyTuple_SET_ITEM(result.get(), before + columns[k], out);
        });
        return Py_NewRef(result.get());
    } catch (const std::invalid_argument&) {
    } catch (const PythonError&) {
        clear_error();
    }
    return PyLong_FromLong(kUnusual);
}

// The arguments of block_mask(x, hidden, noise, (height, width), exact), and its results. hidden: int64 [batch], or an
// int for all if exact; a seed of None requests a fresh one. In unchecked arguments, hidden may also be a float, the
// share of the blocks, and the blocks' side may be a single int.
struct MaskArguments {
    const View x;
    const Type type;
    const int64_t batch, block_height, block_width;
    const bool exact;
    const int64_t *hidden, of_all;
    NoiseArguments noise;
    const int64_t of_mask[4];
    const Reference out, mask;

    explicit MaskArguments(PyObject* const* a)
        : x(a[0]), type(x.type()), batch(expect_images(x)), block_height(side(a[3], 0, x.size[2])),
          block_width(side(a[3], 1, x.size[3])), exact(exact_of(a)),
          hidden(one_for_all(a[1]) ? nullptr : integers(a[1], batch, "hidden is not int64 [batch]", x.device)),
          of_all(one_for_all(a[1]) ? hidden_of_all(a[1]) : 0),
          noise(a[2], batch, torch_state.seed_tensor != nullptr, x.device), of_mask{batch, 1, x.size[2], x.size[3]},
          out(new_like(a[0])), mask(new_tensor(a[0], of_mask, 4, nullptr)) {
        noise.draw_seed();
    }
    int64_t elements() const { return x.elements() + View(mask.get()).elements(); }  // of both results
    int64_t down() const { return (x.size[2] + block_height - 1) / block_height; }
    int64_t across() const { return (x.size[3] + block_width - 1) / block_width; }
    PyObject* results() const { return PyTuple_Pack(2, out.get(), mask.get()); }

private:
    static bool one_for_all(PyObject* hidden) { return PyLong_CheckExact(hidden) || PyFloat_CheckExact(hidden); }
    static bool exact_of(PyObject* const* a) {
        expect(a[4] == Py_True || !one_for_all(a[1]), "a threshold is int64 [batch]");
        return a[4] == Py_True;
    }
    // A block's side, at most the image's.
    static int64_t side(PyObject* block, int d, int64_t size) {
        expect(PyLong_Check(block) || (PyTuple_Check(block) && PyTuple_GET_SIZE(block) == 2),
               "a block is neither an int nor a pair of ints");
        const int64_t n = plain_integer(PyLong_Check(block) ? block : field(block, d), 1, INT64_MAX);
        return std::min(n, std::max<int64_t>(size, 1));
    }
    // The number of blocks to hide. A share is rounded as in Python, with ties to even.
    int64_t hidden_of_all(PyObject* hidden) const {
        if (PyLong_CheckExact(hidden)) return plain_integer(hidden, 0, INT64_MAX);
        const double share = PyFloat_AS_DOUBLE(hidden);
        expect(share >= 0 && share <= 1, "the share of hidden blocks is not in 0 .. 1");
        return static_cast<int64_t>(std::nearbyint(share * static_cast<double>(down() * across())));
    }
    static int64_t expect_images(const View& x) {
        expect(x.rank == 4 && x.contiguous(), "x is not contiguous [B, C, H, W]");
        return x.size[0];
    }
};

inline void* data_of(const Reference& tensor) { return tensor.get() == Py_None ? nullptr : View(tensor.get()).data; }

// The functions of an extension by name.
#define MMFAST_METHODS \
    fast<serve<combine_call, 1>>("combine"), fast<look<combine_call, 2>>("look_combine"), \
    fast<serve<step_call, 2>>("step"), fast<look<step_call, 2>>("look_step"), \
    fast<serve<squared_error_call, 2>>("squared_error"), fast<look<squared_error_call, 2>>("look_squared_error"), \
    fast<serve<dots_call, 1>>("dots"), fast<py_scale>("scale"), fast<py_look_scale>("look_scale"), \
    fast<py_random_words>("random_words"), fast<py_block_mask>("block_mask"), \
    fast<py_look_block_mask>("look_block_mask"), \
    fast<py_tell>("tell"), fast<py_watch>("watch"), fast<py_use_exchange_api>("use_exchange_api")

// f(arguments) of block_mask for unchecked arguments; in an unusual case it does nothing and returns a number.
inline PyObject* look_mask(PyObject* const* a, Py_ssize_t count, PyObject* (*f)(PyObject* const*)) {
    expect(count == 5, "block_mask takes 5 arguments");
    if (!exchange_api() || !torch_state.watchers || !plain_tensor(a[0])) return PyLong_FromLong(kUnusual);
    try {
        if (!on_our_device(a[0])) return PyLong_FromLong(kElsewhere);
        if (!nothing_at_work() || (grad_enabled() && requires_grad(a[0]))) return PyLong_FromLong(kUnusual);
        return f(a);
    } catch (const std::invalid_argument&) {
    } catch (const PythonError&) {
        clear_error();
    }
    return PyLong_FromLong(kUnusual);
}

// Releases the interpreter's lock during its lifetime, and takes it back even if something is thrown.
class WithoutLock {
public:
    WithoutLock() : state_(PyEval_SaveThread()) {}
    ~WithoutLock() { PyEval_RestoreThread(state_); }
    WithoutLock(const WithoutLock&) = delete;
    WithoutLock& operator=(const WithoutLock&) = delete;

private:
    PyThreadState* state_;
};

}  // namespace mmfast
