#include "blocks.h"

#include <algorithm>
#include <vector>

#include "../lanes/scalar.h"
#include "threads.h"

namespace mmfast {
namespace {

NoiseStream stream_of(const Identities& of, int64_t b) {
    return NoiseStream(of.seed, of.draw, of.ids ? of.ids[b] : b, of.stream);
}

void words_of(const NoiseStream& stream, int64_t count, int64_t* words) {
    for (int64_t j = 0; j < count; j += 4) {
        uint32_t word[4];
        philox<Scalar>(stream, static_cast<uint32_t>(j / 4), word);
        for (int64_t i = j; i < std::min(j + 4, count); ++i) words[i] = word[i - j];
    }
}

}  // namespace

void random_words(const Identities& of, int64_t batch, int64_t count, int64_t* words, int threads) {
    share(batch, batch * count, threads, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) words_of(stream_of(of, b), count, words + b * count);
    });
}

namespace {

// Word has the size of an element. One row of words, with all bits set where visible, serves all rows of its blocks in
// all channels; a bitwise `and` with it hides whatever the image holds.
template <class Word>
void mask_samples(const BlockMask& m, int64_t begin, int64_t end) {
    const int64_t across = m.across(), pixels = m.height * m.width;
    std::vector<int64_t> ranks(m.down() * across), order;
    const int64_t blocks = static_cast<int64_t>(ranks.size());
    std::vector<Word> visible(m.width);
    const Word one = static_cast<Word>(m.one);
    for (int64_t b = begin; b < end; ++b) {
        words_of(stream_of(m.of, b), blocks, ranks.data());
        for (int64_t j = 0; j < blocks; ++j) ranks[j] = (ranks[j] << 31) + j;
        int64_t threshold = m.hidden ? m.hidden[b] : m.hidden_of_all;
        if (m.exact && threshold < blocks) {  // the rank of the first visible block
            order = ranks;
            std::nth_element(order.begin(), order.begin() + threshold, order.end());
            threshold = order[threshold];
        } else if (m.exact) {
            threshold = INT64_MAX;
        }
        for (int64_t h = 0; h < m.height; ++h) {
            const int64_t* row = ranks.data() + h / m.block_height * across;
            for (int64_t j = 0; h % m.block_height == 0 && j < across; ++j)
                std::fill(visible.begin() + j * m.block_width, visible.begin() + std::min((j + 1) * m.block_width, m.width),
                          row[j] >= threshold ? static_cast<Word>(~Word{0}) : Word{0});
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
