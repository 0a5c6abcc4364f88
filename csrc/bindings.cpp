// mmfast._cpu: the kernels on raw pointers (as integers). mmfast/ops/cpu.py is the only caller; it owns
// the tensors, has checked them and keeps them alive. No torch here, so no torch version is built in.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/driver.h"
#include "cpu/layout.h"

namespace py = pybind11;
using namespace mmfast;

namespace {

template <class T>
T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

// A sequence of integers. By hand, because small tensors are common and pybind11's own conversion took
// longer than the kernel.
std::vector<int64_t> integers(py::handle sequence) {
    const auto fast = py::reinterpret_steal<py::object>(PySequence_Fast(sequence.ptr(), "not a sequence of integers"));
    if (!fast) throw py::error_already_set();
    std::vector<int64_t> values(static_cast<size_t>(PySequence_Fast_GET_SIZE(fast.ptr())));
    PyObject** items = PySequence_Fast_ITEMS(fast.ptr());
    for (size_t i = 0; i < values.size(); ++i) values[i] = PyLong_AsLongLong(items[i]);
    if (PyErr_Occurred()) throw py::error_already_set();
    return values;
}

std::vector<Tensor> tensors(py::handle data, const py::list& sizes, const py::list& strides, py::handle starts) {
    const auto addresses = integers(data), firsts = integers(starts);
    std::vector<Tensor> all(addresses.size());
    for (size_t k = 0; k < all.size(); ++k)
        all[k] = {at<const void>(static_cast<uintptr_t>(addresses[k])), integers(sizes[k]), integers(strides[k]),
                  firsts.at(k)};
    return all;
}

// Both return the terms that must be made contiguous first, having done nothing; or none, being done.
std::vector<int> combine_terms(int type, py::handle out_sizes, py::handle data, const py::list& sizes,
                               const py::list& strides, py::handle starts,
                               uintptr_t coefs, uintptr_t sigma, uintptr_t key, uintptr_t ids, uint32_t stream,
                               uintptr_t out, uintptr_t noise, int threads) {
    Plan plan{};
    std::vector<Term> terms;
    const auto shape = integers(out_sizes);
    const auto misfits = choose_layout(shape, tensors(data, sizes, strides, starts), plan, terms);
    if (!misfits.empty()) return misfits;
    plan.batch = shape.at(0);
    plan.terms = static_cast<int>(terms.size());
    plan.term = terms.data();
    plan.coefs = at<const void>(coefs);
    plan.sigma = at<const void>(sigma);
    plan.key = at<const int64_t>(key);
    plan.ids = at<const int64_t>(ids);
    plan.stream = stream;
    plan.out = at<void>(out);
    plan.noise = at<void>(noise);
    py::gil_scoped_release release;
    combine(plan, static_cast<Type>(type), threads);
    return {};
}

std::vector<int> dot_terms(int type, py::handle out_sizes, py::handle data, const py::list& sizes,
                           const py::list& strides, py::handle starts,
                           uintptr_t grad, uintptr_t key, uintptr_t ids, uint32_t stream, uintptr_t sums, int threads) {
    Plan plan{};
    std::vector<Term> terms;
    const auto shape = integers(out_sizes);
    const auto misfits = choose_layout(shape, tensors(data, sizes, strides, starts), plan, terms);
    if (!misfits.empty()) return misfits;
    plan.batch = shape.at(0);
    plan.terms = static_cast<int>(terms.size());
    plan.term = terms.data();
    plan.grad = at<const void>(grad);
    plan.key = at<const int64_t>(key);
    plan.ids = at<const int64_t>(ids);
    plan.stream = stream;
    py::gil_scoped_release release;
    dots(plan, static_cast<Type>(type), threads, at<double>(sums));
    return {};
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "mmfast's kernels for the CPU. Addresses are integers; see mmfast/ops/cpu.py.";
    m.def("isas", &isas);
    m.def("isa", &isa);
    m.def("set_isa", &set_isa);
    m.def("has_openmp", &has_openmp);
    m.def("combine", &combine_terms);
    m.def("dots", &dot_terms);
    m.def("box_muller", [](uintptr_t a, uintptr_t b, uintptr_t first, uintptr_t second, int64_t n) {
        box_muller(at<const uint32_t>(a), at<const uint32_t>(b), at<float>(first), at<float>(second), n);
    });
    m.def("row_sums", [](int type, uintptr_t x, int64_t rows, int64_t inner, uintptr_t sums, int threads) {
        py::gil_scoped_release release;
        row_sums(at<const void>(x), rows, inner, static_cast<Type>(type), threads, at<double>(sums));
    });
}
