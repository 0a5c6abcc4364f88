#include "blocks.h"

#include <cstring>
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

// A row of the image at a time: runs of blocks that are alike are copied or cleared together.
void block_mask(const BlockMask& m, int threads) {
    const int64_t size = m.element_size, across = m.across(), row_bytes = m.width * size;
    share(m.batch, m.batch * m.channels * m.height * m.width, threads, [&](int64_t begin, int64_t end) {
        std::vector<int64_t> ranks(m.down() * across);
        std::vector<char> ones(row_bytes);
        for (int64_t i = 0; i < m.width; ++i) std::memcpy(&ones[i * size], &m.one, size);
        for (int64_t b = begin; b < end; ++b) {
            ranks_of(NoiseStream(m.seed, m.draw, m.ids ? m.ids[b] : b, m.stream), m.down() * across, ranks.data());
            const auto visible = [&](int64_t h, int64_t j) {
                return ranks[h / m.block_height * across + j] >= m.threshold[b];
            };
            for (int64_t c = -1; c < m.channels; ++c)  // the mask itself, then the channels
                for (int64_t h = 0; h < m.height; ++h) {
                    const int64_t row = c < 0 ? b * m.height + h : (b * m.channels + c) * m.height + h;
                    char* to = static_cast<char*>(c < 0 ? m.mask : m.out) + row * row_bytes;
                    const char* from = c < 0 ? ones.data() : static_cast<const char*>(m.x) + row * row_bytes;
                    for (int64_t j = 0, next; j < across; j = next) {
                        for (next = j + 1; next < across && visible(h, next) == visible(h, j);) ++next;
                        const int64_t at = j * m.block_width * size;
                        const int64_t bytes = std::min(next * m.block_width, m.width) * size - at;
                        if (visible(h, j)) std::memcpy(to + at, from + at, bytes);
                        else std::memset(to + at, 0, bytes);
                    }
                }
        }
    });
}

}  // namespace mmfast
