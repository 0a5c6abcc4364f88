// What the kernels of every instruction set are told, and the table they offer. Plain data: this header
// is shared by translation units compiled for different CPUs.
#pragma once

#include <cstdint>

namespace mmfast {

enum class Type { f32, f64, bf16, f16, count };

// A sample is `rows` rows of `inner` elements. A term covers the elements [begin, end) of a sample: whole
// rows, or part of the one row there is. Inside a row it is contiguous (step 1) or one value (step 0).
// All strides count elements.
struct Term {
    const void* data;
    int64_t batch_stride, row_stride, step;
    int64_t begin, end;
};

struct Plan {
    int64_t batch, rows, inner;
    int terms;
    const Term* term;
    // Coefficients and sigma: double for f64 tensors, float for all others. sigma and key may be null.
    const void* coefs;     // [batch, terms]
    const void* sigma;     // [batch]
    const int64_t* key;    // seed, draw
    const int64_t* ids;    // [batch]
    uint32_t stream;
    void* out;             // [batch, rows, inner]
    void* noise;           // the same, or null
    const void* grad;      // backward only: [batch, rows, inner]
    double* dots;          // backward only: [items, terms + 1]
    bool streaming;        // write past the caches

    // Work is cut into items of at most kItem elements of one sample. The cut never depends on the
    // machine, so neither does any sum over items. kItem is a multiple of every tile.
    static constexpr int64_t kItem = 8192;
    int64_t elements() const { return rows * inner; }
    int64_t items_per_sample() const { return (elements() + kItem - 1) / kItem; }
    int64_t items() const { return batch * items_per_sample(); }
};

// A term as a piece of a row sees it. `value` repeats the value of a term of step 0 over a whole vector.
struct Source {
    const void* at;
    int64_t step;
    double coef;
    alignas(64) unsigned char value[64];
};

// One instruction set's kernels, by Type. Each works through items (or rows) [begin, end) in order;
// `sources` is scratch for one Source a term.
struct Kernels {
    const char* name;
    using Items = void(const Plan&, Source* sources, int64_t begin, int64_t end);
    using Rows = void(const void* x, int64_t inner, double* sums, int64_t begin, int64_t end);
    Items* combine[static_cast<int>(Type::count)];   // out = sum of coef * term + sigma * noise
    Items* dots[static_cast<int>(Type::count)];      // per item: sum of grad * term, of grad * noise
    Rows* row_sums[static_cast<int>(Type::count)];   // sums of x [rows, inner] over inner
    void (*box_muller)(const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n);
};

extern const Kernels kBaseline, kAvx2, kAvx512, kNeon;  // isa.cpp makes those that the build has

}  // namespace mmfast
