// _mmfast_cuda: the CUDA kernels on tensors. mmfast/ops/backends/cuda.py calls it and keeps the tensors alive. It does
// not use torch's headers, so a build is not tied to a torch version. This file is plain C++, so that nvcc need not
// parse pybind11 for every architecture.
//
// An op is one call: it reads the Call (call.h), allocates its results through torch, and queues its kernels on torch's
// current stream. Nothing here waits for the device, so a CUDA graph can capture it all after a first call, which loads
// the kernels. Results, lists and numbers are as in ../bindings.cpp.
#include "../serve.h"

#include <algorithm>

#include <pybind11/pybind11.h>

#include "../interface.h"
#include "driver.h"

namespace py = pybind11;
using namespace mmfast;
using namespace mmfast::cuda;

namespace {

// The device, and torch's current stream on it.
Where where_of(int device) {
    void* stream = nullptr;
#if MMFAST_DEVICE == 2
    if (exchange_api() && exchange_api()->current_stream) {
        if (exchange_api()->current_stream(kDevice, device, &stream) != 0) throw PythonError();
    } else {
        const Reference on_cuda(PyObject_GetAttrString(torch_state.torch, "cuda"));
        const Reference current(PyObject_CallMethod(on_cuda.get(), "current_stream", "i", device));
        const Reference address(PyObject_GetAttrString(current.get(), "cuda_stream"));
        stream = reinterpret_cast<void*>(integer(address.get()));
    }
#endif
    return {device, stream};
}

Identity identity_of(const NoiseArguments& noise) {
    return {noise.key, noise.seed, noise.draw, noise.ids, noise.stream, noise.noisy};
}

// The job of a call, without its device and stream, which `queue` takes from the first result.
Job job_of(const Call& call, int64_t rows, const NoiseArguments& noise) {
    return {{}, call.type, call.shape, call.rank, call.tensors(), identity_of(noise), {call.index, rows, call.index_columns}, call.levels()};
}

// A table of the call, which must be contiguous for the kernels unless one row serves all. `rows`: the length of the
// previous tables, or -1.
const void* table(Call& call, Call::Which which, int64_t columns, int64_t* rows) {
    const Call::Entries entries = call.table(which, columns);
    if (!call.has(which)) return nullptr;
    expect(columns < 2 || entries.rows == 0 || entries.stride == 1, "a table is not contiguous");
    expect(entries.rows <= 1 || entries.row_stride == std::max<int64_t>(columns, 1), "a table is not contiguous");
    expect(*rows < 0 || *rows == entries.rows, "the tables differ in their rows");
    *rows = entries.rows;
    return entries.data;
}

const void* sigma_of(Call& call, int64_t* rows) {
    return table(call, Call::kSigma, call.columns_of(call.levels()), rows);
}

// Check that the kernels can read an unchecked call in place, before a seed is drawn for it.
void expect_usual(const Call& call) {
    if (!call.looking()) return;
    expect(call.terms() <= kMaxTerms, "more than 32 terms");
    if (call.alike() || call.elements() == 0) return;
    Plan plan{};
    const auto tensors = call.tensors();
    std::vector<Term> terms(tensors.size());
    expect(choose_layout(call.shape, call.rank, tensors.data(), call.terms(), plan, terms.data()).empty(),
           "a term is not regular in memory");
}

// Queue a job whose results are allocated. Returns null, or a list of the terms that cannot be read in place; an
// unchecked call with such terms is declined.
template <class F>
PyObject* queue(const Call& call, Job& job, const Reference& first, F f) {
    std::vector<int> misfits;
    if (call.elements() > 0) {
        job.where = where_of(View(first.get()).device);
        const WithoutLock without;  // a launch may have to wait for room in the stream's queue
        misfits = f();
    }
    expect(!call.looking() || misfits.empty(), "a term is not regular in memory");
    return misfits.empty() ? nullptr : list_of(misfits);
}

// combine(call, return_noise) -> (out, noise or None). An unchecked call also has the option whether its last term is
// noise, which must have the full shape.
PyObject* combine_call(Call& call, PyObject* const* options) {
    expect(!call.looking() || !yes(options[1]) || call.last_whole(), "the noise does not have the full shape");
    int64_t rows = -1;
    Combine to{table(call, Call::kCoefs, call.terms(), &rows), call.terms(), sigma_of(call, &rows), nullptr, nullptr};
    const bool returns = yes(options[0]) && call.has_noise();
    NoiseArguments noise = call.noise(returns || to.sigma);
    if (call.tables_recorded && (call.row >= 0 || call.index || noise.fresh())) return PyLong_FromLong(kUnusual);
    if (call.index_columns && call.seen != kPlain) return PyLong_FromLong(kUnusual);
    if (!noise.noisy) to.sigma = nullptr;
    const Reference out(call.output()), eps(returns ? call.output() : Py_NewRef(Py_None));
    to.out = data_of(out), to.noise = data_of(eps);
    expect_usual(call);
    noise.draw_seed();
    Job job = job_of(call, rows, noise);
    PyObject* misfits = queue(call, job, out, [&] { return combine(job, to); });
    return misfits ? misfits : call.results(out, eps);
}

// step(call, (low, high, start, channels), return_x0) -> (out, x0 or None)
PyObject* step_call(Call& call, PyObject* const* options) {
    expect(call.has(Call::kToX0), "a step needs to_x0");
    int64_t rows = -1;
    Step to{table(call, Call::kToX0, call.terms(), &rows), table(call, Call::kCoefs, call.terms() + 1, &rows),
            sigma_of(call, &rows), real(field(options[0], 0)), real(field(options[0], 1)), 0, 0, nullptr, nullptr};
    const int64_t start = integer(field(options[0], 2)), channels = integer(field(options[0], 3));
    expect(start < 0 || (call.rank >= 2 && channels >= 0 && start <= call.shape[1] - channels),
           "x0 exceeds the channels");
    if (call.seen != kPlain) return PyLong_FromLong(kUnusual);  // its gradient is that of two combinations
    NoiseArguments noise = call.noise(to.sigma);
    if (!noise.noisy) to.sigma = nullptr;
    const Reference out(call.output()), x0(yes(options[1]) ? call.output(start < 0 ? -1 : channels) : Py_NewRef(Py_None));
    to.out = data_of(out), to.x0 = data_of(x0);
    expect_usual(call);
    noise.draw_seed();
    Job job = job_of(call, rows, noise);
    PyObject* misfits = queue(call, job, out, [&] { return step(job, to, start, channels); });
    return misfits ? misfits : call.results(out, x0);
}

// A workspace of part_count doubles per sample, `columns` times.
PyObject* parts_of(PyObject* like, const Call& call, int64_t columns) {
    const int64_t size = std::max<int64_t>(1, call.batch() * part_count(call.sample()) * columns);
    return new_tensor(like, &size, 1, dtype_of(Type::f64));
}

PyObject* zeros(PyObject* like, const int64_t* shape, int rank, PyObject* dtype) {
    const Reference made(new_tensor(like, shape, rank, dtype));
    const Reference same(PyObject_CallMethod(made.get(), "zero_", nullptr));
    return Py_NewRef(same.get());
}

// squared_error(call, scale, return_grad) -> (loss, grad or None). The terms of an unchecked call must have one shape.
PyObject* squared_error_call(Call& call, PyObject* const* options) {
    expect(!call.looking() || call.all_whole(), "the terms do not have the same shape");
    expect(call.has(Call::kWeight) && call.terms() > 0, "a squared error needs a weight and a term");
    int64_t rows = -1;
    SquaredError to{table(call, Call::kCoefs, call.terms(), &rows), sigma_of(call, &rows),
                    table(call, Call::kWeight, -1, &rows), real(options[0]), nullptr, nullptr};
    const bool recorded = call.seen == kRecorded;
    // float16 has its own gradient: autograd.py.
    if (recorded && (call.others_recorded || call.tables_recorded || call.type == Type::f16)) return PyLong_FromLong(kUnusual);
    NoiseArguments noise = call.noise(to.sigma);
    if (!noise.noisy) to.sigma = nullptr;
    const Reference loss((call.elements() > 0 ? new_tensor : zeros)(call.coefs(), call.shape, 1, nullptr));
    const Reference grad(recorded || yes(options[1]) ? call.output() : Py_NewRef(Py_None)), parts(parts_of(call.coefs(), call, 1));
    to.grad = data_of(grad), to.parts = static_cast<double*>(data_of(parts));
    void* sums = data_of(loss);
    expect_usual(call);
    noise.draw_seed();
    Job job = job_of(call, rows, noise);
    PyObject* misfits = queue(call, job, loss, [&] { return squared_error(job, to, sums); });
    return misfits ? misfits : call.results(loss, grad);
}

// dots(call, grad) -> float64 [batch, terms + 1]; the call's tables are not read
PyObject* dots_call(Call& call, PyObject* const* options) {
    const View grad(options[0]);
    expect(grad.type() == call.type && grad.contiguous() && grad.elements() == call.elements(),
           "grad is not contiguous, or its type or size is not the call's");
    const int64_t sizes[] = {call.batch(), call.terms() + 1};
    const Reference sums((call.elements() > 0 ? new_tensor : zeros)(options[0], sizes, 2, dtype_of(Type::f64)));
    const Reference parts(parts_of(options[0], call, call.terms() + 1));
    const Dots to{grad.data, static_cast<double*>(data_of(parts))};
    auto* at = static_cast<double*>(data_of(sums));
    Job job = job_of(call, 1, call.noise(true));
    PyObject* misfits = queue(call, job, sums, [&] { return dots(job, to, at); });
    return misfits ? misfits : Py_NewRef(sums.get());
}

// outs[k] = coefs[b, columns[k]] x[b], new tensors, passed to `put` one by one.
void scaled(PyObject* tensor, PyObject* table, PyObject* rows, const std::vector<int64_t>& columns, const Put& put) {
    const View x(tensor), coefs(table);
    const Type type = x.type();
    expect(x.contiguous() && x.rank >= 1 && coefs.rank == 2 && coefs.contiguous(),
           "x or coefs is not contiguous, or coefs is not [rows, columns]");
    expect(coefs.is(dlpack::kFloat, type == Type::f64 ? 64 : 32), "coefs is not of the type that x is computed in");
    const int64_t row = PyLong_Check(rows) ? integer(rows) : -1, batch = x.size[0];
    const int64_t* index = row >= 0 ? nullptr : integers(rows, batch, "rows is not an int64 tensor [batch]");
    expect(row < coefs.size[0], "the row is outside the table");
    expect(row >= 0 || index || coefs.size[0] == 1 || coefs.size[0] == batch, "coefs has neither 1 nor batch rows");
    const int64_t entry = type == Type::f64 ? 8 : 4, first = row >= 0 ? row * coefs.size[1] : 0;
    const Job job{where_of(x.device), type, x.size, x.rank, {{x.data, x.size, x.stride, -1}}, {}, {index, row >= 0 ? 1 : coefs.size[0]}, {}};
    for (size_t k = 0; k < columns.size(); ++k) {
        expect(columns[k] >= 0 && columns[k] < coefs.size[1], "a column is outside the table");
        PyObject* out = new_like(tensor);
        put(static_cast<int64_t>(k), out);
        const Combine to{static_cast<char*>(coefs.data) + (first + columns[k]) * entry, coefs.size[1], nullptr, View(out).data, nullptr};
        const WithoutLock without;
        if (x.elements() > 0) combine(job, to);
    }
}
PyObject* py_scale(PyObject* const* a, Py_ssize_t count) { return scale_list(a, count, scaled); }
PyObject* py_look_scale(PyObject* const* a, Py_ssize_t count) { return look_scale(a, count, scaled); }

// random_words(noise, words) fills and returns words, int64 [batch, count].
PyObject* py_random_words(PyObject* const* a, Py_ssize_t count) {
    expect(count == 2, "random_words takes 2 arguments");
    const View words(a[1]);
    expect(words.is(dlpack::kInt, 64) && words.contiguous() && words.rank == 2, "words is not int64 [batch, count]");
    const Identity identity = identity_of(NoiseArguments(a[0], words.size[0], false, words.device));
    const Where where = where_of(words.device);
    {
        const WithoutLock without;
        if (words.elements() > 0) random_words(where, identity, words.size[0], words.size[1], static_cast<int64_t*>(words.data));
    }
    return Py_NewRef(a[1]);
}

uint64_t one_of(Type type) {
    if (type == Type::f64) return uint64_t{0x3FF} << 52;
    return type == Type::f32 ? 0x3F800000u : type == Type::bf16 ? 0x3F80u : 0x3C00u;
}

PyObject* mask_blocks(PyObject* const* a) {
    const MaskArguments given(a);
    const int64_t *size = given.x.size, batch = given.batch;
    const int64_t down = given.down(), across = given.across();
    // If exact, the device finds the ranks of the first visible blocks.
    const Reference found(given.exact ? new_tensor(a[0], &batch, 1, PyTuple_GET_ITEM(torch_state.dtypes, 4)) : Py_NewRef(a[1]));
    auto* threshold = static_cast<int64_t*>(data_of(found));
    const Identity identity = identity_of(given.noise);
    const Mask to{given.x.data, threshold, size[1], size[3], given.block_height, given.block_width, across,
                  one_of(given.type), data_of(given.out), data_of(given.mask)};
    const Where where = where_of(given.x.device);
    if (View(given.mask.get()).elements() > 0) {
        const WithoutLock without;
        if (given.exact) first_visible(where, identity, batch, down * across, given.hidden, given.of_all, threshold);
        block_mask(where, identity, given.type, batch, size[2], to);
    }
    return given.results();
}
PyObject* py_block_mask(PyObject* const* a, Py_ssize_t) { return mask_blocks(a); }
PyObject* py_look_block_mask(PyObject* const* a, Py_ssize_t count) { return look_mask(a, count, mask_blocks); }

}  // namespace

PYBIND11_MODULE(_mmfast_cuda, m) {
    m.doc() = "mmfast's CUDA kernels; see mmfast/ops/backends/cuda.py.";
    m.attr("interface") = kInterface;
    m.attr("max_terms") = kMaxTerms;
    static PyMethodDef methods[] = {MMFAST_METHODS, {nullptr, nullptr, 0, nullptr}};
    if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
    // For tests.
    m.def("box_muller", [](uintptr_t a, uintptr_t b, uintptr_t first, uintptr_t second, int64_t n) {
        box_muller(where_of(0), reinterpret_cast<uint32_t*>(a), reinterpret_cast<uint32_t*>(b),
                   reinterpret_cast<float*>(first), reinterpret_cast<float*>(second), n);
    });
    m.def("set_limits", [](int threads, int64_t blocks) {
        const bool power_of_two = threads > 0 && (threads & (threads - 1)) == 0;
        if (!power_of_two || threads > kThreads || blocks < 1 || blocks > Limits{}.blocks)
            throw std::invalid_argument("threads should be a power of two up to 256, blocks from 1 to 2^31 - 1");
        limits = {threads, blocks};
    });
}
