// squared_error and dots: sums over samples in two stages, first partial sums over items of kItem elements and
// then sums of those, all in double and in a fixed order. No atomics.
#pragma once

#include "linear.h"

namespace mmfast::cuda {

// The sum of the team's values, valid in its first thread. Synchronises the whole block.
__device__ __forceinline__ double team_sum(double value, int lanes) {
    __shared__ double shared[kThreads];
    const int me = static_cast<int>(threadIdx.x), lane = me & (lanes - 1);
    shared[me] = value;
    for (int half = lanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half) shared[me] = value += shared[me + half];
    }
    __syncthreads();  // before the next sum's first write
    return value;
}

template <class T, bool Whole>
__global__ void __launch_bounds__(kThreads, resident<T, Whole>(3))
squared_error(const __grid_constant__ Task task, const SquaredError to) {
    using Real = RealOf<T>;
    constexpr int kV = kWidth<T>;
    for_items(task.cut, [&](int64_t item) {
        const int64_t b = item / task.cut.items;
        const bool present = b < task.cut.batch;
        double total = 0.0;
        if (present) for_vectors_of_item<T>(task.cut, item - b * task.cut.items, [&](int64_t e, int n) {
            const Place at = place(task, b, e, n);
            const int64_t row = row_of(task.rows, b);
            const Real* coefs = static_cast<const Real*>(to.coefs) + row * task.terms;
            Real sum[1][kV] = {};
            add_terms<T, Whole>(task, at, [&](int, int k) { return read_one(coefs + k); }, sum);
            auto& r = sum[0];
            if (task.identity.noisy) {
                add_noise<T, Whole>(task, at, sigma_of_row<Real>(task, to.sigma, row), static_cast<T*>(nullptr), r);
            }
#pragma unroll
            for (int i = 0; i < kV; ++i) {
                const double x = i < n ? static_cast<double>(r[i]) : 0.0;
                total = multiply_add(x, x, total);
            }
            if (!to.grad) return;
            const Real weight = static_cast<Real>(to.scale) * entry<Real>(to.weight, row);
            const Real first = Real(2) * weight * read_one(coefs);
#pragma unroll
            for (int i = 0; i < kV; ++i) r[i] = first * r[i];
            write<T, Whole>(static_cast<T*>(to.grad) + (b * task.cut.elements + e), pack_of<T>(r), n);
        });
        total = team_sum(total, task.cut.lanes);
        if (present && threadIdx.x % task.cut.lanes == 0) to.parts[item] = total;
    });
}

// <grad, term> for every term and then <grad, noise>, for each item.
template <class T, bool Whole>
__global__ void __launch_bounds__(kThreads, resident<T, Whole>(3)) dots(const __grid_constant__ Task task, const Dots to) {
    using Real = RealOf<T>;
    constexpr int kV = kWidth<T>;
    constexpr int kMany = kAhead<T>;
    const int columns = task.terms + 1;
    for_items(task.cut, [&](int64_t item) {
        const int64_t b = item / task.cut.items;
        const bool present = b < task.cut.batch;
        int first = 0;
        do {  // the gradient is read once per kMany terms; the first pass also sums over the noise
            double total[kMany + 1] = {};
            if (present) for_vectors_of_item<T>(task.cut, item - b * task.cut.items, [&](int64_t e, int n) {
                const Place at = place(task, b, e, n);
                const auto grad = read<T, Whole>(static_cast<const T*>(to.grad) + (b * task.cut.elements + e), n);
                Pack<T> x[kMany];
#pragma unroll
                for (int j = 0; j < kMany; ++j)
                    if (first + j < task.terms) x[j] = read_term<T, Whole>(task.term[first + j], at, task.inner);
#pragma unroll
                for (int j = 0; j < kMany; ++j)
                    if (first + j < task.terms)
#pragma unroll
                        for (int i = 0; i < kV; ++i)
                            total[j] = multiply_add(static_cast<double>(to_real(grad.at[i])),
                                                    static_cast<double>(to_real(x[j].at[i])), total[j]);
                if (!task.identity.noisy || first > 0) return;
                Real eps[kV] = {};
                make_noise<T>(task.identity, b, e, eps);
#pragma unroll
                for (int i = 0; i < kV; ++i)  // beyond n, zero times finite noise
                    total[kMany] = multiply_add(static_cast<double>(to_real(grad.at[i])),
                                                 static_cast<double>(eps[i]), total[kMany]);
            });
#pragma unroll
            for (int j = 0; j <= kMany; ++j) {
                const int column = j < kMany ? first + j : task.terms;
                if (j < kMany ? column >= task.terms : first > 0) continue;  // the same in all threads
                const double sum = team_sum(total[j], task.cut.lanes);
                if (present && threadIdx.x % task.cut.lanes == 0) to.parts[item * columns + column] = sum;
            }
            first += kMany;
        } while (first < task.terms);
    });
}

// The second stage: out[b, c] = the sum over items of parts[b, item, c], times scale * weight[row of b] if given.
// An item of this cut is one sum (b, c).
template <class Real>
__global__ void __launch_bounds__(kThreads)
finish(const Cut cut, const double* __restrict__ parts, int64_t items, int64_t columns, const Real* __restrict__ weight,
       const Rows rows, double scale, Real* __restrict__ out) {
    for_items(cut, [&](int64_t sum_index) {
        const bool present = sum_index < cut.batch;
        const int64_t b = sum_index / columns, column = sum_index - b * columns;
        const int lane = static_cast<int>(threadIdx.x) & (cut.lanes - 1);
        double sum = 0.0;
        for (int64_t item = lane; present && item < items; item += cut.lanes)
            sum += parts[(b * items + item) * columns + column];
        sum = team_sum(sum, cut.lanes);
        if (!present || lane != 0) return;
        const Real total = static_cast<Real>(sum);
        out[sum_index] = weight ? static_cast<Real>(scale) * weight[row_of(rows, b)] * total : total;
    });
}

}  // namespace mmfast::cuda
