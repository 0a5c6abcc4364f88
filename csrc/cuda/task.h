// What the CUDA kernels are told. All of it is passed by value, so a launch copies nothing and can be
// captured in a graph: a Task is below 4 KiB, the limit of a kernel's arguments.
//
// The tests run these kernels on the host too, where there is no GPU (tests/support/cuda_shim).
#pragma once

#include <cstdint>

#include "../cpu/plan.h"

namespace mmfast::cuda {

constexpr int kThreads = 256;     // of a block; kernels are also right with fewer
constexpr int kMaxTerms = 32;
constexpr int64_t kItem = 8192;   // elements of one sample that a reduction sums at once, as cpu/plan.h cuts

// How the work is shared out. Without sums, each thread takes vectors of a few elements. Where sums are
// taken, a team of `lanes` neighbouring threads takes an item, each thread every lanes-th vector of it; the
// items and the lanes are functions of the sample's size alone, and so are the sums.
struct Cut {
    int64_t batch, elements;      // samples, and the elements of each
    int64_t items;                // of a sample
    int lanes;                    // a power of two that divides the threads of a block
};

// A term as threads read it. A sample is rows of `inner` elements; the term covers its elements
// [begin, end), and holds its element in (row, column) of sample b at
//     data[b * batch_stride + row * row_stride + column * step - before]
struct Operand {
    const void* data;
    int64_t batch_stride, row_stride, before;  // all in elements
    int64_t begin, end;
    int64_t step;                 // 1, or 0 where a row has one value
};

// Which noise: seed and draw are read on the device, or are here where `key` is null.
struct Identity {
    const int64_t* key;           // [2]
    int64_t seed, draw;
    const int64_t* ids;           // [batch], or null for 0, 1, ...
    uint32_t stream;
    bool noisy;                   // is there a key at all
};

// Rows of the tables: sample b uses rows[b]; without rows its own, or the only one. With columns rows is
// [batch, columns]: each term, and each level of the noise, has its own.
struct Rows {
    const int64_t* rows;
    int64_t count;
    int64_t columns;
};

// The levels of the noise by their first elements in a sample, from 0 on; none: one for the whole sample.
struct Levels {
    int count;
    int64_t first[kMaxLevels];
};

struct Task {
    Cut cut;
    int64_t inner;                // cut.elements where a sample is one row
    Identity identity;
    Rows rows;
    Levels levels;
    int terms;
    Operand term[kMaxTerms];
};
static_assert(sizeof(Task) < 3584, "the other arguments need room too");

// The coefficient tables are double for float64 tensors, float for all others. sigma may be null.
struct Combine {
    const void* coefs;            // [rows, columns], of which the first `terms` count
    int64_t columns;
    const void* sigma;            // [rows], or with levels [rows, levels]
    void* out;
    void* noise;                  // or null
};
struct Step {
    const void* to_x0;            // [rows, terms]
    const void* coefs;            // [rows, terms + 1], x0's coefficient the last
    const void* sigma;
    double low, high;
    int64_t x0_begin, x0_end;     // the elements of a sample that x0 covers
    void* out;
    void* x0;                     // [batch, x0_end - x0_begin], or null
};
struct SquaredError {
    const void* coefs;
    const void* sigma;
    const void* weight;           // [rows]
    double scale;
    double* parts;                // [batch, items]
    void* grad;                   // or null
};
struct Dots {
    const void* grad;
    double* parts;                // [batch, items, terms + 1]
};
struct Mask {
    const void* x;                // [batch, channels, height, width]
    const int64_t* threshold;     // [batch]
    int64_t channels, width;
    int64_t block_height, block_width, across;  // across: blocks beside each other
    uint64_t one;                 // the bits of 1 in x's type
    void* out;
    void* mask;                   // [batch, 1, height, width]
};

}  // namespace mmfast::cuda
