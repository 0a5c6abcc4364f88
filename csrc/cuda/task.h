// The arguments of the CUDA kernels. All are passed by value, so a launch copies nothing and can be captured in
// a graph. A Task is below 4 KiB, the limit of a kernel's arguments.
//
// The tests also run these kernels on the host, without a GPU (tests/support/cuda_shim).
#pragma once

#include <cstdint>

#include "../cpu/plan.h"

namespace mmfast::cuda {

constexpr int kThreads = 256;     // per block; kernels also work with fewer
constexpr int kMaxTerms = 32;
constexpr int64_t kItem = 8192;   // elements of one sample that a reduction sums at once, as in cpu/plan.h

// How the work is divided. Without sums, each thread takes vectors of a few elements. With sums, a team of
// `lanes` neighbouring threads takes an item, and each thread takes every lanes-th vector of it. The items and
// lanes depend only on the type and the sample's size, and so does the order of the sums.
struct Cut {
    int64_t batch, elements;      // samples, and the elements of each
    int64_t items;                // per sample
    int lanes;                    // a power of two that divides the threads of a block
};

// A term as threads read it. A sample is rows of `inner` elements. The term covers the elements [begin, end),
// and its element at (row, column) of sample b is at
//     data[b * batch_stride + row * row_stride + column * step - before]
struct Operand {
    const void* data;
    int64_t batch_stride, row_stride, before;  // all in elements
    int64_t begin, end;
    int64_t step;                 // 1, or 0 if a row is a single value
};

// The identity of the noise. Seed and draw are read from `key` on the device, or are here if `key` is null.
struct Identity {
    const int64_t* key;           // [2]
    int64_t seed, draw;
    const int64_t* ids;           // [batch], or null for 0, 1, ...
    uint32_t stream;
    bool noisy;                   // whether there is noise
};

// Rows of the tables. Sample b uses row rows[b]; if rows is null, row b or the only one. With columns, rows is
// [batch, columns]: each term, and each level of the noise, has its own.
struct Rows {
    const int64_t* rows;
    int64_t count;
    int64_t columns;
};

// The levels of the noise, given by their first elements in a sample, starting at 0. A count of 0 means one
// level for the whole sample.
struct Levels {
    int count;
    int64_t first[kMaxLevels];
};

struct Task {
    Cut cut;
    int64_t inner;                // cut.elements if a sample is one row
    Identity identity;
    Rows rows;
    Levels levels;
    int terms;
    Operand term[kMaxTerms];
};
static_assert(sizeof(Task) < 3584, "the other arguments need room too");

// The coefficient tables are double for float64 tensors, float for all others. sigma may be null.
struct Combine {
    const void* coefs;            // [rows, columns]; the first `terms` columns are used
    int64_t columns;
    const void* sigma;            // [rows], or with levels [rows, levels]
    void* out;
    void* noise;                  // or null
};
struct Step {
    const void* to_x0;            // [rows, terms]
    const void* coefs;            // [rows, terms + 1], with x0's coefficient last
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
    int64_t block_height, block_width, across;  // across: the number of blocks in a row
    uint64_t one;                 // the bits of 1 in x's type
    void* out;
    void* mask;                   // [batch, 1, height, width]
};

}  // namespace mmfast::cuda
