// The CUDA ops on raw pointers, for bindings.cpp. Each is queued on the caller's stream and returns at once,
// without allocating or waiting. If some terms must be made contiguous first, an op does nothing and returns
// them; otherwise it returns an empty list. Launch errors are std::runtime_error.
#pragma once

#include "../cpu/layout.h"
#include "task.h"

#include <vector>

namespace mmfast::cuda {

struct Where {
    int device;
    void* stream;  // a cudaStream_t
};

// A call on the device, independent of the Call in call.h: terms of one type, and where they are.
struct Job {
    Where where;
    Type type;
    const int64_t* shape;
    int rank;
    std::vector<Tensor> terms;
    Identity identity;
    Rows rows;
    std::vector<int64_t> levels;  // the first channels of the noise's levels
};

// The threads of a block (a power of two) and the blocks of a grid. Tests change them to check that no result
// depends on them.
struct Limits {
    int threads = kThreads;
    int64_t blocks = 0x7FFFFFFF;
};
inline Limits limits;

std::vector<int> combine(const Job&, const Combine&);
std::vector<int> step(const Job&, Step, int64_t x0_start, int64_t x0_channels);
// `parts` are workspaces of part_count(elements) doubles per sample (times terms + 1 for dots). loss is float
// or double like the coefficients; sums is double [batch, terms + 1].
std::vector<int> squared_error(const Job&, const SquaredError&, void* loss);
std::vector<int> dots(const Job&, const Dots&, double* sums);
int64_t part_count(int64_t elements);

void random_words(Where, const Identity&, int64_t batch, int64_t count, int64_t* out);
void first_visible(Where, const Identity&, int64_t batch, int64_t blocks, const int64_t* hidden, int64_t of_all,
                   int64_t* out);
void block_mask(Where, const Identity&, Type, int64_t batch, int64_t height, const Mask&);

// For tests: the normals from n pairs of words.
void box_muller(Where, const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n);

}  // namespace mmfast::cuda
