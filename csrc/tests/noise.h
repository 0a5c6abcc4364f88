// The noise computed by its definition: Philox in ten plain rounds, and Box-Muller in double.
#pragma once

#include <array>
#include <vector>

#include "elements.h"

namespace mmfast::tests {

using Words = std::array<uint32_t, 4>;

inline Words philox_by_definition(Words c, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t p = uint64_t{0xD2511F53u} * c[0], q = uint64_t{0xCD9E8D57u} * c[2];
        c = {static_cast<uint32_t>(q >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(q),
             static_cast<uint32_t>(p >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p)};
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return c;
}

// Block j of a sample.
inline Words words_of(int64_t seed, int64_t draw, int64_t id, uint32_t stream, uint32_t j) {
    const auto half = [](int64_t x, int shift) { return static_cast<uint32_t>(static_cast<uint64_t>(x) >> shift); };
    return philox_by_definition({j, half(draw, 0), half(id, 0), (half(id, 32) & 0xFFFFu) | stream << 16},
                                half(seed, 0), half(seed, 32));
}

// The angle is split in integers into quarter turns and a remainder, so that its zeros are exact.
inline void box_muller_by_definition(uint32_t a, uint32_t b, float& first, float& second) {
    const double pi = 3.14159265358979323846;
    const double wide = static_cast<double>(static_cast<float>(a)) * 0x1p-32 + 0x1p-33;
    const double r = std::sqrt(-2.0 * std::log(static_cast<double>(static_cast<float>(wide))));
    const int64_t turn = int64_t{b} + (1 << 29), quarter = turn >> 30 & 3;
    const double rest = static_cast<double>((turn & ((1 << 30) - 1)) - (1 << 29)) * (pi * 0x1p-31);
    const double cosines[] = {std::cos(rest), -std::sin(rest), -std::cos(rest), std::sin(rest)};
    first = static_cast<float>(r * cosines[quarter]);
    second = static_cast<float>(r * cosines[(quarter + 3) & 3]);
}

// Elements [0, count) of a sample.
inline std::vector<float> noise_by_definition(int64_t seed, int64_t draw, int64_t id, uint32_t stream, int64_t count) {
    std::vector<float> eps((count + 3) / 4 * 4);
    for (int64_t j = 0; j < count; j += 4) {
        const Words w = words_of(seed, draw, id, stream, static_cast<uint32_t>(j / 4));
        box_muller_by_definition(w[0], w[1], eps[j], eps[j + 1]);
        box_muller_by_definition(w[2], w[3], eps[j + 2], eps[j + 3]);
    }
    eps.resize(count);
    return eps;
}

inline int64_t ulps(float a, float b) {
    const auto ordered = [](float x) {
        const int64_t bits = load<int32_t>(&x);
        return bits < 0 ? -(bits & 0x7FFFFFFF) : bits;
    };
    return std::isnan(a) || std::isnan(b) ? INT64_MAX : std::llabs(ordered(a) - ordered(b));
}

}  // namespace mmfast::tests
