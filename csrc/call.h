// One call of an op from Python: its tensors checked, its plan made, and run without the interpreter's lock.
#pragma once

#include <stdexcept>
#include <vector>

#include "cpu/driver.h"
#include "python.h"

namespace mmfast {

inline void expect(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

inline int64_t integer(PyObject* value) {
    const int64_t n = PyLong_AsLongLong(value);
    if (n == -1 && PyErr_Occurred()) throw PythonError();
    return n;
}

inline double real(PyObject* value) {
    const double x = PyFloat_AsDouble(value);
    if (x == -1.0 && PyErr_Occurred()) throw PythonError();
    return x;
}

// An int64 tensor [n] that lies contiguous, or null for None.
inline const int64_t* integers(PyObject* tensor, int64_t n, const char* what) {
    if (tensor == Py_None) return nullptr;
    const View view(tensor);
    expect(view.is(dlpack::kInt, 64) && view.rank == 1 && view.elements() == n && view.contiguous(), what);
    return static_cast<const int64_t*>(view.data);
}

inline int64_t size_of(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }

// Gives the interpreter's lock away while it lives, whatever is thrown meanwhile.
class WithoutLock {
public:
    WithoutLock() : state_(PyEval_SaveThread()) {}
    ~WithoutLock() { PyEval_RestoreThread(state_); }
    WithoutLock(const WithoutLock&) = delete;
    WithoutLock& operator=(const WithoutLock&) = delete;

private:
    PyThreadState* state_;
};

inline PyObject* list_of(const std::vector<int>& numbers) {
    PyObject* list = PyList_New(static_cast<Py_ssize_t>(numbers.size()));
    if (!list) throw PythonError();
    for (size_t i = 0; i < numbers.size(); ++i)
        PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), PyLong_FromLong(numbers[i]));
    return list;
}

// One call: its output's shape and type, and the plan that the kernels get.
class Call {
public:
    Plan plan{};
    Type type;

