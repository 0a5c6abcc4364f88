// The noise of one sample, and the normals of given words, for any lane type.
#pragma once

#include "../normal.h"
#include "vectors.h"

namespace mmfast {

// The 8 W normals from element 4 * first_block on, in order. It makes two tiles of blocks at once, because
// the ten rounds of one are a chain too long for the processor's scheduler to look past.
template <class L>
MMFAST_HD void tile(L, const NoiseStream& stream, uint32_t first_block, float* to) {
    typename Twice<L>::F n[4];
    normals<Twice<L>>(stream, first_block, n);
    const typename L::F a[4] = {n[0].a, n[1].a, n[2].a, n[3].a}, b[4] = {n[0].b, n[1].b, n[2].b, n[3].b};
    L::store_in_order(to, a);
    L::store_in_order(to + 4 * L::W, b);
}

// Generates a block at a time, and keeps the last one because short rows share it.
template <class L>
struct Noise {
    NoiseStream stream;
    int64_t have = -1;
    alignas(64) float normal[kBlock];

    Noise(const Plan& plan, int64_t b)
        : stream(plan.noisy ? NoiseStream(plan.seed, plan.draw, plan.id(b), plan.stream) : NoiseStream()) {}

    // The normals from `element` to the end of its block; n is reduced to their number.
    const float* from(int64_t element, int64_t& n) {
        const int64_t block = element / kBlock, offset = element % kBlock;
        if (block != have)
            for (int i = 0; i < kBlock; i += 8 * L::W)
                tile(L{}, stream, static_cast<uint32_t>((block * kBlock + i) / 4), normal + i);
        have = block;
        n = least(n, kBlock - offset);
        return normal + offset;
    }
};

// The normals of W pairs of words.
template <class L>
MMFAST_HD void pairs(L, const uint32_t* a, const uint32_t* b, float* first, float* second) {
    const auto words = [](const uint32_t* p) { return L::bits(L::F32::load(reinterpret_cast<const float*>(p))); };
    typename L::F x, y;
    normal_pair<L>(words(a), words(b), x, y);
    L::F32::store(first, x);
    L::F32::store(second, y);
}

template <class L>
void box_muller(const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n) {
    for (int64_t i = 0; i < n; i += L::W) pairs(L{}, a + i, b + i, first + i, second + i);
}

}  // namespace mmfast
