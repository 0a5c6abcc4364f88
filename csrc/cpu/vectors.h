// Moves vectors of a lane type's arithmetic between registers and memory, and splits a run of elements into
// vectors.
//
// Everything in these headers is a template over the lane type L or something that belongs to it, so code
// compiled for one instruction set cannot be linked into another. For the same reason they do not use the
// standard library.
#pragma once

#include "../half.h"
#include "plan.h"

namespace mmfast {

constexpr int kBlock = 128;  // elements staged at once: a multiple of every vector and noise tile

// float64 tensors are computed in float64, all others in float32.
template <class L, class T> struct ArithmeticOf { using type = typename L::F32; using Real = float; };
template <class L> struct ArithmeticOf<L, double> { using type = typename L::F64; using Real = double; };

MMFAST_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Real>
MMFAST_HD Real entry(const Table& table, int64_t row, int64_t column = 0) {
    return static_cast<const Real*>(table.data)[row * table.row_stride + column * table.stride];
}

// Moves whole vectors, or only the first n elements of one.
template <class A, bool Streaming>
struct Whole {
    template <class T>
    MMFAST_HD typename A::V get(const T* p) const { return A::load(p); }
    template <class T>
    MMFAST_HD void put(T* p, typename A::V v) const { Streaming ? A::stream(p, v) : A::store(p, v); }
};
template <class A>
struct Some {
    int64_t n;
    template <class T>
    typename A::V get(const T* p) const {
        T whole[A::width] = {};
        for (int64_t i = 0; i < n; ++i) whole[i] = p[i];
        return A::load(whole);
    }
    template <class T>
    void put(T* p, typename A::V v) const {
        T whole[A::width];
        A::store(whole, v);
        for (int64_t i = 0; i < n; ++i) p[i] = whole[i];
    }
};

// Calls f.run<N>(move, i) over the elements [0, n): N vectors from element i, moved by `move`.
template <class A, bool Streaming, class F>
MMFAST_HD void for_vectors(int64_t n, const F& f) {
    constexpr int w = A::width;
    int64_t i = 0;
    for (; i + 4 * w <= n; i += 4 * w) f.template run<4>(Whole<A, Streaming>{}, i);
    for (; i + w <= n; i += w) f.template run<1>(Whole<A, Streaming>{}, i);
    if (i < n) f.template run<1>(Some<A>{n - i}, i);
}

}  // namespace mmfast
