// mmfast._cpu: the kernels on tensors. mmfast/ops/cpu.py is the only caller; it has checked the tensors and
// keeps them alive. No torch here, so no torch version is built in.
//
// combine, step, squared_error and dots return None, or, having done nothing, the list of the terms that
// must be made contiguous first.
#include "python.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/blocks.h"
#include "cpu/driver.h"

namespace py = pybind11;
using namespace mmfast;

namespace {

void expect(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

int64_t integer(PyObject* value) {
    const int64_t n = PyLong_AsLongLong(value);
    if (n == -1 && PyErr_Occurred()) throw PythonError();
    return n;
}

double real(PyObject* value) {
    const double x = PyFloat_AsDouble(value);
    if (x == -1.0 && PyErr_Occurred()) throw PythonError();
    return x;
}

// An int64 tensor [n] that lies contiguous, or null for None.
const int64_t* integers(PyObject* tensor, int64_t n, const char* what) {
    if (tensor == Py_None) return nullptr;
    const View view(tensor);
    expect(view.is(dlpack::kInt, 64) && view.elements() == n && view.contiguous(), what);
    return static_cast<const int64_t*>(view.data);
}

int64_t size_of(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }

// One call: its output's shape and type, and the plan that the kernels get.
class Call {
public:
    Plan plan{};
    Type type;

    Call(PyObject* like, PyObject* terms, PyObject* starts) : shape_(like) {
        type = shape_.type();
        expect(shape_.contiguous(), "an output is not contiguous");
        expect(shape_.rank >= 1, "an output has no batch dimension");
        plan.batch = shape_.size[0];
        PyObject* fast = PySequence_Fast(terms, "terms is not a sequence");
        if (!fast) throw PythonError();
        PyObject* firsts = PySequence_Fast(starts, "starts is not a sequence");
        if (!firsts) { Py_DECREF(fast); throw PythonError(); }
        try {
            read_terms(fast, firsts);
        } catch (...) {
            Py_DECREF(fast), Py_DECREF(firsts);
            throw;
        }
        Py_DECREF(fast), Py_DECREF(firsts);
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
            if (!misfits.empty()) return py::cast(misfits).release().ptr();
        }
        plan.term = terms_.data();
        Py_BEGIN_ALLOW_THREADS
        f();
        Py_END_ALLOW_THREADS
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
        expect(PySequence_Fast_GET_SIZE(starts) == plan.terms, "starts has not an entry for each term");
        views_ = std::vector<View>(plan.terms);
        starts_.resize(plan.terms);
        terms_.resize(plan.terms);
        for (int k = 0; k < plan.terms; ++k) {
            View& view = views_[k];
            view.read(PySequence_Fast_GET_ITEM(terms, k));
            starts_[k] = integer(PySequence_Fast_GET_ITEM(starts, k));
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

// combine(out, noise, terms, starts, coefs, sigma, rows, key, sample_ids, stream, threads)
PyObject* py_combine(PyObject* const* a, Py_ssize_t count) {
    expect(count == 11, "combine takes 11 arguments");
    Call call(a[0], a[2], a[3]);
    call.rows(a[6]);
    call.plan.coefs = call.table(a[4], call.terms());
    if (a[5] != Py_None) call.plan.sigma = call.table(a[5], -1);
    call.noise(a[7], a[8], a[9]);
    call.plan.out = call.output();
    call.plan.noise = call.output(a[1], call.elements());
    expect(!call.plan.noise || call.plan.noisy, "noise is wanted, but there is no key");
    const int threads = static_cast<int>(integer(a[10]));
    return call.run([&] { combine(call.plan, call.type, threads); });
}

// step(out, x0, terms, starts, to_x0, coefs, sigma, rows, low, high, x0_start, x0_channels, key, sample_ids, stream,
//      threads)
PyObject* py_step(PyObject* const* a, Py_ssize_t count) {
    expect(count == 16, "step takes 16 arguments");
    Call call(a[0], a[2], a[3]);
    call.rows(a[7]);
    call.plan.to_x0 = call.table(a[4], call.terms());
    call.plan.coefs = call.table(a[5], call.terms() + 1);
    if (a[6] != Py_None) call.plan.sigma = call.table(a[6], -1);
    call.plan.low = real(a[8]), call.plan.high = real(a[9]);
    const int64_t start = integer(a[10]), channels = integer(a[11]), whole = call.elements();
    const int64_t sample = whole ? whole / call.plan.batch : 0;
    call.plan.x0_begin = start < 0 ? 0 : start * call.channel_elements();
    call.plan.x0_end = start < 0 ? sample : call.plan.x0_begin + channels * call.channel_elements();
    expect(call.plan.x0_end <= sample, "x0 leaves the channels");
    call.noise(a[12], a[13], a[14]);
    call.plan.out = call.output();
    call.plan.x0 = call.output(a[1], call.plan.batch * (call.plan.x0_end - call.plan.x0_begin));
    const int threads = static_cast<int>(integer(a[15]));
    return call.run([&] { step(call.plan, call.type, threads); });
}

// squared_error(like, grad, terms, starts, coefs, sigma, weight, rows, key, sample_ids, stream, scale, sums, threads):
// `like` gives shape and type; grad may be None; sums: float64 [batch].
PyObject* py_squared_error(PyObject* const* a, Py_ssize_t count) {
    expect(count == 14, "squared_error takes 14 arguments");
    Call call(a[0], a[2], a[3]);
    call.rows(a[7]);
    call.plan.coefs = call.table(a[4], call.terms());
    if (a[5] != Py_None) call.plan.sigma = call.table(a[5], -1);
    call.plan.weight = call.table(a[6], -1);
    call.noise(a[8], a[9], a[10]);
    call.plan.scale = real(a[11]);
    call.plan.out = call.output(a[1], call.elements());
    const View sums(a[12]);
    expect(sums.is(dlpack::kFloat, 64) && sums.contiguous() && sums.elements() == call.plan.batch, "sums does not fit");
    const int threads = static_cast<int>(integer(a[13]));
    return call.run([&] { squared_error(call.plan, call.type, threads, static_cast<double*>(sums.data)); });
}

// dots(grad, terms, starts, key, sample_ids, stream, sums, threads), sums: float64 [batch, terms + 1]
PyObject* py_dots(PyObject* const* a, Py_ssize_t count) {
    expect(count == 8, "dots takes 8 arguments");
    Call call(a[0], a[1], a[2]);
    call.noise(a[3], a[4], a[5]);
    call.plan.grad = call.output();
    const View sums(a[6]);
    expect(sums.is(dlpack::kFloat, 64) && sums.contiguous() && sums.elements() == call.plan.batch * (call.terms() + 1),
           "sums does not fit");
    const int threads = static_cast<int>(integer(a[7]));
    return call.run([&] { dots(call.plan, call.type, threads, static_cast<double*>(sums.data)); });
}

// scale(grad, outs, starts, coefs, threads): outs[k] = coefs[:, k] grad, all contiguous and of grad's shape
PyObject* py_scale(PyObject* const* a, Py_ssize_t count) {
    expect(count == 5, "scale takes 5 arguments");
    Call call(a[0], a[1], a[2]);
    call.plan.coefs = call.table(a[3], call.terms());
    call.plan.grad = call.output();
    const auto outs = call.addresses();
    call.plan.outs = outs.data();
    const int threads = static_cast<int>(integer(a[4]));
    return call.run([&] { scale(call.plan, call.type, threads); });
}

// row_sums(x, sums, threads): x as [sums.numel(), the rest]
PyObject* py_row_sums(PyObject* const* a, Py_ssize_t count) {
    expect(count == 3, "row_sums takes 3 arguments");
    const View x(a[0]), sums(a[1]);
    expect(x.contiguous() && sums.contiguous() && sums.is(dlpack::kFloat, 64), "x or sums does not fit");
    const int64_t rows = sums.elements();
    const int threads = static_cast<int>(integer(a[2]));
    if (x.elements() == 0) Py_RETURN_NONE;
    const Type type = x.type();
    Py_BEGIN_ALLOW_THREADS
    row_sums(x.data, rows, x.elements() / rows, type, threads, static_cast<double*>(sums.data));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

struct Key { int64_t seed, draw; };
Key key_of(PyObject* key) {
    if (PyTuple_Check(key)) return {integer(PyTuple_GetItem(key, 0)), integer(PyTuple_GetItem(key, 1))};
    const int64_t* pair = integers(key, 2, "key is not int64 [2]");
    return {pair[0], pair[1]};
}

// block_ranks(ranks, key, sample_ids, stream, threads), ranks: int64 [batch, blocks]
PyObject* py_block_ranks(PyObject* const* a, Py_ssize_t count) {
    expect(count == 5, "block_ranks takes 5 arguments");
    const View ranks(a[0]);
    expect(ranks.is(dlpack::kInt, 64) && ranks.contiguous() && ranks.rank == 2, "ranks does not fit");
    const Key key = key_of(a[1]);
    const int64_t* ids = integers(a[2], ranks.size[0], "sample_ids is not an int64 tensor [batch]");
    block_ranks(key.seed, key.draw, ids, static_cast<uint32_t>(integer(a[3])), ranks.size[0], ranks.size[1],
                static_cast<int64_t*>(ranks.data), static_cast<int>(integer(a[4])));
    Py_RETURN_NONE;
}

// block_mask(out, mask, x, threshold, key, sample_ids, stream, block_height, block_width, threads)
PyObject* py_block_mask(PyObject* const* a, Py_ssize_t count) {
    expect(count == 10, "block_mask takes 10 arguments");
    const View out(a[0]), mask(a[1]), x(a[2]);
    expect(x.rank == 4 && x.contiguous() && out.contiguous() && mask.contiguous(), "x is not contiguous [B, C, H, W]");
    expect(out.elements() == x.elements() && out.type() == x.type() && mask.type() == x.type(), "out does not fit");
    expect(mask.elements() == x.size[0] * x.size[2] * x.size[3], "mask does not fit");
    const Key key = key_of(a[4]);
    const double one64 = 1.0;
    BlockMask m{x.size[0], x.size[1], x.size[2], x.size[3], integer(a[7]), integer(a[8]), size_of(x.type()),
                key.seed, key.draw, integers(a[5], x.size[0], "sample_ids is not an int64 tensor [batch]"),
                static_cast<uint32_t>(integer(a[6])), integers(a[3], x.size[0], "threshold is not int64 [batch]"),
                x.data, out.data, mask.data, 0};
    expect(m.block_height > 0 && m.block_width > 0, "a block has no extent");
    switch (x.type()) {
        case Type::f64: std::memcpy(&m.one, &one64, 8); break;
        case Type::f32: m.one = 0x3F800000u; break;
        case Type::bf16: m.one = 0x3F80u; break;
        default: m.one = 0x3C00u;
    }
    const int threads = static_cast<int>(integer(a[9]));
    Py_BEGIN_ALLOW_THREADS
    block_mask(m, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

// What `glance` looks at: torch.Tensor and Parameter; torch.is_grad_enabled; functions that return 0 or None unless a compiler,
// tracer, transform or dispatch mode has to see the ops; the module whose _current_level is -1 unless forward-mode
// differentiation is at work. Set once, by watch().
struct {
    PyObject *tensor_type = nullptr, *parameter_type = nullptr, *grad_enabled = nullptr, *watchers = nullptr;
    PyObject *forward_ad = nullptr, *requires_grad = nullptr, *current_level = nullptr, *is_neg = nullptr;
} torch_state;

PyObject* py_watch(PyObject* const* a, Py_ssize_t count) {
    expect(count == 5 && PyTuple_Check(a[3]), "watch takes 5 arguments, the fourth a tuple");
    for (Py_ssize_t i = 0; i < count; ++i) Py_INCREF(a[i]);
    torch_state.tensor_type = a[0], torch_state.parameter_type = a[1], torch_state.grad_enabled = a[2];
    torch_state.watchers = a[3], torch_state.forward_ad = a[4];
    torch_state.is_neg = PyUnicode_InternFromString("is_neg");
    torch_state.current_level = PyUnicode_InternFromString("_current_level");
    torch_state.requires_grad = PyUnicode_InternFromString("requires_grad");
    Py_RETURN_NONE;
}

// Whether calling f() gives something true.
bool holds(PyObject* f) {
    PyObject* result = PyObject_CallNoArgs(f);
    if (!result) throw PythonError();
    const int truth = PyObject_IsTrue(result);
    Py_DECREF(result);
    if (truth < 0) throw PythonError();
    return truth;
}

// False for a tensor that DLPack does not know, on the meta device for one.
bool describe(PyObject* tensor, dlpack::Tensor* out) {
    try {
        if (exchange_api()->from_object(tensor, out) == 0) return true;
    } catch (const std::exception&) {
    }
    PyErr_Clear();
    return false;
}

// What x.name is, or x.name() gives, taken as true or false.
bool attribute(PyObject* x, PyObject* name) {
    PyObject* value = PyObject_GetAttr(x, name);
    if (!value) throw PythonError();
    const bool yes = value == Py_True;
    Py_DECREF(value);
    return yes;
}
bool method_holds(PyObject* x, PyObject* name) {
    PyObject* value = PyObject_CallMethodNoArgs(x, name);
    if (!value) throw PythonError();
    const bool yes = value == Py_True;
    Py_DECREF(value);
    return yes;
}

// glance(tensors): 0 unless these are torch's own tensors of one shape and floating type in the CPU's memory, with no
// compiler, tracer, transform or mode at work; then 1, or 2 where one of them is to be differentiated. One look at
// what takes Python a dozen; on a cold call that is half of it.
PyObject* py_glance(PyObject* const* a, Py_ssize_t count) {
    expect(count == 1 && PyList_Check(a[0]), "glance takes a list");
    const Py_ssize_t n = PyList_GET_SIZE(a[0]);
    if (!exchange_api() || !torch_state.tensor_type || n == 0) return PyLong_FromLong(0);
    for (Py_ssize_t k = 0; k < n; ++k) {
        PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(PyList_GET_ITEM(a[0], k)));
        if (type != torch_state.tensor_type && type != torch_state.parameter_type) return PyLong_FromLong(0);
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch_state.watchers); ++i)
        if (holds(PyTuple_GET_ITEM(torch_state.watchers, i))) return PyLong_FromLong(0);
    PyObject* level = PyObject_GetAttr(torch_state.forward_ad, torch_state.current_level);
    if (!level) throw PythonError();
    const long depth = PyLong_AsLong(level);
    Py_DECREF(level);
    if (depth >= 0) return PyLong_FromLong(0);
    const bool grad = holds(torch_state.grad_enabled);
    bool recorded = false;
    dlpack::Tensor first{};
    for (Py_ssize_t k = 0; k < n; ++k) {
        PyObject* x = PyList_GET_ITEM(a[0], k);
        dlpack::Tensor t;
        if (!describe(x, &t) || method_holds(x, torch_state.is_neg)) return PyLong_FromLong(0);
        recorded |= grad && attribute(x, torch_state.requires_grad);
        const bool floats = (t.dtype.code == dlpack::kFloat && t.dtype.bits >= 16) ||
                            (t.dtype.code == dlpack::kBfloat && t.dtype.bits == 16);
        if (k == 0) first = t;
        bool same = t.ndim == first.ndim && t.dtype.code == first.dtype.code && t.dtype.bits == first.dtype.bits;
        bool empty = false;
        for (int d = 0; same && d < t.ndim; ++d) same = t.shape[d] == first.shape[d], empty |= t.shape[d] == 0;
        if (t.device.type != 1 || !floats || t.ndim == 0 || !same || (!t.data && !empty)) return PyLong_FromLong(0);
    }
    return PyLong_FromLong(recorded ? 2 : 1);
}

template <PyObject* (*f)(PyObject* const*, Py_ssize_t)>
constexpr PyMethodDef fast(const char* name) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&method<f>)), METH_FASTCALL, nullptr};
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "mmfast's kernels for the CPU; see mmfast/ops/cpu.py.";
    static PyMethodDef methods[] = {
        fast<py_combine>("combine"),         fast<py_step>("step"),
        fast<py_dots>("dots"),               fast<py_squared_error>("squared_error"),
        fast<py_row_sums>("row_sums"),       fast<py_scale>("scale"),       fast<py_block_ranks>("block_ranks"),
        fast<py_block_mask>("block_mask"),   fast<py_watch>("watch"),
        fast<py_glance>("glance"),           {nullptr, nullptr, 0, nullptr},
    };
    if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
    m.def("use_exchange_api", [](py::handle capsule) {
        try {
            use_exchange_api(capsule.ptr());
        } catch (const PythonError&) {
            throw py::error_already_set();
        }
        return exchange_api() != nullptr;
    });
    m.def("isas", &isas);
    m.def("isa", &isa);
    m.def("set_isa", &set_isa);
    m.def("has_openmp", &has_openmp);
    m.def("box_muller", [](uintptr_t a, uintptr_t b, uintptr_t first, uintptr_t second, int64_t n) {
        box_muller(reinterpret_cast<const uint32_t*>(a), reinterpret_cast<const uint32_t*>(b),
                   reinterpret_cast<float*>(first), reinterpret_cast<float*>(second), n);
    });
}
