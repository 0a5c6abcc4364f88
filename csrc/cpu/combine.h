// The primitive and its two relatives: a linear combination of the terms plus noise, which is stored
// (combine), includes a clamped combination (step), or is squared and summed (squared_error).
#pragma once

#include "noise.h"
#include "pieces.h"
#include "reduce.h"

namespace mmfast {

// A run of elements with its sources, the base of the kinds below.
template <class L, class T>
struct Run {
    using A = typename ArithmeticOf<L, T>::type;
    using Real = typename ArithmeticOf<L, T>::Real;
    using V = typename A::V;
    const Source* sources;
    int count;
    int64_t at;          // the run's first element, relative to the sources' start
    const float* noise;  // null: no noise
    Real sigma;
    T* out;

    // -0 is the identity of addition, so the first fma gives the product itself. But an empty sum is +0.
    MMFAST_HD V start(bool adds) const { return A::splat(adds || noisy() ? Real(-0.0) : Real(0)); }
    MMFAST_HD bool noisy() const { return noise && sigma != Real(0); }
    template <class Move>
    MMFAST_HD V get(Move move, const Source& s, int64_t i) const {
        return move.get(static_cast<const T*>(s.at) + (at + i) * s.step);
    }
    template <int N, class Move>
    MMFAST_HD void add_terms(Move move, int64_t i, V sum[N]) const {
        for (int k = 0; k < count; ++k) {
            const auto coef = A::splat(static_cast<Real>(sources[k].coef));
            for (int j = 0; j < N; ++j) sum[j] = A::fma(coef, get(move, sources[k], i + j * A::width), sum[j]);
        }
    }
    template <int N, class Move>
    MMFAST_HD void add_noise(Move move, int64_t i, V sum[N]) const {
        if (!noisy()) return;
        for (int j = 0; j < N; ++j) sum[j] = A::fma(A::splat(sigma), move.get(noise + i + j * A::width), sum[j]);
    }
    template <int N, class Move>
    static MMFAST_HD void put(Move move, T* to, const V v[N]) {
        for (int j = 0; j < N; ++j) move.put(to + j * A::width, v[j]);
    }
};

template <class L, class T>
struct Combine : Run<L, T> {
    using A = typename Run<L, T>::A;
    T* noise_out;

    template <int N, class Move>
    MMFAST_HD void run(Move move, int64_t i) const {
        typename A::V sum[N];
        for (int j = 0; j < N; ++j) sum[j] = this->start(this->count > 0);
        this->template add_terms<N>(move, i, sum);
        this->template add_noise<N>(move, i, sum);
        for (int j = 0; noise_out && j < N; ++j)
            move.put(noise_out + i + j * A::width, move.get(this->noise + i + j * A::width));
        this->template put<N>(move, this->out + i, sum);
    }
};

template <class L, class T>
struct Step : Run<L, T> {
    using A = typename Run<L, T>::A;
    using Real = typename Run<L, T>::Real;
    Real low, high, of_x0;
    bool adds;     // whether a term enters the sum itself, and not only x0
    bool covered;  // whether these elements are in x0's channels
    T* x0_out;

    template <int N, class Move>
    MMFAST_HD void run(Move move, int64_t i) const {
        typename A::V sum[N], x0[N];
        const bool uses_x0 = covered && of_x0 != Real(0);
        for (int j = 0; j < N; ++j) sum[j] = this->start(adds || uses_x0), x0[j] = A::splat(Real(0));
        for (int k = 0; k < this->count; ++k) {
            const Source& s = this->sources[k];
            typename A::V x[N];
            for (int j = 0; j < N; ++j) x[j] = this->get(move, s, i + j * A::width);
            const auto coef = static_cast<Real>(s.coef), to_x0 = static_cast<Real>(s.to_x0);
            if (coef != Real(0))
                for (int j = 0; j < N; ++j) sum[j] = A::fma(A::splat(coef), x[j], sum[j]);
            if (covered && to_x0 != Real(0))
                for (int j = 0; j < N; ++j) x0[j] = A::fma(A::splat(to_x0), x[j], x0[j]);
        }
        for (int j = 0; j < N; ++j) x0[j] = A::clamp(x0[j], A::splat(low), A::splat(high));
        if (uses_x0)
            for (int j = 0; j < N; ++j) sum[j] = A::fma(A::splat(of_x0), x0[j], sum[j]);
        this->template add_noise<N>(move, i, sum);
        if (covered && x0_out) this->template put<N>(move, x0_out + i, x0);
        this->template put<N>(move, this->out + i, sum);
    }
};

template <class L, class T>
struct SquaredError : Run<L, T> {
    using A = typename Run<L, T>::A;
    using Real = typename Run<L, T>::Real;
    Real to_grad;
    Real* r;  // [kBlock], zero beyond the run

