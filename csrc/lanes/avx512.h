// 16 lanes in AVX-512 (F, BW, DQ, VL). scalar.h defines the interface.
//
// Philox words are in 64-bit lanes. vpmuludq reads only the low half of each, so a product can be used as
// its own low word without clearing the upper half; the high word is one shift away.
//
// Output order: n[0..3] hold elements 4j, 4j+1, 4j+2, 4j+3 of the blocks j in their lanes. Unpacking
// (floats, then pairs of floats) turns 128-bit group g of the four vectors into the four elements of
// each of its four blocks, with block i in vector i. For the vectors to be in memory order, lane i of
// group g must hold block 4i + g. `blocks` assigns them that way, so nothing ever crosses a group.
#pragma once

#include <immintrin.h>

#include "../half.h"

namespace mmfast {

struct Avx512 {
    static constexpr int W = 16;
    struct C { __m512i a, b; };  // lanes 0, 1 and 2, 3 of each group, in 64 bits each
    using U = __m512i;
    using F = __m512;

    static MMFAST_HD C blocks(uint32_t first) {
        const __m512i a = _mm512_add_epi32(_mm512_set1_epi64(first), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
        return {a, _mm512_add_epi32(a, _mm512_set1_epi64(8))};
    }
    static MMFAST_HD void mul(C x, uint32_t m, C& high, C& low) {
        const __m512i v = _mm512_set1_epi64(m);
        low = {_mm512_mul_epu32(x.a, v), _mm512_mul_epu32(x.b, v)};
        // A shift and a shuffle, because different ports execute them.
        high = {_mm512_srli_epi64(low.a, 32), _mm512_shuffle_epi32(low.b, _MM_PERM_DDBB)};
    }
    static MMFAST_HD C xor_(C x, uint32_t k) {
        const __m512i v = _mm512_set1_epi32(static_cast<int>(k));
        return {_mm512_xor_si512(x.a, v), _mm512_xor_si512(x.b, v)};
    }
    static MMFAST_HD C xor3(C x, C y, uint32_t k) {
        const __m512i v = _mm512_set1_epi32(static_cast<int>(k));
        return {_mm512_ternarylogic_epi32(x.a, y.a, v, 0x96), _mm512_ternarylogic_epi32(x.b, y.b, v, 0x96)};
    }
    static MMFAST_HD U word(C x) {
        return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(x.a), _mm512_castsi512_ps(x.b), 0x88));
    }

    static MMFAST_HD U add(U a, uint32_t b) { return _mm512_add_epi32(a, _mm512_set1_epi32(static_cast<int>(b))); }
    static MMFAST_HD U and_(U a, uint32_t b) { return _mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(b))); }
    template <int N>
    static MMFAST_HD U shift_left(U a) { return _mm512_slli_epi32(a, N); }
    template <int N>
    static MMFAST_HD U shift_right(U a) { return _mm512_srai_epi32(a, N); }
    static MMFAST_HD U bits(F a) { return _mm512_castps_si512(a); }
    static MMFAST_HD F as_float(U a) { return _mm512_castsi512_ps(a); }

    static MMFAST_HD F splat(float a) { return _mm512_set1_ps(a); }
    static MMFAST_HD F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static MMFAST_HD F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static MMFAST_HD F sqrt(F a) { return _mm512_sqrt_ps(a); }
    static MMFAST_HD F from_unsigned(U a) { return _mm512_cvtepu32_ps(a); }
    static MMFAST_HD F from_signed(U a) { return _mm512_cvtepi32_ps(a); }
    static MMFAST_HD void swap_if_bit30(U t, F& a, F& b) {
        const __mmask16 swap = _mm512_test_epi32_mask(t, _mm512_set1_epi32(0x40000000));
        const F old = a;
        a = _mm512_mask_blend_ps(swap, a, b);
        b = _mm512_mask_blend_ps(swap, b, old);
    }
    static MMFAST_HD F flip_if_bit31(U t, F a) {  // a ^ (t & sign bit)
        const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
        return as_float(_mm512_ternarylogic_epi32(bits(a), t, sign, 0x78));
    }

    static MMFAST_HD void store_in_order(float* to, const F n[4]) {
        const auto pd = [](F a) { return _mm512_castps_pd(a); };
        const __m512d low01 = pd(_mm512_unpacklo_ps(n[0], n[1])), high01 = pd(_mm512_unpackhi_ps(n[0], n[1]));
        const __m512d low23 = pd(_mm512_unpacklo_ps(n[2], n[3])), high23 = pd(_mm512_unpackhi_ps(n[2], n[3]));
        _mm512_store_pd(to, _mm512_unpacklo_pd(low01, low23));
        _mm512_store_pd(to + 16, _mm512_unpackhi_pd(low01, low23));
        _mm512_store_pd(to + 32, _mm512_unpacklo_pd(high01, high23));
        _mm512_store_pd(to + 48, _mm512_unpackhi_pd(high01, high23));
    }

    // Arithmetic on the tensors' elements. `stream` needs addresses aligned to a whole vector.
    struct F32 {
        using V = __m512;
        static constexpr int width = 16;
        static MMFAST_HD V splat(float a) { return _mm512_set1_ps(a); }
        static MMFAST_HD V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
        // If either operand is NaN, the result is the second, so a NaN is kept.
        static MMFAST_HD V clamp(V a, V low, V high) { return _mm512_min_ps(high, _mm512_max_ps(low, a)); }
        static MMFAST_HD V load(const float* p) { return _mm512_loadu_ps(p); }
        static MMFAST_HD V load(const f16* p) { return _mm512_cvtph_ps(half_bits(p)); }
        static MMFAST_HD V load(const bf16* p) {
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half_bits(p)), 16));
        }
        static MMFAST_HD void store(float* p, V v) { _mm512_storeu_ps(p, v); }
        static MMFAST_HD void stream(float* p, V v) { _mm512_stream_ps(p, v); }
        template <class T>
        static MMFAST_HD void store(T* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, p)); }
        template <class T>
        static MMFAST_HD void stream(T* p, V v) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(v, p)); }

    private:
        static MMFAST_HD __m256i half_bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
        static MMFAST_HD __m256i narrow(V v, f16*) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
        static MMFAST_HD __m256i narrow(V v, bf16*) {  // vcvtneps2bf16 would flush subnormals
            const __m512i b = _mm512_castps_si512(v);
            const __m512i even = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
            const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7FFF)), even);
            const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
            const __m512i top = _mm512_mask_blend_epi32(nan, rounded, _mm512_set1_epi32(0x7FC00000));
            return _mm512_cvtepi32_epi16(_mm512_srli_epi32(top, 16));
        }
    };
    struct F64 {
        using V = __m512d;
        static constexpr int width = 8;
        static MMFAST_HD V splat(double a) { return _mm512_set1_pd(a); }
        static MMFAST_HD V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
        static MMFAST_HD V clamp(V a, V low, V high) { return _mm512_min_pd(high, _mm512_max_pd(low, a)); }
        static MMFAST_HD V load(const double* p) { return _mm512_loadu_pd(p); }
        static MMFAST_HD V load(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
        static MMFAST_HD void store(double* p, V v) { _mm512_storeu_pd(p, v); }
        static MMFAST_HD void stream(double* p, V v) { _mm512_stream_pd(p, v); }
    };
    static MMFAST_HD void fence() { _mm_sfence(); }  // after the streaming stores
};

}  // namespace mmfast
