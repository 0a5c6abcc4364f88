// Reads a call of an op: its terms, tables, rows and noise, without torch's headers. Both extensions use this.
//
// The call is either a `Call` (mmfast/ops/call.py), which has been checked and includes its shape and type, or only its
// first four fields, unchecked. Those are inspected here. In an unusual case `seen` is not kPlain, or
// std::invalid_argument is thrown, and look() declines the call.
#pragma once

#include <algorithm>
#include <vector>

#include "torch_state.h"

namespace mmfast {

// The data of a contiguous int64 tensor of n numbers, on device number `device` unless that is -1; null only for None.
inline const int64_t* integers(PyObject* tensor, int64_t n, const char* what, int device = -1, int rank = 1) {
    if (tensor == Py_None) return nullptr;
    const View view(tensor);
    expect(device < 0 || view.device == device, "a tensor is on another device");
    expect(view.is(dlpack::kInt, 64) && view.rank == rank && view.elements() == n && view.contiguous(), what);
    static const int64_t nothing = 0;  // an empty tensor may have no memory
    return n == 0 ? &nothing : static_cast<const int64_t*>(view.data);
}

inline int64_t size_of(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }

inline PyObject* list_of(const std::vector<int>& numbers) {
    PyObject* list = PyList_New(static_cast<Py_ssize_t>(numbers.size()));
    if (!list) throw PythonError();
    for (size_t i = 0; i < numbers.size(); ++i)
        PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), PyLong_FromLong(numbers[i]));
    return list;
}

inline PyObject* field(PyObject* tuple, Py_ssize_t i) {
    expect(PyTuple_Check(tuple) && i < PyTuple_GET_SIZE(tuple), "a call lacks a field of mmfast.ops.call");
    return PyTuple_GET_ITEM(tuple, i);
}

// An int that fits int64. Objects that only behave like an int are rejected.
inline int64_t plain_integer(PyObject* value, int64_t least, int64_t most) {
    expect(PyLong_CheckExact(value), "expected an int");
    int overflow = 0;
    const int64_t n = PyLong_AsLongLongAndOverflow(value, &overflow);
    expect(!overflow && n >= least && n <= most, "an int is out of range");
    return n;
}

// The noise's identity: Noise in mmfast/ops/call.py. The key may be a tensor, which is not read here.
struct NoiseArguments {
    bool noisy = false;
    int64_t seed = 0, draw = 0;
    const int64_t* key = nullptr;  // [2], on the device
    const int64_t* ids = nullptr;  // [batch]
    uint32_t stream = 0;

    NoiseArguments() = default;
    // looking: the noise is unchecked, and a seed of None requests a fresh one.
    NoiseArguments(PyObject* noise, int64_t batch, bool looking, int device = -1) {
        if (noise == Py_None) return;
        noisy = true;
        PyObject* pair = field(noise, 0);
        stream = static_cast<uint32_t>(plain_integer(field(noise, 2), 0, 0xFFFF));
        ids = integers(field(noise, 1), batch, "sample_ids is not an int64 tensor [batch]", device);
        if (!PyTuple_Check(pair)) {
            key = integers(pair, 2, "key is not int64 [2]", device);
            return;
        }
        PyObject* first = field(pair, 0);
        draw = plain_integer(field(pair, 1), looking ? 0 : INT64_MIN, looking ? 0xFFFFFFFF : INT64_MAX);
        fresh_ = looking && first == Py_None;
        if (!fresh_) seed = plain_integer(first, INT64_MIN, INT64_MAX);
    }
    bool fresh() const { return fresh_; }
    // Draw the fresh seed, if requested. After this the call must not be declined.
    void draw_seed() {
        if (fresh_) seed = fresh_seed();
    }

private:
    bool fresh_ = false;
};

class Call {
public:
    Seen seen = kPlain;
    bool others_recorded = false, tables_recorded = false;  // a term except the first needs a gradient; a table does
    Type type = Type::f32;
    int rank = 0, device = -1;  // -1: there are no terms
    int64_t shape[kMaxRank] = {};

