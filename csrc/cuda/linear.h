// The per-sample linear combination of the terms, in registers: the core of all kernels except the masks'.
#pragma once

#include "device.h"

namespace mmfast::cuda {

// The number of terms whose loads are in flight at once: bandwidth needs many, registers limit them.
template <class T>
constexpr int kAhead = sizeof(T) == 8 ? 2 : 4;

__device__ __forceinline__ int64_t checked_row(const Rows& rows, int64_t at) {
    const int64_t row = read_one(rows.rows + at);
    // Like torch's own indexing on a GPU: a kernel cannot raise, so the next call reports the error.
    if (row < 0 || row >= rows.count) __trap();
    return row;
}
__device__ __forceinline__ int64_t row_of(const Rows& rows, int64_t b) {
    if (!rows.rows) return rows.count == 1 ? 0 : b;
    return checked_row(rows, b);
}
template <class Real>
__device__ __forceinline__ Real entry(const void* table, int64_t i) {
    return read_one(static_cast<const Real*>(table) + i);
}

// The sigma of each level of the noise, for a sample with one row; 0 if sigmas is null.
template <class Real>
__device__ __forceinline__ auto sigma_of_row(const Task& task, const void* sigmas, int64_t row) {
    const int64_t first = task.levels.count > 1 ? row * task.levels.count : row;
    return [=](int level) { return sigmas ? entry<Real>(sigmas, first + level) : Real(0); };
}

// A thread's vector: n elements of sample b from e, which is at (row, column).
struct Place {
    int64_t b, e, row, column;
    int n;
};
__device__ __forceinline__ Place place(const Task& task, int64_t b, int64_t e, int n) {
    if (task.inner == task.cut.elements) return {b, e, 0, e, n};
    const int64_t row = e / task.inner;
    return {b, e, row, e - row * task.inner, n};
}

// The term at a place, with zeros where it does not cover it. Whole: launch.h has checked that every vector is
// within one row, is either fully covered or not at all, and is aligned wherever it is read.
template <class T, bool Whole>
__device__ __forceinline__ Pack<T> read_term(const Operand& term, const Place& at, int64_t inner) {
    const T* data = static_cast<const T*>(term.data);
    const int64_t base = at.b * term.batch_stride - term.before;
    int64_t row = at.row, column = at.column;
    Pack<T> x = {};
    if constexpr (Whole) {
        if (at.e < term.begin || at.e >= term.end) return x;
        const T* p = data + (base + row * term.row_stride + column * term.step);
        if (term.step) return read_pack(p);
        const T value = read_one(p);
#pragma unroll
        for (int i = 0; i < kWidth<T>; ++i) x.at[i] = value;
        return x;
    } else {
#pragma unroll
        for (int i = 0; i < kWidth<T>; ++i) {
            const bool covered = i < at.n && at.e + i >= term.begin && at.e + i < term.end;
            if (covered) x.at[i] = read_one(data + (base + row * term.row_stride + column * term.step));
            if (++column == inner) column = 0, ++row;
        }
        return x;
    }
}

// Adds the terms to Sums combinations at once, sum[s] += coefficient(s, k) * term k, reading each once. A term
// with a zero coefficient does not enter that sum, and a term that enters no sum is not read.
template <class T, bool Whole, int Sums, class Coefficient>
__device__ __forceinline__ void add_terms(const Task& task, const Place& at, const Coefficient& coefficient,
                                          RealOf<T> (&sum)[Sums][kWidth<T>]) {
    using Real = RealOf<T>;
    constexpr int kMany = kAhead<T>;
#pragma unroll 1
    for (int first = 0; first < task.terms; first += kMany) {
        Pack<T> x[kMany];
        Real coef[Sums][kMany];
#pragma unroll
        for (int j = 0; j < kMany; ++j) {
            const int k = first + j;
            bool wanted = false;
#pragma unroll
            for (int s = 0; s < Sums; ++s) {
                coef[s][j] = k < task.terms ? coefficient(s, k) : Real(0);
                wanted |= coef[s][j] != Real(0);
            }
            if (wanted) x[j] = read_term<T, Whole>(task.term[k], at, task.inner);
        }
#pragma unroll
        for (int j = 0; j < kMany; ++j)
#pragma unroll
            for (int s = 0; s < Sums; ++s)
                if (coef[s][j] != Real(0))
#pragma unroll
                    for (int i = 0; i < kWidth<T>; ++i)
                        sum[s][i] = multiply_add(coef[s][j], to_real(x[j].at[i]), sum[s][i]);
    }
}

// sum += sigma(level) * noise. The noise is also written to `out`, unless that is null.
// Whole: launch.h has checked that every vector is within one level.
template <class T, bool Whole, class Sigma>
__device__ __forceinline__ void add_noise(const Task& task, const Place& at, const Sigma& sigma_of, T* out,
                                          RealOf<T> (&sum)[kWidth<T>]) {
    using Real = RealOf<T>;
    const int count = task.levels.count;
    int level = 0;
#pragma unroll 1
    while (level + 1 < count && at.e >= task.levels.first[level + 1]) ++level;
    Real sigma = sigma_of(level);
    if (sigma == Real(0) && !out && (Whole || level + 1 >= count)) return;
    Real eps[kWidth<T>] = {};
    make_noise<T>(task.identity, at.b, at.e, eps);
    if (out) write<T, Whole>(out + (at.b * task.cut.elements + at.e), pack_of<T>(eps), at.n);
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i) {
        if constexpr (!Whole) {
            while (level + 1 < count && at.e + i >= task.levels.first[level + 1]) {
                ++level;
                sigma = sigma_of(level);
            }
        }
        sum[i] = multiply_add(sigma, eps[i], sum[i]);
    }
}

}  // namespace mmfast::cuda
