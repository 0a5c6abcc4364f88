// _mmfast_cpu: the kernels on tensors. mmfast/ops/cpu.py and glance.py are the callers and keep
// the tensors alive. No torch here, so no torch version is built in.
//
// combine, step, squared_error and dots return None, or, having done nothing, the list of the terms that
// must be made contiguous first.
#include "express.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/blocks.h"
#include "interface.h"

namespace py = pybind11;
using namespace mmfast;

namespace {

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
    {
        const WithoutLock unlocked;
        row_sums(x.data, rows, x.elements() / rows, type, threads, static_cast<double*>(sums.data));
    }
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
    {
        const WithoutLock unlocked;
        block_mask(m, threads);
    }
    Py_RETURN_NONE;
}

template <PyObject* (*f)(PyObject* const*, Py_ssize_t)>
constexpr PyMethodDef fast(const char* name) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&method<f>)), METH_FASTCALL, nullptr};
}

}  // namespace

PYBIND11_MODULE(_mmfast_cpu, m) {
    m.doc() = "mmfast's kernels for the CPU; see mmfast/ops/cpu.py.";
    m.attr("interface") = kInterface;
    static PyMethodDef methods[] = {
        fast<py_combine>("combine"),         fast<py_step>("step"),
        fast<py_dots>("dots"),               fast<py_squared_error>("squared_error"),
        fast<py_row_sums>("row_sums"),       fast<py_scale>("scale"),       fast<py_block_ranks>("block_ranks"),
        fast<py_block_mask>("block_mask"),   fast<py_watch>("watch"),
        fast<py_glance>("glance"),           fast<py_express>("express"),
                  {nullptr, nullptr, 0, nullptr},
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