    template <int N, class Move>
    MMFAST_HD void run(Move move, int64_t i) const {
        typename A::V sum[N];
        for (int j = 0; j < N; ++j) sum[j] = this->start(this->count > 0);
        this->template add_terms<N>(move, i, sum);
        this->template add_noise<N>(move, i, sum);
        for (int j = 0; j < N; ++j) keep(move, r + i + j * A::width, sum[j]);
        if (!this->out) return;
        for (int j = 0; j < N; ++j) sum[j] = A::fma(A::splat(to_grad), sum[j], A::splat(Real(-0.0)));
        this->template put<N>(move, this->out + i, sum);
    }

private:
    template <bool Streaming>
    static MMFAST_HD void keep(Whole<A, Streaming>, Real* to, typename A::V v) { A::store(to, v); }
    static MMFAST_HD void keep(Some<A> some, Real* to, typename A::V v) { some.put(to, v); }
};

// Calls f(run, b, e, n) for the runs of an item: of n <= kBlock elements or, without noise, whole pieces.
// of_source(source, row, k) sets the coefficients of a source, and returns whether any is not zero.
template <class L, class T, class OfSource, class F>
MMFAST_HD void for_runs(const Plan& plan, Source* sources, int64_t item, bool makes_noise, int64_t most,
                        OfSource of_source, F f) {
    using Real = typename Run<L, T>::Real;
    const int64_t b = item / plan.items_per_sample();
    const auto sigma = [&](int level) { return entry<Real>(plan.sigma, plan.row(b, level), level); };
    Run<L, T> run{};
    run.sources = sources;
    run.sigma = plan.sigma.data ? sigma(0) : Real(0);
    Noise<L> noise(plan, b);
    int level = 0;
    for_pieces<L>(plan, item, [&](int64_t e, int64_t n) {
        while (level + 1 < plan.levels && e >= plan.level[level + 1]) run.sigma = sigma(++level);
        const bool noisy = plan.noisy && (run.sigma != Real(0) || makes_noise);
        run.count = 0;
        for (int k = 0; k < plan.terms; ++k)  // a term whose coefficients are zero is not read
            if (of_source(sources[run.count], plan.row(b, k), k) && find_source<L, T>(plan, k, b, e, sources[run.count]))
                ++run.count;
        for (int64_t done = 0, m; done < n; done += m) {
            m = least(most, n - done);
            run.at = done;
            run.noise = noisy ? noise.from(e + done, m) : nullptr;
            run.out = plan.out ? static_cast<T*>(plan.out) + b * plan.elements() + e + done : nullptr;
            f(run, b, e + done, m);
        }
    });
}

constexpr int64_t kNoLimit = int64_t{1} << 62;

template <class L, class T>
MMFAST_HD bool can_stream(const Plan& plan, const T* a, const T* b) {
    constexpr uintptr_t bytes = ArithmeticOf<L, T>::type::width * sizeof(T);
    return plan.streaming && reinterpret_cast<uintptr_t>(a) % bytes == 0 && reinterpret_cast<uintptr_t>(b) % bytes == 0;
}

template <class L, class T>
void combine(const Plan& plan, Source* sources, int64_t begin, int64_t end) {
    using A = typename Run<L, T>::A;
    using Real = typename Run<L, T>::Real;
    const auto of_source = [&](Source& s, int64_t row, int k) {
        return (s.coef = entry<Real>(plan.coefs, row, k)) != 0.0;
    };
    for (int64_t item = begin; item < end; ++item)
        for_runs<L, T>(plan, sources, item, plan.noise, kNoLimit, of_source,
                       [&](const Run<L, T>& run, int64_t b, int64_t e, int64_t n) {
            Combine<L, T> body{run, nullptr};
            if (plan.noise) body.noise_out = static_cast<T*>(plan.noise) + b * plan.elements() + e;
            if (can_stream<L>(plan, body.out, body.noise_out)) for_vectors<A, true>(n, body);
            else for_vectors<A, false>(n, body);
        });
    if (plan.streaming) L::fence();
}

template <class L, class T>
void step(const Plan& plan, Source* sources, int64_t begin, int64_t end) {
    using A = typename Run<L, T>::A;
    using Real = typename Run<L, T>::Real;
    const auto of_source = [&](Source& s, int64_t row, int k) {
        s.coef = entry<Real>(plan.coefs, row, k);
        s.to_x0 = entry<Real>(plan.to_x0, row, k);
        return s.coef != 0.0 || s.to_x0 != 0.0;
    };
    for (int64_t item = begin; item < end; ++item)
        for_runs<L, T>(plan, sources, item, false, kNoLimit, of_source,
                       [&](const Run<L, T>& run, int64_t b, int64_t e, int64_t n) {
            bool adds = false;
            for (int k = 0; k < run.count; ++k) adds |= run.sources[k].coef != 0.0;
            Step<L, T> body{run, static_cast<Real>(plan.low), static_cast<Real>(plan.high),
                            entry<Real>(plan.coefs, plan.row(b), plan.terms), adds,
                            e >= plan.x0_begin && e < plan.x0_end, nullptr};
            if (plan.x0)
                body.x0_out = static_cast<T*>(plan.x0) + b * (plan.x0_end - plan.x0_begin) + e - plan.x0_begin;
            if (can_stream<L>(plan, body.out, body.covered ? body.x0_out : nullptr)) for_vectors<A, true>(n, body);
            else for_vectors<A, false>(n, body);
        });
    if (plan.streaming) L::fence();
}

template <class L, class T>
void squared_error(const Plan& plan, Source* sources, int64_t begin, int64_t end) {
    using A = typename Run<L, T>::A;
    using Real = typename Run<L, T>::Real;
    const auto of_source = [&](Source& s, int64_t row, int k) {
        return (s.coef = entry<Real>(plan.coefs, row, k)) != 0.0;
    };
    alignas(64) Real r[kBlock];
    for (int64_t item = begin; item < end; ++item) {
        Dot<L> dot;
        for_runs<L, T>(plan, sources, item, false, kBlock, of_source,
                       [&](const Run<L, T>& run, int64_t b, int64_t, int64_t n) {
            const int64_t row = plan.row(b);
            const Real weight = static_cast<Real>(plan.scale) * entry<Real>(plan.weight, row);
            const SquaredError<L, T> body{run, 2 * weight * entry<Real>(plan.coefs, row), r};
            for (int64_t i = n; i % Dot<L>::kLanes != 0; ++i) r[i] = Real(0);
            if (can_stream<L>(plan, body.out, body.out)) for_vectors<A, true>(n, body);
            else for_vectors<A, false>(n, body);
            dot.add(r, r, n);
        });
        plan.sums[item] = dot.total();
    }
    if (plan.streaming) L::fence();
}

// The gradients of a combination's terms. The incoming gradient is read once.
template <class L, class T>
struct Scale {
    using A = typename ArithmeticOf<L, T>::type;
    using Real = typename ArithmeticOf<L, T>::Real;
    const T* grad;
    const Real* coef;
    T* const* outs;
    int count;

