// Splits an item of work into pieces: runs of elements in one row that share the covering terms and the noise's level.
#pragma once

#include "vectors.h"

namespace mmfast {

// Calls f(e, n) for each piece of n elements from e.
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
        for (int l = 1; l < plan.levels; ++l)
            if (plan.level[l] > e) next = least(next, plan.level[l]);
        if (plan.x0_begin > e) next = least(next, plan.x0_begin);
        if (plan.x0_end > e) next = least(next, plan.x0_end);
        f(e, next - e);
    }
}

// Term k of sample b from element e on; false if it does not cover e.
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

}  // namespace mmfast
