// Finds rows x inner such that every term is regular on it (see Term in plan.h), from tensors' sizes
// and strides. Pure integer work, so a call costs little more than the kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace mmfast {

struct Tensor {
    const void* data;
    std::vector<int64_t> size, stride;  // as many dimensions as the output; 1 where it broadcasts
    int64_t start;                      // its first channel (dimension 1), or -1: not a block
};

// The stride of dimensions [first, last) of `size` taken as one, innermost `unit` (0: any): 0 where the
// tensor is the same throughout, -1 where no single stride will do.
inline int64_t collapse(const Tensor& t, const std::vector<int64_t>& size, size_t first, size_t last, int64_t unit) {
    bool constant = true;
    for (size_t d = first; d < last; ++d) constant &= size[d] == 1 || t.size[d] == 1 || t.stride[d] == 0;
    if (constant) return 0;
    int64_t expected = unit;
    for (size_t d = last; d-- > first;) {
        if (size[d] == 1) continue;
        if (t.size[d] != size[d]) return -1;
        if (expected == 0) unit = expected = t.stride[d];
        if (t.stride[d] != expected || expected == 0) return -1;
        expected *= size[d];
    }
    return unit;
}

// The term with dimensions [1, split) as rows and [split, n) as inner; false if it is not regular so.
inline bool fit(const Tensor& t, std::vector<int64_t> shape, size_t split, Term& term) {
    int64_t per_channel = 1, channels = shape.size() > 1 ? shape[1] : 1;
    for (size_t d = 2; d < shape.size(); ++d) per_channel *= shape[d];
    if (t.start >= 0) shape[1] = t.size[1];
    term.data = t.data;
    term.batch_stride = t.size[0] == 1 ? 0 : t.stride[0];
    term.row_stride = collapse(t, shape, 1, split, 0);
    term.step = collapse(t, shape, split, shape.size(), 1);
    term.begin = t.start >= 0 ? t.start * per_channel : 0;
    term.end = t.start >= 0 ? term.begin + t.size[1] * per_channel : channels * per_channel;
    return term.row_stride >= 0 && term.step >= 0;
}

// Sets plan.rows and plan.inner and fills `terms`; returns the terms (by number) that must be made
// contiguous first, as few as possible. Among equals the longest rows win.
inline std::vector<int> choose_layout(const std::vector<int64_t>& shape, const std::vector<Tensor>& tensors,
                                      Plan& plan, std::vector<Term>& terms) {
    std::vector<int> best;
    std::vector<Term> fitted(tensors.size());
    for (size_t split = 1; split <= shape.size(); ++split) {
        std::vector<int> misfits;
        for (size_t k = 0; k < tensors.size(); ++k)
            if (!fit(tensors[k], shape, split, fitted[k])) misfits.push_back(static_cast<int>(k));
        if (split > 1 && misfits.size() >= best.size()) continue;
        best = misfits;
        terms = fitted;
        plan.rows = plan.inner = 1;
        for (size_t d = 1; d < shape.size(); ++d) (d < split ? plan.rows : plan.inner) *= shape[d];
        if (best.empty()) break;
    }
    return best;
}

}  // namespace mmfast
