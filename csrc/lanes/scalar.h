// One lane, for the plain host and the CUDA device. Every lane type offers this interface to philox.h and
// normal.h:
//     W                          the number of blocks computed at once
//     C, blocks, mul, xor_, xor3, word    Philox words, in the form that is fastest to multiply
//     U                          W 32-bit integers: add, and_, shifts, bits, as_float
//     F                          W floats: splat, mul, fma, sqrt, from_signed, from_unsigned
//     swap_if_bit30, flip_if_bit31        selection by bits of a U
// All float operations round to nearest even; fma rounds once.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../philox.h"

namespace mmfast {

// a * b + c rounded once, for targets without such an instruction. The product of two floats is exact in
// double, so only the sum is rounded twice: to double, then to float. That matters only if the first
// rounding lands on a tie of the second, when bit 28, the highest of the dropped bits, is set and all below
// it are clear (or if the result is subnormal and drops more bits). In that case the sum is first rounded to
// odd: if it is inexact, a step towards the exact sum sets its last bit.
MMFAST_HD float fused_by_double(float a, float b, float c) {
    const double product = static_cast<double>(a) * b, addend = c;
    double sum = product + addend;
    int64_t bits, sign;
    std::memcpy(&bits, &sum, 8);
    if ((bits & 0x1FFFFFFF) == 0x10000000 || std::fabs(sum) < 0x1p-125) {
        const double back = sum - product;
        const double error = (product - (sum - back)) + (addend - back);  // exact (Knuth's two-sum)
        std::memcpy(&sign, &error, 8);
        if ((error < 0.0 || error > 0.0) && (bits & 1) == 0) {
            bits += (bits ^ sign) < 0 ? -1 : 1;
            std::memcpy(&sum, &bits, 8);
        }
    }
    return static_cast<float>(sum);
}
MMFAST_HD float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#elif defined(FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__) || defined(_M_ARM64)
    return std::fma(a, b, c);
#else
    return fused_by_double(a, b, c);
#endif
}

struct Scalar {
    static constexpr int W = 1;
    using C = uint32_t;
    using U = uint32_t;
    using F = float;

    static MMFAST_HD C blocks(uint32_t first) { return first; }
    static MMFAST_HD void mul(C a, uint32_t m, C& high, C& low) {
        const uint64_t product = static_cast<uint64_t>(a) * m;
        high = static_cast<uint32_t>(product >> 32);
        low = static_cast<uint32_t>(product);
    }
    static MMFAST_HD C xor_(C a, uint32_t b) { return a ^ b; }
    static MMFAST_HD C xor3(C a, C b, uint32_t c) { return a ^ b ^ c; }
    static MMFAST_HD U word(C a) { return a; }

    static MMFAST_HD U add(U a, uint32_t b) { return a + b; }
    static MMFAST_HD U and_(U a, uint32_t b) { return a & b; }
    template <int N>
    static MMFAST_HD U shift_left(U a) { return a << N; }
    template <int N>
    static MMFAST_HD U shift_right(U a) { return static_cast<U>(static_cast<int32_t>(a) >> N); }  // signed

#if defined(__CUDA_ARCH__)
    static MMFAST_HD U bits(F a) { return __float_as_uint(a); }
    static MMFAST_HD F as_float(U a) { return __uint_as_float(a); }
    static MMFAST_HD F mul(F a, F b) { return __fmul_rn(a, b); }
    static MMFAST_HD F sqrt(F a) { return __fsqrt_rn(a); }
#else
    static MMFAST_HD U bits(F a) { U b; std::memcpy(&b, &a, 4); return b; }
    static MMFAST_HD F as_float(U a) { F b; std::memcpy(&b, &a, 4); return b; }
    static MMFAST_HD F mul(F a, F b) { return a * b; }
    static MMFAST_HD F sqrt(F a) { return std::sqrt(a); }
#endif
    static MMFAST_HD F splat(float a) { return a; }
    static MMFAST_HD F fma(F a, F b, F c) { return fused(a, b, c); }
    static MMFAST_HD F from_unsigned(U a) { return static_cast<float>(a); }
    static MMFAST_HD F from_signed(U a) { return static_cast<float>(static_cast<int32_t>(a)); }
    static MMFAST_HD void swap_if_bit30(U t, F& a, F& b) {
        const F old = a;
        a = t & 0x40000000u ? b : a;
        b = t & 0x40000000u ? old : b;
    }
    static MMFAST_HD F flip_if_bit31(U t, F a) { return as_float(bits(a) ^ (t & 0x80000000u)); }
};

}  // namespace mmfast
