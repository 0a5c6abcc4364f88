// The CUDA ops on raw pointers, for bindings.cpp. Each is queued on the caller's stream and returns at
// once; nothing is allocated and nothing waited for. Those with terms return the terms that must be made
// contiguous first, having done nothing; or none. An error of a launch is a std::runtime_error.
#pragma once

#include "../cpu/layout.h"
#include "task.h"

#include <vector>

namespace mmfast::cuda {

struct Where {
    int device;
    void* stream;  // a cudaStream_t
};

// Of the tensors that a call combines, all of one type.
struct Operands {
    const void* data;
    std::vector<int64_t> size, stride;
    int64_t start;
};
struct Call {
    Where where;
    Type type;
    std::vector<int64_t> shape;
    std::vector<Operands> terms;
    Identity identity;
    Rows rows;
};

// Tests set these to see that no result depends on them: threads of a block (a power of two), blocks of a
// grid.
struct Limits {
    int threads = kThreads;
    int64_t blocks = 0x7FFFFFFF;
};
inline Limits limits;

std::vector<int> combine(const Call&, const Combine&);
std::vector<int> step(const Call&, Step, int64_t x0_start, int64_t x0_channels);
// `parts` are workspaces of part_count(elements) doubles a sample (times terms + 1 for dots); loss is
// float or double like the coefficients, sums is double [batch, terms + 1].
std::vector<int> squared_error(const Call&, const SquaredError&, void* loss);
std::vector<int> dots(const Call&, const Dots&, double* sums);
int64_t part_count(int64_t elements);

void block_ranks(Where, const Identity&, int64_t batch, int64_t blocks, int64_t* out);
void block_mask(Where, const Identity&, Type, int64_t batch, int64_t height, const Mask&);

// For tests: the normals of n pairs of words.
void box_muller(Where, const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n);

}  // namespace mmfast::cuda
