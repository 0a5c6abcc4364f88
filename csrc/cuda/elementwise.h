// combine and step: a linear combination and noise, stored; and two of them around a clamp.
#pragma once

#include "linear.h"

namespace mmfast::cuda {

template <class T, bool Whole>
__global__ void __launch_bounds__(kThreads, resident<T, Whole>(4)) combine(const __grid_constant__ Task task, const Combine to) {
    using Real = RealOf<T>;
    for_vectors<T>(task.cut, [&](int64_t b, int64_t e, int n) {
        const Place at = place(task, b, e, n);
        const int64_t row = row_of(task.rows, b);
        const Real* const coefs[] = {static_cast<const Real*>(to.coefs) + row * to.columns};
        Real sum[1][kWidth<T>] = {};
        add_terms<T, Whole>(task, at, coefs, sum);
        if (task.identity.noisy) add_noise<T, Whole>(task, at, to.sigma, row, static_cast<T*>(to.noise), sum[0]);
        write<T, Whole>(static_cast<T*>(to.out) + (b * task.cut.elements + e), pack_of<T>(sum[0]), n);
    });
}

// x0 = clamp(sum of to_x0 * term); out = sum of coefs * term + coefs[terms] * x0 + sigma * noise.
template <class T, bool Whole>
__global__ void __launch_bounds__(kThreads, resident<T, Whole>(3)) step(const __grid_constant__ Task task, const Step to) {
    using Real = RealOf<T>;
    constexpr int kV = kWidth<T>;
    const Real low = static_cast<Real>(to.low), high = static_cast<Real>(to.high);
    for_vectors<T>(task.cut, [&](int64_t b, int64_t e, int n) {
        const Place at = place(task, b, e, n);
        const int64_t row = row_of(task.rows, b);
        const Real* const coefs[] = {static_cast<const Real*>(to.to_x0) + row * task.terms,
                                     static_cast<const Real*>(to.coefs) + row * (task.terms + 1)};
        Real sum[2][kV] = {};
        add_terms<T, Whole>(task, at, coefs, sum);
        auto& x0 = sum[0];
        auto& out = sum[1];
        const Real last = read_one(coefs[1] + task.terms);
        const int64_t first = e - to.x0_begin, x0_elements = to.x0_end - to.x0_begin;  // this vector within x0
#pragma unroll
        for (int i = 0; i < kV; ++i) {
            x0[i] = x0[i] < low ? low : x0[i];  // NaN stays NaN
            x0[i] = x0[i] > high ? high : x0[i];
            const bool covered = first + i >= 0 && first + i < x0_elements;
            if (covered && last != Real(0)) out[i] = multiply_add(last, x0[i], out[i]);
        }
        if (to.x0) {
            T* x0_out = static_cast<T*>(to.x0) + (b * x0_elements + first);
            if constexpr (Whole) {
                if (first >= 0 && first < x0_elements) write_pack(x0_out, pack_of<T>(x0));
            } else {
#pragma unroll
                for (int i = 0; i < kV; ++i)
                    if (i < n && first + i >= 0 && first + i < x0_elements) from_real(x0[i], x0_out[i]);
            }
        }
        if (task.identity.noisy) add_noise<T, Whole>(task, at, to.sigma, row, static_cast<T*>(nullptr), out);
        write<T, Whole>(static_cast<T*>(to.out) + (b * task.cut.elements + e), pack_of<T>(out), n);
    });
}

}  // namespace mmfast::cuda
