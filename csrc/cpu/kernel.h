// The CPU kernels, for any lanes L and element type T. Compiled once for each instruction set, by
// isa.cpp. Everything here is a template over L, so no code made for one set can be linked into another;
// for the same reason nothing of the standard library is used.
#pragma once

#include "../half.h"
#include "../normal.h"
#include "plan.h"

namespace mmfast {

constexpr int kBlock = 64;  // elements: a multiple of every tile, and what is staged at once

// The 4 W normals from element 4 * first_block on, in order.
template <class L>
MMFAST_HD void tile(L, const NoiseStream& stream, uint32_t first_block, float* to) {
    typename L::F n[4];
    normals<L>(stream, first_block, n);
    L::store_in_order(to, n);
}

// The normals of W pairs of words.
template <class L>
MMFAST_HD void pairs(L, const uint32_t* a, const uint32_t* b, float* first, float* second) {
    const auto words = [](const uint32_t* p) { return L::bits(L::F32::load(reinterpret_cast<const float*>(p))); };
    typename L::F x, y;
    normal_pair<L>(words(a), words(b), x, y);
    L::F32::store(first, x);
    L::F32::store(second, y);
}

// float64 tensors are computed in float64, all others in float32.
template <class L, class T> struct ArithmeticOf { using type = typename L::F32; using Real = float; };
template <class L> struct ArithmeticOf<L, double> { using type = typename L::F64; using Real = double; };

MMFAST_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// How vectors move between registers and memory: whole, or only the first n elements of one.
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

// The noise of one sample, a block at a time. The last block is kept: short rows share it.
template <class L>
struct Noise {
    NoiseStream stream;
    int64_t have = -1;
    alignas(64) float normal[kBlock];

    Noise(const Plan& plan, int64_t b)
        : stream(plan.key ? NoiseStream(plan.key[0], plan.key[1], plan.ids[b], plan.stream) : NoiseStream()) {}

