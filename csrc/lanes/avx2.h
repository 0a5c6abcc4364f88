// 8 lanes in AVX2 with FMA and F16C. scalar.h defines the interface, and avx512.h explains the two ideas:
// Philox words are in 64-bit lanes, and lane i of 128-bit group g holds block 2i + g.
#pragma once

#include <immintrin.h>

#include "../half.h"

namespace mmfast {

struct Avx2 {
    static constexpr int W = 8;
    struct C { __m256i a, b; };  // lanes 0, 1 and 2, 3 of each group, in 64 bits each
    using U = __m256i;
    using F = __m256;

    static MMFAST_HD C blocks(uint32_t first) {
        const __m256i a = _mm256_add_epi32(_mm256_set1_epi64x(first), _mm256_setr_epi64x(0, 2, 1, 3));
        return {a, _mm256_add_epi32(a, _mm256_set1_epi64x(4))};
    }
    static MMFAST_HD void mul(C x, uint32_t m, C& high, C& low) {
        const __m256i v = _mm256_set1_epi64x(m);
        low = {_mm256_mul_epu32(x.a, v), _mm256_mul_epu32(x.b, v)};
        high = {_mm256_srli_epi64(low.a, 32), _mm256_shuffle_epi32(low.b, 0xF5)};
    }
    static MMFAST_HD C xor_(C x, uint32_t k) {
        const __m256i v = _mm256_set1_epi32(static_cast<int>(k));
        return {_mm256_xor_si256(x.a, v), _mm256_xor_si256(x.b, v)};
    }
    static MMFAST_HD C xor3(C x, C y, uint32_t k) {
        return xor_({_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}, k);
    }
    static MMFAST_HD U word(C x) {
        return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b), 0x88));
    }

    static MMFAST_HD U add(U a, uint32_t b) { return _mm256_add_epi32(a, _mm256_set1_epi32(static_cast<int>(b))); }
    static MMFAST_HD U and_(U a, uint32_t b) { return _mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(b))); }
    template <int N>
    static MMFAST_HD U shift_left(U a) { return _mm256_slli_epi32(a, N); }
    template <int N>
    static MMFAST_HD U shift_right(U a) { return _mm256_srai_epi32(a, N); }
    static MMFAST_HD U bits(F a) { return _mm256_castps_si256(a); }
    static MMFAST_HD F as_float(U a) { return _mm256_castsi256_ps(a); }

    static MMFAST_HD F splat(float a) { return _mm256_set1_ps(a); }
    static MMFAST_HD F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static MMFAST_HD F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static MMFAST_HD F sqrt(F a) { return _mm256_sqrt_ps(a); }
    static MMFAST_HD F from_unsigned(U a) {  // both halves are exact, and the fma rounds once
        const F high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
        return fma(high, splat(65536.0f), _mm256_cvtepi32_ps(and_(a, 0xFFFFu)));
    }
    static MMFAST_HD F from_signed(U a) { return _mm256_cvtepi32_ps(a); }
    static MMFAST_HD void swap_if_bit30(U t, F& a, F& b) {
        const F swap = as_float(_mm256_slli_epi32(t, 1));  // blendv tests the sign bit
        const F old = a;
        a = _mm256_blendv_ps(a, b, swap);
        b = _mm256_blendv_ps(b, old, swap);
    }
    static MMFAST_HD F flip_if_bit31(U t, F a) { return _mm256_xor_ps(a, as_float(and_(t, 0x80000000u))); }

    static MMFAST_HD void store_in_order(float* to, const F n[4]) {
        const auto pd = [](F a) { return _mm256_castps_pd(a); };
        const auto put = [&](int i, __m256d v) { _mm256_store_ps(to + 8 * i, _mm256_castpd_ps(v)); };
        const __m256d low01 = pd(_mm256_unpacklo_ps(n[0], n[1])), high01 = pd(_mm256_unpackhi_ps(n[0], n[1]));
        const __m256d low23 = pd(_mm256_unpacklo_ps(n[2], n[3])), high23 = pd(_mm256_unpackhi_ps(n[2], n[3]));
        put(0, _mm256_unpacklo_pd(low01, low23));
        put(1, _mm256_unpackhi_pd(low01, low23));
        put(2, _mm256_unpacklo_pd(high01, high23));
        put(3, _mm256_unpackhi_pd(high01, high23));
    }

    // Arithmetic on the tensors' elements. `stream` needs addresses aligned to a whole vector.
    struct F32 {
        using V = __m256;
        static constexpr int width = 8;
        static MMFAST_HD V splat(float a) { return _mm256_set1_ps(a); }
        static MMFAST_HD V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
        // If either operand is NaN, the result is the second, so a NaN is kept.
        static MMFAST_HD V clamp(V a, V low, V high) { return _mm256_min_ps(high, _mm256_max_ps(low, a)); }
        static MMFAST_HD V load(const float* p) { return _mm256_loadu_ps(p); }
        static MMFAST_HD V load(const f16* p) { return _mm256_cvtph_ps(half_bits(p)); }
        static MMFAST_HD V load(const bf16* p) {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half_bits(p)), 16));
        }
        static MMFAST_HD void store(float* p, V v) { _mm256_storeu_ps(p, v); }
        static MMFAST_HD void stream(float* p, V v) { _mm256_stream_ps(p, v); }
        template <class T>
        static MMFAST_HD void store(T* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v, p)); }
        template <class T>
        static MMFAST_HD void stream(T* p, V v) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(v, p)); }

    private:
        static MMFAST_HD __m128i half_bits(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
        static MMFAST_HD __m128i narrow(V v, f16*) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
        static MMFAST_HD __m128i narrow(V v, bf16*) {
            const __m256i b = _mm256_castps_si256(v);
            const __m256i even = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
            const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7FFF)), even);
            const V nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
            const V quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
            const __m256i top = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, nan));
            const __m256i wide = _mm256_srli_epi32(top, 16);
            return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        }
    };
    struct F64 {
        using V = __m256d;
        static constexpr int width = 4;
        static MMFAST_HD V splat(double a) { return _mm256_set1_pd(a); }
        static MMFAST_HD V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
        static MMFAST_HD V clamp(V a, V low, V high) { return _mm256_min_pd(high, _mm256_max_pd(low, a)); }
        static MMFAST_HD V load(const double* p) { return _mm256_loadu_pd(p); }
        static MMFAST_HD V load(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
        static MMFAST_HD void store(double* p, V v) { _mm256_storeu_pd(p, v); }
        static MMFAST_HD void stream(double* p, V v) { _mm256_stream_pd(p, v); }
    };
    static MMFAST_HD void fence() { _mm_sfence(); }  // after the streaming stores
};

}  // namespace mmfast
