// The ops' shortest way: one call for what is asked for nearly always, plain float32 tensors of one shape with a
// coefficient table. What Python would do in a dozen functions, each cold in a training loop, is done here.
#pragma once

#include "glance.h"

namespace mmfast {

// An int that fits int64; false for anything else.
inline bool small_integer(PyObject* value, int64_t* out) {
    if (!PyLong_CheckExact(value)) return false;
    int overflow = 0;
    *out = PyLong_AsLongLongAndOverflow(value, &overflow);
    return !overflow;
}

// express(terms, to_x0, coefs, sigma, rows, low, high, seed, draw, sample_ids, stream, second): (out, eps or x0 or None)
// of `combine` (to_x0 None) or `step`; or 0, with nothing done, where anything is not as usual: then the long way
// does it, or says what is wrong; or 2, with nothing done, where all is but for a gradient that is wanted.
inline PyObject* express(PyObject* const* a) {
    PyObject *terms = a[0], *to_x0 = a[1], *coefs = a[2], *sigma = a[3], *rows = a[4], *seed = a[7];
    int64_t seed_value = 0, draw = 0, stream = 0;
    const bool noisy = sigma != Py_None;
    const long seen = PyList_Check(terms) ? glance(terms) : 0;
    if (seen != 1) return PyLong_FromLong(seen);
    if (seed != Py_None && !small_integer(seed, &seed_value)) return PyLong_FromLong(0);
    if (!small_integer(a[8], &draw) || draw < 0 || draw >> 32 != 0) return PyLong_FromLong(0);
    if (!small_integer(a[10], &stream) || stream < 0 || stream >> 16 != 0) return PyLong_FromLong(0);
    PyObject* first = PyList_GET_ITEM(terms, 0);
    {
        const View view(first);
        if (!view.is(dlpack::kFloat, 32) || !view.contiguous() || view.elements() == 0) return PyLong_FromLong(0);
        if (PyLong_Check(rows)) {
            int64_t row;
            if (!small_integer(rows, &row) || row < 0) return PyLong_FromLong(0);
        } else if (reinterpret_cast<PyObject*>(Py_TYPE(rows)) != torch_state.tensor_type) {
            return PyLong_FromLong(0);
        }
    }
    const bool second = a[11] == Py_True, steps = to_x0 != Py_None;
    const Reference out(PyObject_CallOneArg(torch_state.empty_like, first));
    const Reference other(second ? PyObject_CallOneArg(torch_state.empty_like, first) : Py_NewRef(Py_None));
    Call call(out.get(), terms, nullptr);
    if (!call.alike()) return PyLong_FromLong(0);  // before a seed is drawn: from here on nothing is given up
    call.rows(rows);
    call.plan.coefs = call.table(coefs, call.terms() + (steps ? 1 : 0));
    if (noisy) call.plan.sigma = call.table(sigma, -1);
    call.plan.out = call.output();
    if (steps) {
        call.plan.to_x0 = call.table(to_x0, call.terms());
        call.plan.low = real(a[5]), call.plan.high = real(a[6]);
        call.plan.x0_end = call.elements() / call.plan.batch;
        call.plan.x0 = call.output(other.get(), call.elements());
    } else {
        call.plan.noise = call.output(other.get(), call.elements());
    }
    if (noisy) {
        call.plan.noisy = true;
        call.plan.ids = integers(a[9], call.plan.batch, "sample_ids is not an int64 tensor [batch]");
        if (seed == Py_None) {
            const Reference fresh(PyObject_CallNoArgs(torch_state.fresh_seed));
            seed_value = integer(fresh.get());
        }
        call.plan.seed = seed_value, call.plan.draw = draw, call.plan.stream = static_cast<uint32_t>(stream);
    }
    const Reference count(PyObject_CallNoArgs(torch_state.num_threads));
    const int threads = static_cast<int>(integer(count.get()));
    const Reference none(call.run([&] {  // alike terms have no misfits to be named
        steps ? step(call.plan, call.type, threads) : combine(call.plan, call.type, threads);
    }));
    return PyTuple_Pack(2, out.get(), other.get());
}

inline PyObject* py_express(PyObject* const* a, Py_ssize_t count) {
    expect(count == 12, "express takes 12 arguments");
    try {
        return express(a);
    } catch (const std::invalid_argument&) {
    } catch (const PythonError&) {
        if (!PyErr_ExceptionMatches(PyExc_Exception)) throw;  // Ctrl-C, say
        PyErr_Clear();
    }
    return PyLong_FromLong(0);
}

}  // namespace mmfast
