// _mmfast_cpu: the kernels on tensors. mmfast/ops/backends/cpu.py calls it and keeps the tensors alive. It does not use
// torch's headers, so a build is not tied to a torch version.
//
// An op takes a Call (call.h) and returns its results. If some terms must be made contiguous first, it does nothing and
// returns their list. For an unchecked call it may also return a number that says why it did nothing (torch_state.h:
// Seen). If such a call needs a gradient, a third result says that the op is done but still has to be recorded.
#include "serve.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/blocks.h"
#include "cpu/driver.h"
#include "interface.h"

namespace py = pybind11;
using namespace mmfast;

namespace {

// A call's table in the form of the kernels. Checks that each row is in the table and does not start with NaN, which
// marks an invalid row. If `columns` is -1, a row is a single number.
Table table(Call& call, Call::Which which, int64_t columns) {
    const Call::Entries entries = call.table(which, columns);
    if (!entries.data) return {};
    const int64_t count = call.batch() * std::max<int64_t>(call.index_columns, 1);
    if (call.index)
        for (int64_t i = 0; i < count; ++i)
            expect(call.index[i] >= 0 && call.index[i] < entries.rows, "rows holds a number outside the table");
    if (columns > 0 && which != Call::kSigma && (call.row >= 0 || call.index)) {
        for (int64_t i = 0; i < (call.index ? count : 1); ++i) {
            const int64_t at = call.index ? call.index[i] * entries.row_stride : 0;
            const double first = call.type == Type::f64 ? static_cast<const double*>(entries.data)[at]
                                                        : static_cast<const float*>(entries.data)[at];
            expect(first == first, "rows selects an invalid row of the table, which starts with NaN");
        }
    }
    return {entries.data, entries.row_stride, entries.stride};
}

// The plan of a call: its terms laid out, its tables, its noise.
class Planned {
public:
    Plan plan{};
    std::vector<int> misfits;

