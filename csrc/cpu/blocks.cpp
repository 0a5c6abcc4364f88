#include "blocks.h"

#include <algorithm>
#include <vector>

#include "../lanes/scalar.h"
#include "threads.h"

namespace mmfast {
namespace {

void ranks_of(const NoiseStream& stream, int64_t blocks, int64_t* ranks) {
    for (int64_t j = 0; j < blocks; j += 4) {
        uint32_t word[4];
        philox<Scalar>(stream, static_cast<uint32_t>(j / 4), word);
        for (int64_t i = j; i < std::min(j + 4, blocks); ++i) ranks[i] = (int64_t{word[i - j]} << 31) + i;
    }
}

}  // namespace

void block_ranks(int64_t seed, int64_t draw, const int64_t* ids, uint32_t stream, int64_t batch, int64_t blocks,
                 int64_t* ranks, int threads) {
    share(batch, batch * blocks, threads, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            ranks_of(NoiseStream(seed, draw, ids ? ids[b] : b, stream), blocks, ranks + b * blocks);
    });
}

namespace {

// Word has the size of an element. A row of words, all ones where visible, serves every row of its blocks, in every
// channel; `and` with it hides whatever the image holds.
template <class Word>
void mask_samples(const BlockMask& m, int64_t begin, int64_t end) {
    const int64_t across = m.across(), pixels = m.height * m.width;
    std::vector<int64_t> ranks(m.down() * across);
    std::vector<Word> visible(m.width);
    const Word one = static_cast<Word>(m.one);
    for (int64_t b = begin; b < end; ++b) {
        ranks_of(NoiseStream(m.seed, m.draw, m.ids ? m.ids[b] : b, m.stream), m.down() * across, ranks.data());
        for (int64_t h = 0; h < m.height; ++h) {
            const int64_t* row = ranks.data() + h / m.block_height * across;
            for (int64_t j = 0; h % m.block_height == 0 && j < across; ++j)
                std::fill(visible.begin() + j * m.block_width, visible.begin() + std::min((j + 1) * m.block_width, m.width),
                          row[j] >= m.threshold[b] ? static_cast<Word>(~Word{0}) : Word{0});
            const Word* seen = visible.data();
            Word* mask = static_cast<Word*>(m.mask) + b * pixels + h * m.width;
            for (int64_t i = 0; i < m.width; ++i) mask[i] = one & seen[i];
            for (int64_t c = 0; c < m.channels; ++c) {
                const int64_t at = (b * m.channels + c) * pixels + h * m.width;
                const Word* x = static_cast<const Word*>(m.x) + at;
                Word* out = static_cast<Word*>(m.out) + at;
                for (int64_t i = 0; i < m.width; ++i) out[i] = x[i] & seen[i];
            }
        }
    }
}

}  // namespace

void block_mask(const BlockMask& m, int threads) {
    share(m.batch, m.batch * m.channels * m.height * m.width, threads, [&](int64_t begin, int64_t end) {
        if (m.element_size == 8) mask_samples<uint64_t>(m, begin, end);
        else if (m.element_size == 4) mask_samples<uint32_t>(m, begin, end);
        else mask_samples<uint16_t>(m, begin, end);
    });
}

}  // namespace mmfast