    template <int N, class Move>
    MMFAST_HD void run(Move move, int64_t i) const {
        typename A::V g[N];
        for (int j = 0; j < N; ++j) g[j] = move.get(grad + i + j * A::width);
        for (int k = 0; k < count; ++k)
            for (int j = 0; j < N; ++j)
                move.put(outs[k] + i + j * A::width,
                         coef[k] == Real(0) ? A::splat(Real(0)) : A::fma(A::splat(coef[k]), g[j], A::splat(Real(-0.0))));
    }
};

template <class L, class T>
void scale(const Plan& plan, Source*, int64_t begin, int64_t end) {
    using Real = typename Scale<L, T>::Real;
    constexpr int kFew = 16;  // terms at once
    Real coef[kFew];
    T* outs[kFew];
    for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / plan.items_per_sample(), first = item % plan.items_per_sample() * Plan::kItem;
        const int64_t at = b * plan.elements() + first, n = least(Plan::kItem, plan.elements() - first);
        for (int k = 0; k < plan.terms; k += kFew) {
            const int count = static_cast<int>(least(kFew, plan.terms - k));
            bool streams = plan.streaming;
            for (int i = 0; i < count; ++i) {
                coef[i] = entry<Real>(plan.coefs, plan.row(b), k + i);
                outs[i] = static_cast<T*>(plan.outs[k + i]) + at;
                streams &= can_stream<L>(plan, outs[i], outs[i]);
            }
            const Scale<L, T> body{static_cast<const T*>(plan.grad) + at, coef, outs, count};
            if (streams) for_vectors<typename Scale<L, T>::A, true>(n, body);
            else for_vectors<typename Scale<L, T>::A, false>(n, body);
        }
    }
    if (plan.streaming) L::fence();
}

}  // namespace mmfast
