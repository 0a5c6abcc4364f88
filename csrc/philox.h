// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), for any lane type.
//
// The noise of a sample is a pure function of (seed, stream, sample id, draw, element). Block j holds
// elements 4j..4j+3 and has
//     key     = (seed low, seed high)
//     counter = (j, draw, id low, id bits 32..47 | stream << 16)
// j is 32 bits wide, so a sample has at most 2^34 elements.
//
// Only j varies within a sample. So one of the two products of round 1 and one of round 2 are constant
// for a sample; NoiseStream holds them, and the lanes compute the rest.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MMFAST_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Always inlined, because the header is compiled for several instruction sets, and an out-of-line copy
// for one of them must never be linked into another.
#define MMFAST_HD inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define MMFAST_HD __forceinline
#else
#define MMFAST_HD inline
#endif

namespace mmfast {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;  // key increments

MMFAST_HD uint32_t mul_high(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

// The part of a sample's noise that does not depend on the element.
struct NoiseStream {
    uint32_t round1;              // xored into word 2 by round 1
    uint32_t round2[3];           // xored into words 0 and 2 by round 2; word 3 after round 2 ^ next key
    uint32_t key[7][2];           // round keys of rounds 4..10
    uint32_t key3;                // word 0's round key of round 3

    NoiseStream() = default;
    MMFAST_HD NoiseStream(int64_t seed, int64_t draw, int64_t id, uint32_t stream) {
        const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        const uint32_t c1 = static_cast<uint32_t>(draw), c2 = static_cast<uint32_t>(id);
        const uint32_t c3 = (static_cast<uint32_t>(id >> 32) & 0xFFFFu) | stream << 16;
        const uint32_t word0 = mul_high(kPhiloxM1, c2) ^ c1 ^ k0;  // after round 1
        const uint32_t word1 = kPhiloxM1 * c2;
        round1 = c3 ^ k1;
        round2[0] = word1 ^ (k0 + kPhiloxW0);
        round2[1] = mul_high(kPhiloxM0, word0) ^ (k1 + kPhiloxW1);
        round2[2] = kPhiloxM0 * word0 ^ (k1 + 2 * kPhiloxW1);
        key3 = k0 + 2 * kPhiloxW0;
        for (uint32_t r = 0; r < 7; ++r) {
            key[r][0] = k0 + (r + 3) * kPhiloxW0;
            key[r][1] = k1 + (r + 3) * kPhiloxW1;
        }
    }
};

// The four output words of the blocks `j`. For its vector C of Philox words, L provides
//     mul(C a, uint32_t m, C& high, C& low)   the halves of the 64-bit products
//     xor_(C, uint32_t), xor3(C, C, uint32_t)
template <class L, class C>
MMFAST_HD void philox(const NoiseStream& s, C j, C word[4]) {
    C high, low, x0, x1, x2, x3;
    L::mul(j, kPhiloxM0, high, low);  // round 1
    x2 = L::xor_(high, s.round1);
    x3 = low;
    L::mul(x2, kPhiloxM1, high, low);  // round 2
    x0 = L::xor_(high, s.round2[0]);
    x1 = low;
    x2 = L::xor_(x3, s.round2[1]);
    C high0, low0;
    L::mul(x0, kPhiloxM0, high0, low0);  // round 3
    L::mul(x2, kPhiloxM1, high, low);
    x0 = L::xor3(high, x1, s.key3);
    x1 = low;
    x2 = L::xor_(high0, s.round2[2]);
    x3 = low0;
#if defined(__CUDACC__) || defined(__clang__)
#pragma unroll
#elif defined(__GNUC__)
#pragma GCC unroll 7
#endif
    for (int r = 0; r < 7; ++r) {  // rounds 4 to 10
        L::mul(x0, kPhiloxM0, high0, low0);
        L::mul(x2, kPhiloxM1, high, low);
        x0 = L::xor3(high, x1, s.key[r][0]);
        x1 = low;
        x2 = L::xor3(high0, x3, s.key[r][1]);
        x3 = low0;
    }
    word[0] = x0, word[1] = x1, word[2] = x2, word[3] = x3;
}

}  // namespace mmfast
