// The block mask of the masked-image task: which blocks of an image are hidden, and the image without them.
#pragma once

#include <cstdint>

namespace mmfast {

struct BlockMask {
    int64_t batch, channels, height, width, block_height, block_width;
    int64_t element_size;
    int64_t seed, draw;
    const int64_t* ids;  // [batch]; null: the samples' own numbers
    uint32_t stream;
    const int64_t* threshold;  // [batch]: a block is hidden where its rank is below
    const void* x;             // [batch, channels, height, width]
    void* out;                 // the same
    void* mask;                // [batch, 1, height, width]
    uint64_t one;              // the bits of 1 in x's type

    int64_t down() const { return (height + block_height - 1) / block_height; }
    int64_t across() const { return (width + block_width - 1) / block_width; }
};

// ranks[b, j] = word_j * 2^31 + j, word_j being word j % 4 of Philox block j / 4 of sample b.
void block_ranks(int64_t seed, int64_t draw, const int64_t* ids, uint32_t stream, int64_t batch, int64_t blocks,
                 int64_t* ranks, int threads);
void block_mask(const BlockMask& m, int threads);

}  // namespace mmfast
