#include "elementwise.h"
#include "launch.h"

namespace mmfast::cuda {

std::vector<int> combine(const Job& call, const Combine& to) {
    Task task{};
    auto misfits = make_task(call, task);
    if (!misfits.empty()) return misfits;
    const int64_t threads = vector_threads(task.cut, width(call.type));
    dispatch(call.type, whole(task, call.type, {to.out, to.noise}), [&](auto tag, auto vectors) {
        using T = typename decltype(tag)::type;
        constexpr bool kWhole = decltype(vectors)::value;
        launch(call.where, threads, 1, task.rows.columns ? combine<T, kWhole, true> : combine<T, kWhole, false>, task, to);
    });
    return {};
}

std::vector<int> step(const Job& call, Step to, int64_t x0_start, int64_t x0_channels) {
    Task task{};
    auto misfits = make_task(call, task);
    if (!misfits.empty()) return misfits;
    to.x0_begin = 0, to.x0_end = task.cut.elements;
    if (x0_start >= 0) {
        const int64_t per_channel = task.cut.elements / call.shape[1];
        to.x0_begin = x0_start * per_channel, to.x0_end = to.x0_begin + x0_channels * per_channel;
    }
    const int v = width(call.type);
    const bool vectors = whole(task, call.type, {to.out, to.x0}) && to.x0_begin % v == 0 && to.x0_end % v == 0;
    dispatch(call.type, vectors, [&](auto tag, auto vectors) {
        launch(call.where, vector_threads(task.cut, v), 1, step<typename decltype(tag)::type, decltype(vectors)::value>, task, to);
    });
    return {};
}

namespace {
__global__ void box_muller_kernel(const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x)
        normal_pair<Scalar>(a[i], b[i], first[i], second[i]);
}
}  // namespace

void box_muller(Where where, const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n) {
    launch(where, n, 1, box_muller_kernel, a, b, first, second, n);
}

}  // namespace mmfast::cuda
