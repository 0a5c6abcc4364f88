// The block mask of the masked-image task: chooses the hidden blocks of an image, and hides them.
#pragma once

#include <cstdint>

namespace mmfast {

// The identities of the samples, which determine their random words.
struct Identities {
    int64_t seed, draw;
    const int64_t* ids;  // [batch]; null: 0, 1, ...
    uint32_t stream;
};

struct BlockMask {
    int64_t batch, channels, height, width, block_height, block_width;
    int64_t element_size;
    Identities of;
    // If `exact`, the `hidden` blocks of lowest rank are hidden, otherwise those with a rank below it. [batch], or null
    // for hidden_of_all in all samples. A block's rank is word_j * 2^31 + j, with word_j as in random_words.
    const int64_t* hidden;
    int64_t hidden_of_all;
    bool exact;
    const void* x;             // [batch, channels, height, width]
    void* out;                 // the same
    void* mask;                // [batch, 1, height, width]
    uint64_t one;              // the bits of 1 in x's type

    int64_t down() const { return (height + block_height - 1) / block_height; }
    int64_t across() const { return (width + block_width - 1) / block_width; }
};

// words[b, j] = word j % 4 of Philox block j / 4 of sample b.
void random_words(const Identities& of, int64_t batch, int64_t count, int64_t* words, int threads);
void block_mask(const BlockMask& m, int threads);

}  // namespace mmfast
