// Machine-independent sums in double: of products with the gradient, and of rows.
#pragma once

#include "noise.h"
#include "pieces.h"

namespace mmfast {

// A sum of products in double. Element i of a run goes to lane i % 16, and the lanes are added in a fixed
// tree, so the result does not depend on the vector width. Products of floats are exact.
template <class L>
struct Dot {
    using D = typename L::F64;
    static constexpr int kLanes = 16, kVectors = kLanes / D::width;
    typename D::V lane[kVectors];

    Dot() { for (auto& v : lane) v = D::splat(0.0); }
    template <class Real, class Other>
    void add(const Real* x, const Other* y, int64_t n) {  // both padded with zeros to kLanes
        for (int64_t i = 0; i < n; i += kLanes)
            for (int j = 0; j < kVectors; ++j)
                lane[j] = D::fma(D::load(x + i + j * D::width), D::load(y + i + j * D::width), lane[j]);
    }
    double total() const {
        double t[kLanes];
        for (int j = 0; j < kVectors; ++j) D::store(t + j * D::width, lane[j]);
        for (int half = kLanes / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) t[i] += t[i + half];
        return t[0];
    }
};

// n <= kBlock elements as float or double, padded with zeros.
template <class A, class T, class Real>
void stage(const T* p, int64_t step, int64_t n, Real* to) {
    for (int64_t i = 0; i < kBlock; i += A::width) {
        const int64_t left = n - i;
        const T* from = p + i * step;
        A::store(to + i, left >= A::width ? A::load(from) : left > 0 ? Some<A>{left}.get(from) : A::splat(0));
    }
}

template <class L, class T>
void dots(const Plan& plan, Source* sources, int64_t begin, int64_t end) {
    using A = typename ArithmeticOf<L, T>::type;
    using Real = typename ArithmeticOf<L, T>::Real;
    alignas(64) Real g[kBlock], x[kBlock];
    for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / plan.items_per_sample();
        const T* grad = static_cast<const T*>(plan.grad) + b * plan.elements();
        double* to = plan.sums + item * (plan.terms + 1);
        for (int k = 0; k <= plan.terms; ++k) to[k] = 0.0;
        for_pieces<L>(plan, item, [&](int64_t e, int64_t n) {
            for (int k = 0; k < plan.terms; ++k) {
                if (!find_source<L, T>(plan, k, b, e, *sources)) continue;
                Dot<L> dot;
                for (int64_t i = 0; i < n; i += kBlock) {
                    const int64_t m = least(kBlock, n - i);
                    stage<A>(grad + e + i, 1, m, g);
                    stage<A>(static_cast<const T*>(sources->at) + i * sources->step, sources->step, m, x);
                    dot.add(g, x, m);
                }
                to[k] += dot.total();
            }
        });
        if (!plan.noisy) continue;
        // The noise does not depend on rows. An item starts at the start of a block.
        Noise<L> noise(plan, b);
        Dot<L> dot;
        const int64_t start = item % plan.items_per_sample() * Plan::kItem;
        const int64_t stop = least(start + Plan::kItem, plan.elements());
        for (int64_t e = start, m; e < stop; e += m) {
            m = stop - e;
            const float* eps = noise.from(e, m);
            stage<A>(grad + e, 1, m, g);
            dot.add(g, eps, m);  // beyond m, finite noise times zero
        }
        to[plan.terms] = dot.total();
    }
}

template <class L, class T>
void row_sums(const void* x, int64_t inner, double* sums, int64_t begin, int64_t end) {
    using A = typename ArithmeticOf<L, T>::type;
    alignas(64) typename ArithmeticOf<L, T>::Real values[kBlock], ones[kBlock];
    for (auto& one : ones) one = 1;
    for (int64_t r = begin; r < end; ++r) {
        const T* row = static_cast<const T*>(x) + r * inner;
        Dot<L> dot;
        for (int64_t i = 0; i < inner; i += kBlock) {
            const int64_t m = least(kBlock, inner - i);
            stage<A>(row + i, 1, m, values);
            dot.add(values, ones, m);
        }
        sums[r] = dot.total();
    }
}

}  // namespace mmfast