    // The normals from `element` to the end of its block; n is cut to their number.
    const float* from(int64_t element, int64_t& n) {
        const int64_t block = element / kBlock, offset = element % kBlock;
        if (block != have)
            for (int i = 0; i < kBlock; i += 4 * L::W)
                tile(L{}, stream, static_cast<uint32_t>((block * kBlock + i) / 4), normal + i);
        have = block;
        n = least(n, kBlock - offset);
        return normal + offset;
    }
};

// An item's elements in pieces, f(e, n): n elements from e, in one row and alike in the terms covering them.
template <class L, class F>
MMFAST_HD void for_pieces(const Plan& plan, int64_t item, F f) {
    int64_t e = item % plan.items_per_sample() * Plan::kItem;
    const int64_t stop = least(e + Plan::kItem, plan.elements());
    for (int64_t next; e < stop; e = next) {
        next = least(stop, (e / plan.inner + 1) * plan.inner);
        for (int k = 0; k < plan.terms; ++k) {
            const Term& term = plan.term[k];
            if (term.begin > e) next = least(next, term.begin);
            if (term.end > e) next = least(next, term.end);
        }
        f(e, next - e);
    }
}

// Term k of sample b from element e on; false where it does not cover e.
template <class L, class T>
bool find_source(const Plan& plan, int k, int64_t b, int64_t e, Source& source) {
    const Term& term = plan.term[k];
    if (e < term.begin || e >= term.end) return false;
    const int64_t row = e / plan.inner - term.begin / plan.inner;
    const int64_t column = e % plan.inner - term.begin % plan.inner;
    const T* at = static_cast<const T*>(term.data) + b * term.batch_stride + row * term.row_stride + column * term.step;
    source.at = at;
    source.step = term.step;
    if (term.step == 0) {
        T* value = reinterpret_cast<T*>(source.value);
        for (unsigned i = 0; i < sizeof(source.value) / sizeof(T); ++i) value[i] = *at;
        source.at = value;
    }
    return true;
}

// N vectors from `at` of a piece: out = sum of coef * source + sigma * noise; and the noise.
template <class A, int N, class T, class Real, class Move>
MMFAST_HD void combine_vectors(Move move, const Source* sources, int count, int64_t at, const float* noise,
                               Real sigma, T* out, T* noise_out) {
    typename A::V sum[N];
    // -0 is the identity of addition: the first fma gives the product itself. But an empty sum is +0.
    const bool noisy = noise && sigma != Real(0);
    for (int i = 0; i < N; ++i) sum[i] = A::splat(count || noisy ? Real(-0.0) : Real(0));
    for (int k = 0; k < count; ++k) {
        const Source& s = sources[k];
        const T* p = static_cast<const T*>(s.at) + at * s.step;
        const auto coef = A::splat(static_cast<Real>(s.coef));
        for (int i = 0; i < N; ++i) sum[i] = A::fma(coef, move.get(p + i * A::width * s.step), sum[i]);
    }
    for (int i = 0; noise && i < N; ++i) {
        const auto eps = move.get(noise + i * A::width);
        if (noisy) sum[i] = A::fma(A::splat(sigma), eps, sum[i]);
        if (noise_out) move.put(noise_out + i * A::width, eps);
    }
    for (int i = 0; i < N; ++i) move.put(out + i * A::width, sum[i]);
}

// A piece of n elements, from `at` of the sources.
template <class A, bool Streaming, class T, class Real>
MMFAST_HD void combine_piece(const Source* sources, int count, int64_t at, int64_t n, const float* noise,
                             Real sigma, T* out, T* noise_out) {
    const auto forward = [&](int64_t by) {
        at += by, n -= by, out += by;
        if (noise) noise += by;
        if (noise_out) noise_out += by;
    };
    constexpr int w = A::width;
    const Whole<A, Streaming> whole;
    for (; n >= 4 * w; forward(4 * w)) combine_vectors<A, 4>(whole, sources, count, at, noise, sigma, out, noise_out);
    for (; n >= w; forward(w)) combine_vectors<A, 1>(whole, sources, count, at, noise, sigma, out, noise_out);
    if (n > 0) combine_vectors<A, 1>(Some<A>{n}, sources, count, at, noise, sigma, out, noise_out);
}

template <class L, class T>
void combine(const Plan& plan, Source* sources, int64_t begin, int64_t end) {
    using A = typename ArithmeticOf<L, T>::type;
    using Real = typename ArithmeticOf<L, T>::Real;
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % (A::width * sizeof(T)) == 0; };
    for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / plan.items_per_sample();
        const Real* coefs = static_cast<const Real*>(plan.coefs) + b * plan.terms;
        const Real sigma = plan.sigma ? static_cast<const Real*>(plan.sigma)[b] : Real(0);
        T* out = static_cast<T*>(plan.out) + b * plan.elements();
        T* noise_out = plan.noise ? static_cast<T*>(plan.noise) + b * plan.elements() : nullptr;
        const bool noisy = sigma != Real(0) || plan.noise;
        Noise<L> noise(plan, b);
        for_pieces<L>(plan, item, [&](int64_t e, int64_t n) {
            int count = 0;
            for (int k = 0; k < plan.terms; ++k) {  // a term whose coefficient is zero is not read
                if (coefs[k] == Real(0) || !find_source<L, T>(plan, k, b, e, sources[count])) continue;
                sources[count++].coef = coefs[k];
            }
            for (int64_t done = 0, m; done < n; done += m) {
                m = n - done;
                const float* eps = noisy ? noise.from(e + done, m) : nullptr;
                T* to = out + e + done;
                T* noise_to = noise_out ? noise_out + e + done : nullptr;
                if (plan.streaming && aligned(to) && aligned(noise_to))
                    combine_piece<A, true>(sources, count, done, m, eps, sigma, to, noise_to);
                else
                    combine_piece<A, false>(sources, count, done, m, eps, sigma, to, noise_to);
            }
        });
    }
    if (plan.streaming) L::fence();
}

// A sum of products in double: element i of a run goes to lane i % 16 and the lanes are added in a fixed
// tree, so the result does not depend on the width of the vectors. Products of floats are exact.
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
        double* to = plan.dots + item * (plan.terms + 1);
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
        if (!plan.key) continue;
        // The noise does not know rows. An item starts at the start of a block.
        Noise<L> noise(plan, b);
        Dot<L> dot;
        const int64_t start = item % plan.items_per_sample() * Plan::kItem;
        const int64_t stop = least(start + Plan::kItem, plan.elements());
        for (int64_t e = start, m; e < stop; e += m) {
            m = stop - e;
            const float* eps = noise.from(e, m);
            stage<A>(grad + e, 1, m, g);
            dot.add(g, eps, m);  // beyond m it is finite noise times zero
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

template <class L>
void box_muller(const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n) {
    for (int64_t i = 0; i < n; i += L::W) pairs(L{}, a + i, b + i, first + i, second + i);
}

template <class L>
constexpr Kernels kernels(const char* name) {
    return {name,
            {combine<L, float>, combine<L, double>, combine<L, bf16>, combine<L, f16>},
            {dots<L, float>, dots<L, double>, dots<L, bf16>, dots<L, f16>},
            {row_sums<L, float>, row_sums<L, double>, row_sums<L, bf16>, row_sums<L, f16>},
            box_muller<L>};
}

}  // namespace mmfast
