// _mmfast_cuda: the CUDA kernels on raw device pointers (as integers). mmfast/ops/cuda.py is the only
// caller; it owns the tensors, has checked them and keeps them alive. No torch here. This file is plain
// C++, so that nvcc need not read pybind11 once for every architecture.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../interface.h"
#include "driver.h"

namespace py = pybind11;
using namespace mmfast;
using namespace mmfast::cuda;

namespace {

// A launch may have to wait for room in the stream's queue.
using Release = py::call_guard<py::gil_scoped_release>;

using Address = uintptr_t;
template <class T>
T* at(Address address) { return reinterpret_cast<T*>(address); }

// As cuda.py passes them: (device, stream), (address, seed, draw, ids, stream, noisy), (rows, count) and
// (addresses, sizes, strides, starts).
using PlaceTuple = std::tuple<int, Address>;
using IdentityTuple = std::tuple<Address, int64_t, int64_t, Address, uint32_t, bool>;
using RowsTuple = std::tuple<Address, int64_t>;
using Sizes = std::vector<std::vector<int64_t>>;
using TermsTuple = std::tuple<std::vector<Address>, Sizes, Sizes, std::vector<int64_t>>;

Where where_of(const PlaceTuple& t) { return {std::get<0>(t), at<void>(std::get<1>(t))}; }
Identity identity_of(const IdentityTuple& t) {
    const auto [key, seed, draw, ids, stream, noisy] = t;
    return {at<const int64_t>(key), seed, draw, at<const int64_t>(ids), stream, noisy};
}

Call call_of(const PlaceTuple& place, int type, const std::vector<int64_t>& shape, const TermsTuple& terms,
             const IdentityTuple& identity, const RowsTuple& rows) {
    const auto& [addresses, sizes, strides, starts] = terms;
    Call call{where_of(place), static_cast<Type>(type), shape, {}, identity_of(identity),
              {at<const int64_t>(std::get<0>(rows)), std::get<1>(rows)}};
    for (size_t k = 0; k < addresses.size(); ++k)
        call.terms.push_back({at<const void>(addresses[k]), sizes.at(k), strides.at(k), starts.at(k)});
    return call;
}

}  // namespace

PYBIND11_MODULE(_mmfast_cuda, m) {
    m.doc() = "mmfast's CUDA kernels. Addresses are integers; see mmfast/ops/cuda.py.";
    m.attr("interface") = kInterface;
    m.attr("max_terms") = kMaxTerms;
    m.def("part_count", &part_count);
    m.def("combine", [](const PlaceTuple& place, int type, const std::vector<int64_t>& shape, const TermsTuple& terms,
                        const IdentityTuple& identity, const RowsTuple& rows, Address coefs, Address sigma, Address out,
                        Address noise) {
        return combine(call_of(place, type, shape, terms, identity, rows),
                       {at<void>(coefs), at<void>(sigma), at<void>(out), at<void>(noise)});
    }, Release());
    m.def("step", [](const PlaceTuple& place, int type, const std::vector<int64_t>& shape, const TermsTuple& terms,
                     const IdentityTuple& identity, const RowsTuple& rows, Address to_x0, Address coefs, Address sigma,
                     double low, double high, int64_t x0_start, int64_t x0_channels, Address out, Address x0) {
        const Step to{at<void>(to_x0), at<void>(coefs), at<void>(sigma), low, high, 0, 0, at<void>(out), at<void>(x0)};
        return step(call_of(place, type, shape, terms, identity, rows), to, x0_start, x0_channels);
    }, Release());
    m.def("squared_error", [](const PlaceTuple& place, int type, const std::vector<int64_t>& shape,
                              const TermsTuple& terms, const IdentityTuple& identity, const RowsTuple& rows,
                              Address coefs, Address sigma, Address weight, double scale, Address parts, Address loss,
                              Address grad) {
        return squared_error(call_of(place, type, shape, terms, identity, rows),
                             {at<void>(coefs), at<void>(sigma), at<void>(weight), scale, at<double>(parts),
                              at<void>(grad)}, at<void>(loss));
    }, Release());
    m.def("dots", [](const PlaceTuple& place, int type, const std::vector<int64_t>& shape, const TermsTuple& terms,
                     const IdentityTuple& identity, Address grad, Address parts, Address sums) {
        return dots(call_of(place, type, shape, terms, identity, {}), {at<void>(grad), at<double>(parts)},
                    at<double>(sums));
    }, Release());
    m.def("block_ranks", [](const PlaceTuple& place, const IdentityTuple& identity, int64_t batch, int64_t blocks,
                            Address out) {
        block_ranks(where_of(place), identity_of(identity), batch, blocks, at<int64_t>(out));
    }, Release());
    m.def("block_mask", [](const PlaceTuple& place, int type, const IdentityTuple& identity,
                           const std::vector<int64_t>& shape, int64_t block_height, int64_t block_width, uint64_t one,
                           Address x, Address threshold, Address out, Address mask) {
        const Mask to{at<void>(x), at<const int64_t>(threshold), shape.at(1), shape.at(3), block_height, block_width,
                      (shape[3] + block_width - 1) / block_width, one, at<void>(out), at<void>(mask)};
        block_mask(where_of(place), identity_of(identity), static_cast<Type>(type), shape[0], shape[2], to);
    }, Release());
    // For tests.
    m.def("box_muller", [](const PlaceTuple& place, Address a, Address b, Address first, Address second, int64_t n) {
        box_muller(where_of(place), at<uint32_t>(a), at<uint32_t>(b), at<float>(first), at<float>(second), n);
    });
    m.def("set_limits", [](int threads, int64_t blocks) {
        const bool power_of_two = threads > 0 && (threads & (threads - 1)) == 0;
        if (!power_of_two || threads > kThreads || blocks < 1 || blocks > Limits{}.blocks)
            throw std::invalid_argument("threads should be a power of two up to 256, blocks from 1 to 2^31 - 1");
        limits = {threads, blocks};
    });
}