    Planned(Call& call, int64_t more_columns) : terms_(call.terms()) {
        plan.batch = call.batch(), plan.terms = call.terms(), plan.index = call.index, plan.columns = call.index_columns;
        if (more_columns >= 0) {
            plan.coefs = table(call, Call::kCoefs, call.terms() + more_columns);
            levels_ = call.levels();
            plan.sigma = table(call, Call::kSigma, call.columns_of(levels_));
            for (int64_t& first : levels_) first *= call.channel();  // in elements
            plan.levels = plan.sigma.data ? static_cast<int>(levels_.size()) : 0, plan.level = levels_.data();
            plan.to_x0 = table(call, Call::kToX0, call.terms());
            plan.weight = table(call, Call::kWeight, -1);
        }
        if (call.alike()) {
            plan.rows = 1, plan.inner = call.sample();
            for (int k = 0; k < plan.terms; ++k)
                terms_[k] = {call.address(k), plan.inner, 0, 1, 0, plan.inner};
        } else if (call.elements() > 0) {
            const auto tensors = call.tensors();
            misfits = choose_layout(call.shape, call.rank, tensors.data(), plan.terms, plan, terms_.data());
            expect(!call.looking() || misfits.empty(), "a term is not regular in memory");
        }
        plan.term = terms_.data();
    }
    void noise(NoiseArguments of) {
        of.draw_seed();
        plan.noisy = of.noisy;
        plan.seed = of.key ? of.key[0] : of.seed, plan.draw = of.key ? of.key[1] : of.draw;
        plan.ids = of.ids, plan.stream = of.stream;
    }

private:
    std::vector<Term> terms_;
    std::vector<int64_t> levels_;
};

// Runs f(threads) without the interpreter's lock, except for tiny work, for which releasing and retaking the lock costs
// as much as the work.
constexpr int64_t kWorthUnlocking = 2048;
template <class F>
void unlocked(int64_t elements, F f) {
    if (elements == 0) return;
    if (elements < kWorthUnlocking) return f(1);
    const int threads = thread_count();
    const WithoutLock without;
    f(threads);
}

// combine(call, return_noise) -> (out, noise or None). An unchecked call also has the option whether its last term is
// noise, which must have the full shape.
PyObject* combine_call(Call& call, PyObject* const* options) {
    expect(!call.looking() || !yes(options[1]) || call.last_whole(), "the noise does not have the full shape");
    Planned planned(call, 0);
    const bool returns = yes(options[0]) && call.has_noise(), noisy = call.has(Call::kSigma) && call.has_noise();
    const NoiseArguments identity = call.noise(noisy || returns);
    if (!planned.misfits.empty()) return list_of(planned.misfits);
    if (call.tables_recorded && (call.row >= 0 || call.index || identity.fresh())) return PyLong_FromLong(kUnusual);
    if (call.index_columns && call.seen != kPlain) return PyLong_FromLong(kUnusual);
    const Reference out(call.output()), noise(returns ? call.output() : Py_NewRef(Py_None));
    planned.noise(identity);
    planned.plan.out = data_of(out), planned.plan.noise = data_of(noise);
    unlocked(call.elements(), [&](int threads) { combine(planned.plan, call.type, threads); });
    return call.results(out, noise);
}

// step(call, (low, high, start, channels), return_x0) -> (out, x0 or None)
PyObject* step_call(Call& call, PyObject* const* options) {
    Planned planned(call, 1);
    expect(call.has(Call::kToX0), "a step needs to_x0");
    Plan& plan = planned.plan;
    plan.low = real(field(options[0], 0)), plan.high = real(field(options[0], 1));
    const int64_t start = integer(field(options[0], 2)), channels = integer(field(options[0], 3));
    expect(start < 0 || (call.rank >= 2 && channels >= 0 && start <= call.shape[1] - channels),
           "x0 exceeds the channels");
    plan.x0_begin = start < 0 ? 0 : start * call.channel();
    plan.x0_end = start < 0 ? call.sample() : plan.x0_begin + channels * call.channel();
    const NoiseArguments identity = call.noise(call.has(Call::kSigma));
    if (!planned.misfits.empty()) return list_of(planned.misfits);
    if (call.seen != kPlain) return PyLong_FromLong(kUnusual);  // its gradient is that of two combinations
    const Reference out(call.output()), x0(yes(options[1]) ? call.output(start < 0 ? -1 : channels) : Py_NewRef(Py_None));
    planned.noise(identity);
    plan.out = data_of(out), plan.x0 = data_of(x0);
    unlocked(call.elements(), [&](int threads) { step(plan, call.type, threads); });
    return call.results(out, x0);
}

// loss[b] = scale weight[b] sums[b], in the type of the tables.
template <class Real>
void weigh(const Plan& plan, const double* sums, void* loss) {
    for (int64_t b = 0; b < plan.batch; ++b) {
        const Real weight = static_cast<const Real*>(plan.weight.data)[plan.row(b) * plan.weight.row_stride];
        static_cast<Real*>(loss)[b] = static_cast<Real>(plan.scale) * weight * static_cast<Real>(sums[b]);
    }
}

// squared_error(call, scale, return_grad) -> (loss, grad or None). The terms of an unchecked call must have one shape.
PyObject* squared_error_call(Call& call, PyObject* const* options) {
    expect(!call.looking() || call.all_whole(), "the terms do not have the same shape");
    Planned planned(call, 0);
    Plan& plan = planned.plan;
    expect(call.has(Call::kWeight) && call.terms() > 0, "a squared error needs a weight and a term");
    plan.scale = real(options[0]);
    const NoiseArguments identity = call.noise(call.has(Call::kSigma));
    if (!planned.misfits.empty()) return list_of(planned.misfits);
    const bool recorded = call.seen == kRecorded;
    // float16 has its own gradient: autograd.py.
    if (recorded && (call.others_recorded || call.tables_recorded || call.type == Type::f16)) return PyLong_FromLong(kUnusual);
    const Reference loss(new_tensor(call.coefs(), call.shape, 1, nullptr));
    const Reference grad(recorded || yes(options[1]) ? call.output() : Py_NewRef(Py_None));
    planned.noise(identity);
    plan.out = data_of(grad);
    std::vector<double> sums(plan.batch);
    unlocked(call.elements(), [&](int threads) { squared_error(plan, call.type, threads, sums.data()); });
    if (plan.batch > 0) (call.type == Type::f64 ? weigh<double> : weigh<float>)(plan, sums.data(), data_of(loss));
    return call.results(loss, grad);
}

// dots(call, grad) -> float64 [batch, terms + 1]; the call's tables are not read
PyObject* dots_call(Call& call, PyObject* const* options) {
    Planned planned(call, -1);
    const View grad(options[0]);
    expect(grad.type() == call.type && grad.contiguous() && grad.elements() == call.elements(),
           "grad is not contiguous, or its type or size is not the call's");
    if (!planned.misfits.empty()) return list_of(planned.misfits);
    const int64_t sizes[] = {call.batch(), call.terms() + 1};
    const Reference sums(new_tensor(options[0], sizes, 2, dtype_of(Type::f64)));
    planned.noise(call.noise(true));
    planned.plan.grad = grad.data;
    auto* at = static_cast<double*>(data_of(sums));
    std::fill(at, at + sizes[0] * sizes[1], 0.0);
    unlocked(call.elements(), [&](int threads) { dots(planned.plan, call.type, threads, at); });
    return Py_NewRef(sums.get());
}

template <class Real>
void pick(const View& coefs, const int64_t* index, int64_t row, const std::vector<int64_t>& columns, int64_t batch, Real* to) {
    for (int64_t b = 0; b < batch; ++b) {
        const int64_t at = index ? index[b] : row >= 0 ? row : coefs.size[0] == 1 ? 0 : b;
        expect(at >= 0 && at < coefs.size[0], "rows holds a number outside the table");
        for (const int64_t k : columns) *to++ = static_cast<const Real*>(coefs.data)[at * coefs.stride[0] + k * coefs.stride[1]];
    }
}

// outs[k] = coefs[b, columns[k]] x[b], new tensors, passed to `put` one by one.
void scaled(PyObject* tensor, PyObject* table, PyObject* rows, const std::vector<int64_t>& columns, const Put& put) {
    const View x(tensor), coefs(table);
    const Type type = x.type();
    expect(x.contiguous() && x.rank >= 1 && coefs.rank == 2, "x is not contiguous, or coefs is not [rows, columns]");
    expect(coefs.is(dlpack::kFloat, type == Type::f64 ? 64 : 32), "coefs is not of the type that x is computed in");
    const int64_t batch = x.size[0];
    const int64_t row = PyLong_Check(rows) ? integer(rows) : -1;
    const int64_t* index = row >= 0 ? nullptr : integers(rows, batch, "rows is not an int64 tensor [batch]");
    expect(row >= 0 || index || coefs.size[0] == 1 || coefs.size[0] == batch, "coefs has neither 1 nor batch rows");
    for (const int64_t k : columns) expect(k >= 0 && k < coefs.size[1], "a column is outside the table");
    const auto n = static_cast<int64_t>(columns.size());
    std::vector<double> wide(type == Type::f64 ? batch * n : 0);
    std::vector<float> narrow(type == Type::f64 ? 0 : batch * n);
    if (type == Type::f64) pick(coefs, index, row, columns, batch, wide.data());
    else pick(coefs, index, row, columns, batch, narrow.data());
    std::vector<void*> addresses(n);
    std::vector<Term> terms(n);
    Plan plan{};
    plan.batch = batch, plan.rows = 1, plan.inner = batch ? x.elements() / batch : 0, plan.terms = static_cast<int>(n);
    for (int64_t k = 0; k < n; ++k) {
        PyObject* out = new_like(tensor);
        put(k, out);
        addresses[k] = View(out).data;
        terms[k] = {addresses[k], plan.inner, 0, 1, 0, plan.inner};
    }
    plan.term = terms.data(), plan.grad = x.data, plan.outs = addresses.data();
    plan.coefs = {type == Type::f64 ? static_cast<const void*>(wide.data()) : narrow.data(), n, 1};
    if (x.elements() > 0 && n > 0) {
        const int threads = thread_count();
        const WithoutLock without;
        scale(plan, type, threads);
    }
}

PyObject* py_scale(PyObject* const* a, Py_ssize_t count) { return scale_list(a, count, scaled); }
PyObject* py_look_scale(PyObject* const* a, Py_ssize_t count) { return look_scale(a, count, scaled); }

// row_sums(x) -> float64 [n] of x [n, inner]
PyObject* py_row_sums(PyObject* const* a, Py_ssize_t count) {
    expect(count == 1, "row_sums takes 1 argument");
    const View x(a[0]);
    expect(x.contiguous() && x.rank == 2, "x is not contiguous [n, inner]");
    const Reference sums(new_tensor(a[0], x.size, 1, dtype_of(Type::f64)));
    auto* at = static_cast<double*>(data_of(sums));
    std::fill(at, at + x.size[0], 0.0);
    if (x.elements() > 0) {
        const Type type = x.type();
        const int threads = thread_count();
        const WithoutLock without;
        row_sums(x.data, x.size[0], x.size[1], type, threads, at);
    }
    return Py_NewRef(sums.get());
}

Identities identities_of(const NoiseArguments& noise) {
    return {noise.key ? noise.key[0] : noise.seed, noise.key ? noise.key[1] : noise.draw, noise.ids, noise.stream};
}

// random_words(noise, words) fills and returns words, int64 [batch, count].
PyObject* py_random_words(PyObject* const* a, Py_ssize_t count) {
    expect(count == 2, "random_words takes 2 arguments");
    const View words(a[1]);
    expect(words.is(dlpack::kInt, 64) && words.contiguous() && words.rank == 2, "words is not int64 [batch, count]");
    const Identities identities = identities_of(NoiseArguments(a[0], words.size[0], false, words.device));
    const int threads = thread_count();
    {
        const WithoutLock without;
        random_words(identities, words.size[0], words.size[1], static_cast<int64_t*>(words.data), threads);
    }
    return Py_NewRef(a[1]);
}

uint64_t one_of(Type type) {
    const double one = 1.0;
    uint64_t bits = 0;
    if (type == Type::f64) std::memcpy(&bits, &one, 8);
    else bits = type == Type::f32 ? 0x3F800000u : type == Type::bf16 ? 0x3F80u : 0x3C00u;
    return bits;
}

PyObject* mask_blocks(PyObject* const* a) {
    const MaskArguments given(a);
    for (int64_t b = 0; given.hidden && given.exact && b < given.batch; ++b) expect(given.hidden[b] >= 0, "hidden is negative");
    const int64_t* size = given.x.size;
    const BlockMask m{size[0], size[1], size[2], size[3], given.block_height, given.block_width, size_of(given.type),
                      identities_of(given.noise), given.hidden, given.of_all, given.exact, given.x.data,
                      data_of(given.out), data_of(given.mask), one_of(given.type)};
    unlocked(given.elements(), [&](int threads) { block_mask(m, threads); });
    return given.results();
}
PyObject* py_block_mask(PyObject* const* a, Py_ssize_t) { return mask_blocks(a); }
PyObject* py_look_block_mask(PyObject* const* a, Py_ssize_t count) { return look_mask(a, count, mask_blocks); }

}  // namespace

PYBIND11_MODULE(_mmfast_cpu, m) {
    m.doc() = "mmfast's kernels for the CPU; see mmfast/ops/backends/cpu.py.";
    m.attr("interface") = kInterface;
    static PyMethodDef methods[] = {MMFAST_METHODS, fast<py_row_sums>("row_sums"), {nullptr, nullptr, 0, nullptr}};
    if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
    m.def("isas", &isas);
    m.def("isa", &isa);
    m.def("set_isa", &set_isa);
    m.def("has_openmp", &has_openmp);
    m.def("box_muller", [](uintptr_t a, uintptr_t b, uintptr_t first, uintptr_t second, int64_t n) {
        box_muller(reinterpret_cast<const uint32_t*>(a), reinterpret_cast<const uint32_t*>(b),
                   reinterpret_cast<float*>(first), reinterpret_cast<float*>(second), n);
    });
}