    // `starts` may be null: no term is a block.
    Call(PyObject* like, PyObject* terms, PyObject* starts) : shape_(like) {
        type = shape_.type();
        expect(shape_.contiguous(), "an output is not contiguous");
        expect(shape_.rank >= 1, "an output has no batch dimension");
        plan.batch = shape_.size[0];
        const Reference fast(PySequence_Fast(terms, "terms is not a sequence"));
        const Reference firsts(starts ? PySequence_Fast(starts, "starts is not a sequence") : PyTuple_New(0));
        read_terms(fast.get(), starts ? firsts.get() : nullptr);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // rows: None, the number of the one row that serves every sample, or int64 [batch].
    void rows(PyObject* rows) {
        if (PyLong_Check(rows)) row_ = integer(rows);
        else plan.index = integers(rows, plan.batch, "rows is not an int64 tensor [batch]");
    }
    // A table [R, columns], or [R] where columns is -1.
    Table table(PyObject* tensor, int64_t columns) {
        const View view(tensor);
        expect(view.is(dlpack::kFloat, type == Type::f64 ? 64 : 32), "a table is not of the arithmetic's type");
        expect(view.rank == (columns < 0 ? 1 : 2), "a table is not [rows, columns]");
        expect(columns < 0 || view.size[1] == columns, "a table has not a column for each term");
        const int64_t rows = view.size[0];
        Table table{view.data, rows == 1 ? 0 : view.stride[0], columns < 0 ? 0 : view.stride[1]};
        if (plan.batch == 0) return table;
        if (row_ >= 0) {
            expect(row_ < rows, "the row is outside the table");
            table = {static_cast<char*>(view.data) + row_ * view.stride[0] * arithmetic(), 0, table.stride};
        } else if (plan.index) {
            table.row_stride = view.stride[0];
            for (int64_t b = 0; b < plan.batch; ++b)
                expect(plan.index[b] >= 0 && plan.index[b] < rows, "rows holds a number outside the table");
        } else {
            expect(rows == 1 || rows == plan.batch, "a table has neither one row nor one a sample");
        }
        if (columns > 0 && (row_ >= 0 || plan.index)) {  // a row of NaN is one that means nothing
            for (int64_t b = 0; b < (plan.index ? plan.batch : 1); ++b) {
                const int64_t at = (plan.index ? plan.index[b] : 0) * table.row_stride;
                const double first = type == Type::f64 ? static_cast<const double*>(table.data)[at]
                                                       : static_cast<const float*>(table.data)[at];
                expect(first == first, "rows holds a number whose row in the table means nothing");
            }
        }
        return table;
    }
    void noise(PyObject* key, PyObject* ids, PyObject* stream) {
        if (key == Py_None) return;
        plan.noisy = true;
        plan.stream = static_cast<uint32_t>(integer(stream));
        plan.ids = integers(ids, plan.batch, "sample_ids is not an int64 tensor [batch]");
        if (PyTuple_Check(key)) {
            expect(PyTuple_GET_SIZE(key) == 2, "key is not (seed, draw)");
            plan.seed = integer(PyTuple_GET_ITEM(key, 0));
            plan.draw = integer(PyTuple_GET_ITEM(key, 1));
        } else {
            const int64_t* pair = integers(key, 2, "key is not int64 [2]");
            plan.seed = pair[0], plan.draw = pair[1];
        }
    }
    // The address of a contiguous tensor of the call's type and `elements`, or null for None.
    void* output(PyObject* tensor, int64_t elements) const {
        if (tensor == Py_None) return nullptr;
        const View view(tensor);
        expect(view.type() == type && view.contiguous() && view.elements() == elements, "an output does not fit");
        return view.data;
    }
    void* output() const { return shape_.data; }
    int64_t elements() const { return shape_.elements(); }
    int64_t channel_elements() const { return shape_.rank < 2 ? 1 : elements() == 0 ? 0 : elements() / (shape_.size[0] * shape_.size[1]); }
    int terms() const { return plan.terms; }
    bool alike() const { return alike_; }  // every term is contiguous and of the whole shape: no layout is a misfit
    // Where the terms are, all of them of the whole shape and contiguous.
    std::vector<void*> addresses() const {
        expect(alike_, "a tensor is not contiguous, or of another shape");
        std::vector<void*> all;
        for (const View& view : views_) all.push_back(view.data);
        return all;
    }

    // Lays the terms out and runs f without the interpreter's lock.
    template <class F>
    PyObject* run(F f) {
        if (elements() == 0) Py_RETURN_NONE;
        if (alike_) {
            plan.rows = 1, plan.inner = elements() / plan.batch;
            for (Term& term : terms_) term.end = term.batch_stride = plan.inner;
        } else {
            std::vector<Tensor> tensors(terms_.size());
            for (size_t k = 0; k < tensors.size(); ++k)
                tensors[k] = {views_[k].data, views_[k].size, views_[k].stride, starts_[k]};
            const auto misfits = choose_layout(shape_.size, shape_.rank, tensors.data(), plan.terms, plan, terms_.data());
            if (!misfits.empty()) return list_of(misfits);
        }
        plan.term = terms_.data();
        {
            const WithoutLock unlocked;
            f();
        }
        Py_RETURN_NONE;
    }

private:
    View shape_;
    std::vector<View> views_;
    std::vector<int64_t> starts_;
    std::vector<Term> terms_;
    int64_t row_ = -1;
    bool alike_ = true;  // every term is contiguous and of the whole shape

    int64_t arithmetic() const { return type == Type::f64 ? 8 : 4; }
    void read_terms(PyObject* terms, PyObject* starts) {
        plan.terms = static_cast<int>(PySequence_Fast_GET_SIZE(terms));
        expect(!starts || PySequence_Fast_GET_SIZE(starts) == plan.terms, "starts has not an entry for each term");
        views_ = std::vector<View>(plan.terms);
        starts_.resize(plan.terms);
        terms_.resize(plan.terms);
        for (int k = 0; k < plan.terms; ++k) {
            View& view = views_[k];
            view.read(PySequence_Fast_GET_ITEM(terms, k));
            starts_[k] = starts ? integer(PySequence_Fast_GET_ITEM(starts, k)) : -1;
            expect(view.type() == type && view.rank == shape_.rank, "a term has not the output's type and rank");
            for (int d = 0; d < view.rank; ++d) check_size(view, d, starts_[k]);
            alike_ &= starts_[k] < 0 && view.elements() == shape_.elements() && view.contiguous();
            terms_[k] = {view.data, 0, 0, 1, 0, 0};
        }
    }
    void check_size(const View& view, int d, int64_t start) const {
        if (start >= 0 && d == 1) expect(start + view.size[1] <= shape_.size[1], "a block leaves the channels");
        else expect(view.size[d] == 1 || view.size[d] == shape_.size[d], "a term does not broadcast to the output");
    }
};

}  // namespace mmfast
