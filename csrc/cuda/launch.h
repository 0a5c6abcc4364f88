// The host side: turns tensors into a Task, chooses a grid for it, and launches.
#pragma once

#include "driver.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace mmfast::cuda {

inline int element_size(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }
inline int width(Type type) { return element_size(type) == 2 ? 8 : 4; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The smallest power of two that is at least n, capped at `most`.
inline int power_of_two(int64_t n, int most) {
    int p = 1;
    while (p < n && p < most) p *= 2;
    return p;
}

// The cut for kernels without sums, and for kernels with sums, with as many threads as an item has vectors.
inline Cut vector_cut(int64_t batch, int64_t elements) { return {batch, elements, 0, 1}; }
inline Cut item_cut(int64_t batch, int64_t elements, int width) {
    const int lanes = power_of_two(ceil_div(std::min(elements, kItem), width), kThreads);
    return {batch, elements, ceil_div(elements, kItem), lanes};
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Whether every vector of a task, and of the outputs, can be moved whole: see read_term in linear.h. The
// outputs are null, or contiguous [batch, elements].
inline bool whole(const Task& task, Type type, std::initializer_list<const void*> outputs) {
    const int v = width(type);
    const int64_t size = element_size(type);
    bool yes = task.cut.elements % v == 0 && task.inner % v == 0;
    for (const void* p : outputs) yes &= aligned(p);
    for (int l = 1; l < task.levels.count; ++l) yes &= task.levels.first[l] % v == 0;
    for (int k = 0; k < task.terms; ++k) {
        const Operand& x = task.term[k];
        yes &= x.begin % v == 0 && x.end % v == 0;
        if (x.step == 0) continue;
        const bool many_rows = task.inner != task.cut.elements;
        yes &= aligned(x.data) && x.batch_stride * size % 16 == 0 && (!many_rows || x.row_stride * size % 16 == 0);
    }
    return yes;
}

// Fills the task of a call, except for part of its cut; returns the misfits.
inline std::vector<int> make_task(const Job& call, Task& task) {
    if (call.terms.size() > kMaxTerms) throw std::invalid_argument("more than 32 terms");
    if (call.levels.size() > kMaxLevels) throw std::invalid_argument("more than 32 levels");
    Plan plan{};
    std::vector<Term> terms(call.terms.size());
    const auto misfits = choose_layout(call.shape, call.rank, call.terms.data(), static_cast<int>(terms.size()), plan,
                                       terms.data());
    task.inner = plan.inner;
    task.identity = call.identity;
    task.rows = call.rows;
    task.terms = static_cast<int>(terms.size());
    for (size_t k = 0; k < terms.size(); ++k) {
        const Term& t = terms[k];
        const int64_t first_row = t.begin / plan.inner, first_column = t.begin % plan.inner;
        task.term[k] = {t.data,  t.batch_stride, t.row_stride, first_row * t.row_stride + first_column * t.step,
                        t.begin, t.end,          t.step};
    }
    task.cut.batch = call.shape[0];
    task.cut.elements = plan.rows * plan.inner;
    task.levels.count = static_cast<int>(call.levels.size());
    for (size_t l = 1; l < call.levels.size(); ++l)
        task.levels.first[l] = call.levels[l] * (task.cut.elements / call.shape[1]);
    return misfits;
}

#if defined(__CUDACC__)
inline void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}
#endif

// Queues a kernel that wants `wanted` threads, in teams of `lanes`. If a grid cannot hold them, or `limits` does
// not allow them, each thread does more.
template <class... Parameters, class... Arguments>
void launch(Where where, int64_t wanted, int lanes, void (*kernel)(Parameters...), const Arguments&... arguments) {
    const int threads = std::max(limits.threads, lanes);
    const int64_t blocks = std::min(ceil_div(wanted, threads), limits.blocks);
    if (blocks == 0) return;
#if defined(__CUDACC__)
    // The runtime is linked into this module, and has its own current device.
    int current = -1;
    check(cudaGetDevice(&current));
    if (current != where.device) check(cudaSetDevice(where.device));
    kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(where.stream)>>>(arguments...);
    const cudaError_t error = cudaGetLastError();
    if (current != where.device) check(cudaSetDevice(current));  // torch's own runtime keeps its device
    check(error);
#else
    (void)where;
    mmfast_shim::launch(static_cast<unsigned>(blocks), static_cast<unsigned>(threads), kernel, arguments...);
#endif
}

template <class T> struct Tag { using type = T; };

// The threads that a cut wants.
inline int64_t vector_threads(const Cut& cut, int width) { return cut.batch * ceil_div(cut.elements, width); }
inline int64_t item_threads(const Cut& cut) { return cut.batch * cut.items * cut.lanes; }

// Calls f(Tag<T>, whole) with both as types.
template <class F>
void dispatch(Type type, bool whole, F f) {
    const auto with = [&](auto tag) { whole ? f(tag, std::true_type{}) : f(tag, std::false_type{}); };
    switch (type) {
        case Type::f32: return with(Tag<float>{});
        case Type::f64: return with(Tag<double>{});
        case Type::bf16: return with(Tag<bf16>{});
        case Type::f16: return with(Tag<f16>{});
        default: throw std::invalid_argument("no such type");
    }
}

}  // namespace mmfast::cuda
