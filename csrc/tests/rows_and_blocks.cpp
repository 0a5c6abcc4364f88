// Checks sums of rows, and images with hidden blocks, element by element.
#include <algorithm>

#include "../cpu/blocks.h"
#include "checks.h"
#include "machines.h"
#include "noise.h"

namespace mmfast::tests {

void check_row_sums(Type type, int64_t rows, int64_t inner, uint64_t seed) {
    Random random(seed);
    const Buffer x(rows * inner * size_of(type), random.below(17) * size_of(type));
    for (int64_t i = 0; i < rows * inner; ++i) write_random(type, x.at(), i, random);
    const auto got = on_every_machine("row_sums", [&](int threads) {
        std::vector<Buffer> outputs;
        outputs.emplace_back(rows * 8);
        row_sums(x.at(), rows, inner, type, threads, outputs[0].at<double>());
        return outputs;
    });
    for (int64_t r = 0; r < rows; ++r) {
        double sum = 0.0, size = 0.0;
        for (int64_t i = 0; i < inner; ++i) {
            const double value = read(type, x.at(), r * inner + i);
            sum += value, size += std::fabs(value);
        }
        expect(std::fabs(got[0].at<double>()[r] - sum) <= inner * DBL_EPSILON * size, [&] {
            return "row_sums of " + std::to_string(rows) + " x " + std::to_string(inner) + " " + name_of(type);
        });
    }
}

void check_blocks(int64_t element_size, uint64_t seed) {
    Random random(seed);
    BlockMask m{};
    const int64_t sizes[] = {0, 1, 2, 3, 7, 8, 17, 32};
    m.batch = random.below(5), m.channels = random.below(4);
    m.height = random.one_of(sizes), m.width = random.one_of(sizes);
    if (seed % 8 == 0) m.batch = 7, m.channels = 3, m.height = 93, m.width = 101;  // enough for every thread
    m.block_height = 1 + random.below(10), m.block_width = 1 + random.below(10);
    m.element_size = element_size, m.one = random.bits();
    m.of.seed = static_cast<int64_t>(random.bits()), m.of.draw = random.below(1000);
    m.of.stream = static_cast<uint32_t>(random.below(1 << 16));
    const int64_t pixels = m.height * m.width, one_mask = m.batch * pixels * element_size;
    Buffer threshold(m.batch * 8), ids(m.batch * 8), x(one_mask * m.channels, random.below(9) * element_size);
    for (int64_t b = 0; b < m.batch; ++b) {
        const int64_t some[] = {INT64_MIN, 0, INT64_MAX, static_cast<int64_t>(random.bits() >> 1)};
        threshold.at<int64_t>()[b] = random.one_in(2) ? some[3] : random.one_of(some);
        ids.at<int64_t>()[b] = random.below(int64_t{1} << 48);
    }
    for (int64_t i = 0; i < x.bytes(); ++i) x.at<unsigned char>()[i] = static_cast<unsigned char>(random.bits());
    m.hidden = threshold.at<int64_t>(), m.x = x.at();
    if (random.one_in(2)) m.of.ids = ids.at<int64_t>();
    // Half the time, hide a number of blocks: those of lowest rank. The rank of the first visible one is the threshold.
    m.exact = random.one_in(2);
    Buffer counts(m.batch * 8);
    const int64_t blocks = m.down() * m.across();
    for (int64_t b = 0; m.exact && b < m.batch; ++b) {
        const int64_t count = random.below(blocks + 1), id = m.of.ids ? m.of.ids[b] : b;
        std::vector<int64_t> ranks;
        for (int64_t j = 0; j < blocks; ++j)
            ranks.push_back(int64_t{words_of(m.of.seed, m.of.draw, id, m.of.stream, static_cast<uint32_t>(j / 4))[j % 4]} * (int64_t{1} << 31) + j);
        std::sort(ranks.begin(), ranks.end());
        counts.at<int64_t>()[b] = count;
        threshold.at<int64_t>()[b] = count < blocks ? ranks[count] : INT64_MAX;
    }
    if (m.exact) m.hidden = counts.at<int64_t>();
    const int64_t offset = random.below(5) * element_size;
    const auto got = on_every_machine("block_mask", [&](int threads) {
        std::vector<Buffer> outputs;
        outputs.emplace_back(x.bytes(), offset), outputs.emplace_back(one_mask, offset);
        m.out = outputs[0].at(), m.mask = outputs[1].at();
        block_mask(m, threads);
        return outputs;
    });
    const uint64_t zero = 0;
    const auto is = [&](const Buffer& image, int64_t i, const void* value) {
        return std::memcmp(image.at<char>() + i * element_size, value, element_size) == 0;
    };
    for (int64_t i = 0; i < m.batch * pixels; ++i) {
        const int64_t b = i / pixels, h = i % pixels / m.width, w = i % m.width;
        const int64_t j = h / m.block_height * ((m.width + m.block_width - 1) / m.block_width) + w / m.block_width;
        const int64_t id = m.of.ids ? m.of.ids[b] : b;
        const uint32_t word = words_of(m.of.seed, m.of.draw, id, m.of.stream, static_cast<uint32_t>(j / 4))[j % 4];
        const bool visible = int64_t{word} * (int64_t{1} << 31) + j >= threshold.at<int64_t>()[b];
        expect(is(got[1], i, visible ? &m.one : &zero), "block_mask: the mask is wrong");
        for (int64_t c = 0; c < m.channels; ++c) {
            const int64_t at = (b * m.channels + c) * pixels + i % pixels;
            const void* want = visible ? x.at<char>() + at * element_size : reinterpret_cast<const char*>(&zero);
            expect(is(got[0], at, want), "block_mask: an element is wrong");
        }
    }
}

}  // namespace mmfast::tests
