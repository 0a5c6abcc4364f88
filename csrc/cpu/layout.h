// Turns tensors with any strides into the rows and terms of a Plan. [B, d1, ..., dn] becomes rows of
// `inner` elements, at the split where most terms are regular; the others must be made contiguous.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace mmfast {

constexpr int kMaxDims = 16;

struct Tensor {
    const void* data;
    const int64_t *size, *stride;  // as many dimensions as the output; a size of 1 if it broadcasts
    int64_t start;                 // its first channel (dimension 1), or -1 if it is not a block
};

// The stride of dimensions [first, last) of `size` collapsed into one, whose innermost stride is `unit`
// (0: any). 0 if the tensor is constant along them, -1 if no single stride works.
inline int64_t collapse(const Tensor& t, const int64_t* size, int first, int last, int64_t unit) {
    bool constant = true;
    for (int d = first; d < last; ++d) constant &= size[d] == 1 || t.size[d] == 1 || t.stride[d] == 0;
    if (constant) return 0;
    int64_t expected = unit;
    for (int d = last; d-- > first;) {
        if (size[d] == 1) continue;
        if (t.size[d] != size[d]) return -1;
        if (expected == 0) unit = expected = t.stride[d];
        if (t.stride[d] != expected || expected == 0) return -1;
        expected *= size[d];
    }
    return unit;
}

// The term with dimensions [1, split) as rows and [split, rank) as inner; false if that is not regular.
inline bool fit(const Tensor& t, const int64_t* shape, int rank, int split, Term& term) {
    int64_t own[kMaxDims];
    int64_t per_channel = 1, channels = rank > 1 ? shape[1] : 1;
    for (int d = 0; d < rank; ++d) own[d] = shape[d];
    for (int d = 2; d < rank; ++d) per_channel *= shape[d];
    if (t.start >= 0) own[1] = t.size[1];
    term.data = t.data;
    term.batch_stride = t.size[0] == 1 ? 0 : t.stride[0];
    term.row_stride = collapse(t, own, 1, split, 0);
    term.step = collapse(t, own, split, rank, 1);
    term.begin = t.start >= 0 ? t.start * per_channel : 0;
    term.end = t.start >= 0 ? term.begin + t.size[1] * per_channel : channels * per_channel;
    return term.row_stride >= 0 && term.step >= 0;
}

// Sets plan.rows and plan.inner and fills `terms`. Returns the indices of the terms that must be made
// contiguous first, as few as possible; on a tie the longest rows win.
inline std::vector<int> choose_layout(const int64_t* shape, int rank, const Tensor* tensors, int count, Plan& plan,
                                      Term* terms) {
    std::vector<int> best;
    std::vector<Term> fitted(count);
    for (int split = 1; split <= rank; ++split) {
        std::vector<int> misfits;
        for (int k = 0; k < count; ++k)
            if (!fit(tensors[k], shape, rank, split, fitted[k])) misfits.push_back(k);
        if (split > 1 && misfits.size() >= best.size()) continue;
        best = misfits;
        for (int k = 0; k < count; ++k) terms[k] = fitted[k];
        plan.rows = plan.inner = 1;
        for (int d = 1; d < rank; ++d) (d < split ? plan.rows : plan.inner) *= shape[d];
        if (best.empty()) break;
    }
    return best;
}

}  // namespace mmfast
