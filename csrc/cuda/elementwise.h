// combine stores a linear combination plus noise; step is two of them around a clamp.
#pragma once

#include "linear.h"

namespace mmfast::cuda {

template <class T, bool Whole, class Coefficient, class Sigma>
__device__ __forceinline__ void combine_at(const Task& task, const Combine& to, const Place& at,
                                           const Coefficient& coefficient, const Sigma& sigma) {
    RealOf<T> sum[1][kWidth<T>] = {};
    add_terms<T, Whole>(task, at, coefficient, sum);
    if (task.identity.noisy) add_noise<T, Whole>(task, at, sigma, static_cast<T*>(to.noise), sum[0]);
    write<T, Whole>(static_cast<T*>(to.out) + (at.b * task.cut.elements + at.e), pack_of<T>(sum[0]), at.n);
}

// Each: every term, and every level of the noise, has its own rows.
template <class T, bool Whole, bool Each>
__global__ void __launch_bounds__(kThreads, resident<T, Whole>(Each ? 3 : 4))
combine(const __grid_constant__ Task task, const Combine to) {
    using Real = RealOf<T>;
    for_vectors<T>(task.cut, [&](int64_t b, int64_t e, int n) {
        const Place at = place(task, b, e, n);
        if constexpr (Each) {
            const auto row = [&](int k) { return checked_row(task.rows, b * task.rows.columns + k); };
            const auto coefficient = [&](int, int k) { return entry<Real>(to.coefs, row(k) * to.columns + k); };
            const auto sigma = [&](int level) { return to.sigma ? entry<Real>(to.sigma, row(level)) : Real(0); };
            combine_at<T, Whole>(task, to, at, coefficient, sigma);
        } else {
            const int64_t row = row_of(task.rows, b);
            const Real* coefs = static_cast<const Real*>(to.coefs) + row * to.columns;
            const auto coefficient = [&](int, int k) { return read_one(coefs + k); };
            combine_at<T, Whole>(task, to, at, coefficient, sigma_of_row<Real>(task, to.sigma, row));
        }
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
        add_terms<T, Whole>(task, at, [&](int s, int k) { return read_one(coefs[s] + k); }, sum);
        auto& x0 = sum[0];
        auto& out = sum[1];
        const Real last = read_one(coefs[1] + task.terms);
        const int64_t first = e - to.x0_begin, x0_elements = to.x0_end - to.x0_begin;  // this vector's position in x0
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
        if (task.identity.noisy) {
            add_noise<T, Whole>(task, at, sigma_of_row<Real>(task, to.sigma, row), static_cast<T*>(nullptr), out);
        }
        write<T, Whole>(static_cast<T*>(to.out) + (b * task.cut.elements + e), pack_of<T>(out), n);
    });
}

}  // namespace mmfast::cuda
