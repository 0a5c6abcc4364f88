// The arguments of the kernels of every instruction set, and the table of these kernels. Only plain data,
// because translation units compiled for different CPUs share this header.
#pragma once

#include <cstdint>

namespace mmfast {

enum class Type { f32, f64, bf16, f16, count };

// A sample is `rows` rows of `inner` elements. A term covers the elements [begin, end) of a sample: whole
// rows, or part of a single row. Within a row it is contiguous (step 1) or one value (step 0). All strides
// are in elements.
struct Term {
    const void* data;
    int64_t batch_stride, row_stride, step;
    int64_t begin, end;
};

// A table of coefficients, double for f64 tensors and float for all others. Sample b uses row `index[b]`,
// or b without an index. A row_stride of 0 means that one row serves every sample.
struct Table {
    const void* data;
    int64_t row_stride, stride;
};

// The most levels that a sample's noise can have. Each level is a run of whole channels.
constexpr int kMaxLevels = 32;

struct Plan {
    int64_t batch, rows, inner;
    int terms;
    const Term* term;
    const int64_t* index;  // [batch] rows of the tables; null: row b for sample b
    int64_t columns;       // 0, or index is [batch, columns]: each term, and each level of the noise, has its own rows
    Table coefs;           // [, terms], for a step [, terms + 1]
    Table sigma;           // [], or with levels and no columns [, levels]; null: no noise in the sum
    int levels;            // of the noise; 0: one for the whole sample
    const int64_t* level;  // [levels] the first element of each, from 0 on
    bool noisy;            // whether there is an identity of the noise
    int64_t seed, draw;
    const int64_t* ids;    // [batch]; null: 0, 1, ...
    uint32_t stream;
    void* out;             // [batch, rows, inner]; for a squared error the gradient, or null
    void* noise;           // like out, or null
    bool streaming;        // whether to write past the caches

    // A step: x0 = clamp(sum of to_x0 * term, low, high) on the elements [x0_begin, x0_end) of a sample.
    Table to_x0;           // [, terms]
    double low, high;
    int64_t x0_begin, x0_end;
    void* x0;              // [batch, x0_end - x0_begin], or null

    // A squared error.
    Table weight;          // []
    double scale;

    const void* grad;      // of a backward pass: [batch, rows, inner]
    void* const* outs;     // of `scale`: as many as terms, each of grad's shape
    double* sums;          // [items, sums per item]

    // Work is split into items of at most kItem elements of one sample. The split does not depend on the
    // machine, so neither does any sum over items. kItem is a multiple of every tile.
    static constexpr int64_t kItem = 8192;
    int64_t elements() const { return rows * inner; }
    int64_t items_per_sample() const { return (elements() + kItem - 1) / kItem; }
    int64_t items() const { return batch * items_per_sample(); }
    int64_t row(int64_t b, int64_t k = 0) const { return index ? index[columns ? b * columns + k : b] : b; }
    int64_t id(int64_t b) const { return ids ? ids[b] : b; }
};

// A term within a piece of a row. `value` repeats the value of a term of step 0 over a whole vector.
struct Source {
    const void* at;
    int64_t step;
    double coef, to_x0;
    alignas(64) unsigned char value[64];
};

// One instruction set's kernels, by Type. Each processes the items (or rows) [begin, end) in order;
// `sources` is scratch space for one Source per term.
struct Kernels {
    static constexpr int kTypes = static_cast<int>(Type::count);
    const char* name;
    using Items = void(const Plan&, Source* sources, int64_t begin, int64_t end);
    using Rows = void(const void* x, int64_t inner, double* sums, int64_t begin, int64_t end);
    Items* combine[kTypes];        // out = sum of coef * term + sigma * noise
    Items* step[kTypes];           // out = sum of coef * term + coef * x0 + sigma * noise
    Items* squared_error[kTypes];  // sums = |r|^2, out = 2 scale weight coef_0 r, r as combine's out
    Items* dots[kTypes];           // per item: sum of grad * term, of grad * noise
    Items* scale[kTypes];          // outs[k] = coef_k * grad, 0 where the coefficient is 0
    Rows* row_sums[kTypes];        // sums of x [rows, inner] over inner
    void (*box_muller)(const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n);
};

extern const Kernels kBaseline, kAvx2, kAvx512, kNeon;  // isa.cpp defines those in the build

}  // namespace mmfast