    // A complete call of six fields.
    explicit Call(PyObject* call)
        : terms_(field(call, 0)), tables_(field(call, 1)), rows_(field(call, 2)), noise_(field(call, 3)), looking_(false) {
        read_shape(field(call, 4), field(call, 5));
        read_terms();
        read_rows();
    }
    // The first four fields of an unchecked call.
    explicit Call(PyObject* const* parts)
        : terms_(parts[0]), tables_(parts[1]), rows_(parts[2]), noise_(parts[3]), looking_(true),
          kept_(reinterpret_cast<PyObject*>(Py_TYPE(tables_)) == torch_state.kept_tables_type) {
        if (!look_first()) return;
        read_terms();
        expect(PyLong_CheckExact(rows_) || rows_ == Py_None || ordinary(rows_), "rows is not a tensor, int or None");
        read_rows();
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    int64_t row = -1;                // the row for all samples, or -1
    const int64_t* index = nullptr;  // [batch] rows of the tables, or null; with index_columns [batch, index_columns]
    int64_t index_columns = 0;       // not 0 if each term has its own rows, shared with its level of the noise

    bool looking() const { return looking_; }
    int terms() const { return static_cast<int>(views_.size()); }
    int64_t batch() const { return shape[0]; }
    int64_t elements() const {
        int64_t n = 1;
        for (int d = 0; d < rank; ++d) n *= shape[d];
        return n;
    }
    int64_t sample() const { return batch() == 0 ? 0 : elements() / batch(); }
    int64_t channel() const {
        int64_t n = 1;
        for (int d = 2; d < rank; ++d) n *= shape[d];
        return n;
    }
    bool alike() const { return alike_; }            // every term is contiguous and has the full shape
    bool all_whole() const { return all_whole_; }    // every term has the full shape, with any strides
    bool last_whole() const { return last_whole_; }  // the last term has the full shape

    // A table of the call as the samples use it: [R, columns], or [R] if columns is -1. Its data is null for None.
    enum Which { kCoefs, kSigma, kToX0, kWeight };
    struct Entries {
        const void* data = nullptr;
        int64_t rows = 0, row_stride = 0, stride = 0;  // in elements; if one row serves all, `data` points to it
    };
    Entries table(Which which, int64_t columns) {
        PyObject* tensor = field(tables_, which);
        if (tensor == Py_None) {
            expect(which != kCoefs, "a call needs coefs");
            return {};
        }
        if (looking_ && !kept_) tables_recorded |= look_at(tensor);
        const View view(tensor);
        expect(view.is(dlpack::kFloat, type == Type::f64 ? 64 : 32), "a table is not of the type computed in");
        expect(device < 0 || view.device == device, "a table is on another device");
        expect(view.rank == (columns < 0 ? 1 : 2), "a table has the wrong number of dimensions");
        expect(columns < 0 || view.size[1] == columns, "a table has the wrong number of columns");
        const int64_t rows = view.size[0], stride = columns < 0 ? 0 : view.stride[1];
        if (row >= 0 || index) {
            expect(!looking_ || table_rows_ < 0 || table_rows_ == rows, "the tables differ in their rows");
            expect(!index_columns || which == kCoefs || which == kSigma, "this op takes one row per sample");
            table_rows_ = rows;
        }
        if (row >= 0) {
            expect(row < rows, "the row is outside the table");
            return {static_cast<char*>(view.data) + row * view.stride[0] * arithmetic_size(), 1, 0, stride};
        }
        expect(index || rows == 1 || rows == batch(), "a table has neither one row nor one row per sample");
        return {view.data, rows, rows == 1 && !index ? 0 : view.stride[0], stride};
    }
    // The first channels of the noise's levels. sigma has a column for each, or is [R] if there are none.
    std::vector<int64_t> levels() const {
        if (noise_ == Py_None) return {};
        PyObject* tuple = field(noise_, 3);
        expect(PyTuple_Check(tuple) && PyTuple_GET_SIZE(tuple) <= kMaxLevels, "levels is not a tuple of up to 32 ints");
        std::vector<int64_t> first(PyTuple_GET_SIZE(tuple));
        const int64_t channels = rank > 1 ? shape[1] : 1;
        for (size_t l = 0; l < first.size(); ++l)
            first[l] = plain_integer(PyTuple_GET_ITEM(tuple, static_cast<Py_ssize_t>(l)), l ? first[l - 1] + 1 : 0,
                                     l ? channels - 1 : 0);
        return first;
    }
    // The number of columns of sigma, for `table`.
    int64_t columns_of(const std::vector<int64_t>& levels) const {
        const auto count = static_cast<int64_t>(levels.size());
        expect(!index_columns || !has_noise() || levels == starts_, "the levels are not the terms' blocks");
        return levels.empty() || index_columns ? -1 : count;
    }
    PyObject* coefs() const { return field(tables_, kCoefs); }
    bool has(Which which) const { return field(tables_, which) != Py_None; }
    int64_t arithmetic_size() const { return type == Type::f64 ? 8 : 4; }

    // The identity of the noise, if `wanted` and if the call has one.
    NoiseArguments noise(bool wanted) const {
        return wanted ? NoiseArguments(noise_, batch(), looking_, device) : NoiseArguments();
    }
    bool has_noise() const { return noise_ != Py_None; }

    // A new tensor of the call's type and shape, or with another number of channels.
    PyObject* output(int64_t channels = -1) const {
        if (like_ && channels < 0) return new_like(like_);
        int64_t sizes[kMaxRank];
        for (int d = 0; d < rank; ++d) sizes[d] = shape[d];
        if (channels >= 0) sizes[1] = channels;
        return new_tensor(coefs(), sizes, rank, type == Type::f32 || type == Type::f64 ? nullptr : dtype_of(type));
    }

    // The two results of an op; the second may be None. If the op still has to be recorded, there is a third: whether
    // the gradients are mere products, because all terms have the full shape and no table needs a gradient.
    PyObject* results(const Reference& first, const Reference& second) const {
        return seen == kRecorded ? PyTuple_Pack(3, first.get(), second.get(), alike_ && !tables_recorded ? Py_True : Py_False)
                                 : PyTuple_Pack(2, first.get(), second.get());
    }

    // The terms in the form of layout.h.
    std::vector<Tensor> tensors() const {
        std::vector<Tensor> all(views_.size());
        for (size_t k = 0; k < all.size(); ++k)
            all[k] = {views_[k].data, views_[k].size, views_[k].stride, starts_[k]};
        return all;
    }
    const void* address(int k) const { return views_[k].data; }

private:
    PyObject *terms_, *tables_, *rows_, *noise_;
    // Our own reference to the terms. A member, so that it is released even if a constructor throws.
    struct Owned {
        PyObject* terms = nullptr;
        ~Owned() { Py_XDECREF(terms); }
    } owned_;
    PyObject* like_ = nullptr;  // the first term, if outputs can be allocated like it
    bool looking_, kept_ = false, alike_ = true, all_whole_ = true, last_whole_ = false, grad_ = false;
    int64_t table_rows_ = -1;  // of the tables read so far, if rows are given
    std::vector<View> views_;
    std::vector<int64_t> starts_;

    static bool is_block(PyObject* term) { return reinterpret_cast<PyObject*>(Py_TYPE(term)) == torch_state.block_type; }
    static PyObject* tensor_of(PyObject* term) { return is_block(term) ? field(term, 0) : term; }
    Py_ssize_t count() const { return PySequence_Fast_GET_SIZE(terms_); }
    PyObject* term(Py_ssize_t k) const { return PySequence_Fast_GET_ITEM(terms_, k); }

    // Whether the extension can handle the call: a list or tuple, the first term a plain tensor of its device, and
    // nothing around the call that has to see it.
    bool look_first() {
        const auto end_as = [&](Seen found) { return seen = found, false; };
        if (!exchange_api() || !torch_state.watchers) return end_as(kUnusual);
        if (!(PyList_CheckExact(terms_) || PyTuple_CheckExact(terms_))) return end_as(kUnusual);
        terms_ = owned_.terms = PySequence_Tuple(terms_);  // the caller's list may change while the kernel runs
        if (!terms_) throw PythonError();
        if (count() == 0) return end_as(kUnusual);
        PyObject* first = tensor_of(term(0));
        if (!ordinary(first)) return end_as(kUnusual);
        if (!on_our_device(first)) return end_as(kElsewhere);
        if (!nothing_at_work()) return end_as(kUnusual);
        grad_ = grad_enabled();
        return true;
    }
    // Whether a plain tensor needs a gradient.
    bool look_at(PyObject* x) {
        expect(plain_tensor(x), "a tensor is of a subclass, or has a pending negation");
        if (!grad_ || !requires_grad(x)) return false;
        seen = kRecorded;
        return true;
    }
    void read_shape(PyObject* sizes, PyObject* dtype) {
        const Reference fast(PySequence_Fast(sizes, "shape is not a sequence"));
        rank = static_cast<int>(PySequence_Fast_GET_SIZE(fast.get()));
        expect(rank >= 1 && rank <= kMaxRank, "a shape should have from 1 to 16 sizes");
        for (int d = 0; d < rank; ++d) {
            shape[d] = integer(PySequence_Fast_GET_ITEM(fast.get(), d));
            expect(shape[d] >= 0, "a size is negative");
        }
        int found = 0;
        while (found < 4 && PyTuple_GET_ITEM(torch_state.dtypes, found) != dtype) ++found;
        expect(found < 4, "dtype is not float32, float64, bfloat16 or float16");
        type = static_cast<Type>(found);
    }
    void read_terms() {
        expect(PyList_Check(terms_) || PyTuple_Check(terms_), "terms is not a list or a tuple");
        const Py_ssize_t n = count();
        views_ = std::vector<View>(n);
        starts_.assign(n, -1);
        for (Py_ssize_t k = 0; k < n; ++k) {
            PyObject *block = term(k), *tensor = tensor_of(block);
            if (looking_ && look_at(tensor)) others_recorded |= k > 0;
            View& view = views_[k];
            view.read(tensor);
            int64_t channels = -1;
            if (is_block(block)) {
                starts_[k] = plain_integer(field(block, 1), 0, INT64_MAX);
                channels = plain_integer(field(block, 2), 0, INT64_MAX);
                expect(view.rank >= 2 && starts_[k] <= channels - view.size[1], "a block is outside the channels");
            }
            if (k == 0 && looking_) {
                type = view.type(), rank = view.rank;
                expect(rank >= 1, "a term is zero-dimensional");
                for (int d = 0; d < rank; ++d) shape[d] = d == 1 && channels >= 0 ? channels : view.size[d];
            }
            if (k == 0) device = view.device;
            expect(view.type() == type && view.rank == rank, "a term does not have the call's type and rank");
            expect(view.device == device, "a term is on another device");
            expect(channels < 0 || channels == shape[1], "a block has another number of channels than the call");
            bool whole = channels < 0;
            for (int d = 0; d < rank; ++d) {
                if (view.size[d] == shape[d] || (d == 1 && channels >= 0)) continue;
                expect(view.size[d] == 1, "a term does not broadcast to the shape");
                whole = false;
            }
            last_whole_ = whole, all_whole_ &= whole;
            whole = whole && view.contiguous();
            if (k == 0 && whole) like_ = tensor;
            alike_ &= whole;
        }
    }
    void read_rows() {
        if (PyLong_Check(rows_)) {
            row = integer(rows_);
            expect(row >= 0, "the row is outside the table");
            return;
        }
        if (looking_ && rows_ != Py_None) {
            const View view(rows_);
            if (view.rank == 2) {
                expect(view.size[0] == batch() && view.size[1] == terms(), "rows is not [batch, terms]");
                index_columns = view.size[1];
                int64_t at = 0;  // each term is a level of the noise: they must be adjacent and cover the channels
                for (int k = 0; k < terms(); at += views_[k++].size[1])
                    expect(starts_[k] == at && views_[k].size[1] > 0, "the blocks are not adjacent");
                expect(at == shape[1], "the blocks do not cover the channels");
            }
        }
        const int64_t count = batch() * std::max<int64_t>(index_columns, 1);
        index = integers(rows_, count, "rows is not an int64 tensor [batch]", device, index_columns ? 2 : 1);
    }
};

}  // namespace mmfast
