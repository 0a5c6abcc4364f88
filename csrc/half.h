// bfloat16 and float16 as storage types, and conversions for lanes that have no instructions for them.
// Stores round to nearest even. Any NaN becomes 0x7FC0 in bfloat16, and a quiet NaN in float16.
#pragma once

#include "philox.h"

#include <cstring>

namespace mmfast {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

MMFAST_HD uint32_t float_bits(float a) { uint32_t b; std::memcpy(&b, &a, 4); return b; }
MMFAST_HD float bits_float(uint32_t a) { float b; std::memcpy(&b, &a, 4); return b; }

MMFAST_HD float widen(float a) { return a; }
MMFAST_HD float widen(bf16 a) { return bits_float(static_cast<uint32_t>(a.bits) << 16); }
MMFAST_HD float widen(f16 a) {
    const uint32_t sign = (a.bits & 0x8000u) << 16, magnitude = a.bits & 0x7FFFu;
    if (magnitude < 0x0400u)  // zero or subnormal: exact in float
        return bits_float(sign | float_bits(static_cast<float>(magnitude) * 0x1p-24f));
    const uint32_t rebias = magnitude < 0x7C00u ? 112u << 23 : 224u << 23;
    const uint32_t quiet = magnitude > 0x7C00u ? 0x00400000u : 0u;
    return bits_float(sign | quiet | ((magnitude << 13) + rebias));
}

MMFAST_HD void narrow(float a, float& out) { out = a; }
MMFAST_HD void narrow(float a, bf16& out) {
    const uint32_t b = float_bits(a);
    out.bits = static_cast<uint16_t>(a != a ? 0x7FC0u : (b + 0x7FFFu + (b >> 16 & 1u)) >> 16);
}
MMFAST_HD void narrow(float a, f16& out) {
    const uint32_t b = float_bits(a), sign = b >> 16 & 0x8000u, magnitude = b & 0x7FFFFFFFu;
    uint32_t h;
    if (magnitude > 0x7F800000u) {
        h = 0x7E00u | (magnitude >> 13 & 0x3FFu);
    } else if (magnitude >= 0x477FF000u) {  // 65520 rounds to infinity
        h = 0x7C00u;
    } else if (magnitude < 0x38800000u) {  // below 2^-14: 0.5 has the spacing of the subnormals, 2^-24
        h = float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000u;
    } else {
        h = (magnitude - (112u << 23) + 0x0FFFu + (magnitude >> 13 & 1u)) >> 13;
    }
    out.bits = static_cast<uint16_t>(sign | h);
}

}  // namespace mmfast
