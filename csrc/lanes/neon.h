// 4 lanes in AArch64 NEON. scalar.h defines the interface.
#pragma once

#include <arm_neon.h>

#include "../half.h"

namespace mmfast {

struct Neon {
    static constexpr int W = 4;
    using C = uint32x4_t;  // lane i is block i: one 128-bit group
    using U = uint32x4_t;
    using F = float32x4_t;

    static MMFAST_HD C blocks(uint32_t first) {
        const uint32_t step[4] = {0, 1, 2, 3};
        return vaddq_u32(vdupq_n_u32(first), vld1q_u32(step));
    }
    static MMFAST_HD void mul(C x, uint32_t m, C& high, C& low) {
        const uint32x2_t v = vdup_n_u32(m);
        const uint32x4_t front = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(x), v));
        const uint32x4_t back = vreinterpretq_u32_u64(vmull_u32(vget_high_u32(x), v));
        low = vuzp1q_u32(front, back);
        high = vuzp2q_u32(front, back);
    }
    static MMFAST_HD C xor_(C x, uint32_t k) { return veorq_u32(x, vdupq_n_u32(k)); }
    static MMFAST_HD C xor3(C x, C y, uint32_t k) { return xor_(veorq_u32(x, y), k); }
    static MMFAST_HD U word(C x) { return x; }

    static MMFAST_HD U add(U a, uint32_t b) { return vaddq_u32(a, vdupq_n_u32(b)); }
    static MMFAST_HD U and_(U a, uint32_t b) { return vandq_u32(a, vdupq_n_u32(b)); }
    template <int N>
    static MMFAST_HD U shift_left(U a) { return vshlq_n_u32(a, N); }
    template <int N>
    static MMFAST_HD U shift_right(U a) { return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a), N)); }
    static MMFAST_HD U bits(F a) { return vreinterpretq_u32_f32(a); }
    static MMFAST_HD F as_float(U a) { return vreinterpretq_f32_u32(a); }

    static MMFAST_HD F splat(float a) { return vdupq_n_f32(a); }
    static MMFAST_HD F mul(F a, F b) { return vmulq_f32(a, b); }
    static MMFAST_HD F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static MMFAST_HD F sqrt(F a) { return vsqrtq_f32(a); }
    static MMFAST_HD F from_unsigned(U a) { return vcvtq_f32_u32(a); }
    static MMFAST_HD F from_signed(U a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
    static MMFAST_HD void swap_if_bit30(U t, F& a, F& b) {
        const U swap = vtstq_u32(t, vdupq_n_u32(0x40000000u));
        const F old = a;
        a = vbslq_f32(swap, b, a);
        b = vbslq_f32(swap, old, b);
    }
    static MMFAST_HD F flip_if_bit31(U t, F a) { return as_float(veorq_u32(bits(a), and_(t, 0x80000000u))); }

    static MMFAST_HD void store_in_order(float* to, const F n[4]) {
        vst4q_f32(to, (float32x4x4_t{{n[0], n[1], n[2], n[3]}}));
    }

    // Arithmetic on the tensors' elements. NEON has no intrinsic for a streaming store.
    struct F32 {
        using V = float32x4_t;
        static constexpr int width = 4;
        static MMFAST_HD V splat(float a) { return vdupq_n_f32(a); }
        static MMFAST_HD V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
        static MMFAST_HD V clamp(V a, V low, V high) { return vminq_f32(high, vmaxq_f32(low, a)); }  // NaN stays
        static MMFAST_HD V load(const float* p) { return vld1q_f32(p); }
        static MMFAST_HD V load(const f16* p) {
            return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
        }
        static MMFAST_HD V load(const bf16* p) {
            return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
        }
        static MMFAST_HD void store(float* p, V v) { vst1q_f32(p, v); }
        static MMFAST_HD void store(f16* p, V v) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
        static MMFAST_HD void store(bf16* p, V v) {
            const uint32x4_t b = vreinterpretq_u32_f32(v);
            const uint32x4_t even = vandq_u32(vshrq_n_u32(b, 16), vdupq_n_u32(1));
            const uint32x4_t rounded = vaddq_u32(vaddq_u32(b, vdupq_n_u32(0x7FFF)), even);
            const uint32x4_t number = vceqq_f32(v, v);
            vst1_u16(&p->bits, vshrn_n_u32(vbslq_u32(number, rounded, vdupq_n_u32(0x7FC00000)), 16));
        }
        template <class T>
        static MMFAST_HD void stream(T* p, V v) { store(p, v); }
    };
    struct F64 {
        using V = float64x2_t;
        static constexpr int width = 2;
        static MMFAST_HD V splat(double a) { return vdupq_n_f64(a); }
        static MMFAST_HD V fma(V a, V b, V c) { return vfmaq_f64(c, a, b); }
        static MMFAST_HD V clamp(V a, V low, V high) { return vminq_f64(high, vmaxq_f64(low, a)); }
        static MMFAST_HD V load(const double* p) { return vld1q_f64(p); }
        static MMFAST_HD V load(const float* p) { return vcvt_f64_f32(vld1_f32(p)); }
        static MMFAST_HD void store(double* p, V v) { vst1q_f64(p, v); }
        static MMFAST_HD void stream(double* p, V v) { store(p, v); }
    };
    static MMFAST_HD void fence() {}
};

}  // namespace mmfast
