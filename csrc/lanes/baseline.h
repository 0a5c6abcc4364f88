// The host's kernel for any CPU: the scalar lane in loops over 16 blocks, which compilers vectorise as far
// as the target allows. scalar.h defines the interface.
#pragma once

#include "../half.h"
#include "../normal.h"
#include "scalar.h"

namespace mmfast {

struct Baseline {
    static constexpr int W = 16;
    struct F32 {
        using V = float;
        static constexpr int width = 1;
        static MMFAST_HD V splat(float a) { return a; }
        static MMFAST_HD V fma(V a, V b, V c) { return fused(a, b, c); }
        static MMFAST_HD V clamp(V a, V low, V high) { return a < low ? low : a > high ? high : a; }
        template <class T>
        static MMFAST_HD V load(const T* p) { return widen(*p); }
        template <class T>
        static MMFAST_HD void store(T* p, V v) { narrow(v, *p); }
        template <class T>
        static MMFAST_HD void stream(T* p, V v) { narrow(v, *p); }
    };
    struct F64 {
        using V = double;
        static constexpr int width = 1;
        static MMFAST_HD V splat(double a) { return a; }
        static MMFAST_HD V fma(V a, V b, V c) { return std::fma(a, b, c); }
        static MMFAST_HD V clamp(V a, V low, V high) { return a < low ? low : a > high ? high : a; }
        template <class T>
        static MMFAST_HD V load(const T* p) { return *p; }
        static MMFAST_HD void store(double* p, V v) { *p = v; }
        static MMFAST_HD void stream(double* p, V v) { *p = v; }
    };
    static MMFAST_HD void fence() {}
};

// The 8 W normals from element 4 * first_block on, in order.
MMFAST_HD void tile(Baseline, const NoiseStream& stream, uint32_t first_block, float* to) {
    constexpr int n_blocks = 2 * Baseline::W;
    uint32_t word[4][n_blocks];
    float n[4][n_blocks];
    for (int i = 0; i < n_blocks; ++i) {
        uint32_t w[4];
        philox<Scalar>(stream, first_block + static_cast<uint32_t>(i), w);
        for (int j = 0; j < 4; ++j) word[j][i] = w[j];
    }
    for (int i = 0; i < n_blocks; ++i) normal_pair<Scalar>(word[0][i], word[1][i], n[0][i], n[1][i]);
    for (int i = 0; i < n_blocks; ++i) normal_pair<Scalar>(word[2][i], word[3][i], n[2][i], n[3][i]);
    for (int i = 0; i < n_blocks; ++i)
        for (int j = 0; j < 4; ++j) to[4 * i + j] = n[j][i];
}

MMFAST_HD void pairs(Baseline, const uint32_t* a, const uint32_t* b, float* first, float* second) {
    for (int i = 0; i < Baseline::W; ++i) normal_pair<Scalar>(a[i], b[i], first[i], second[i]);
}

}  // namespace mmfast
