// Standard normals from pairs of 32-bit words (Box-Muller), bit-identical on all lanes.
//
//     u = fma(a, 2^-32, 2^-33) in float32;   r = sqrt(-2 ln u);   theta = 2 pi b / 2^32
//     first = r cos(theta), second = r sin(theta)
//
// All 32 bits of a word count, so the tail reaches 6.76 sigma. Every operation is a correctly rounded
// float32 operation (the products that matter are fused), so all lanes agree bit for bit.
//
// The coefficients are minimax, printed by fit_polynomials.py. Over all 2^32 values of a and of b, the
// relative error was at most 1.74 * 2^-24 in r and 1.84 * 2^-24 in the cosine and the sine. Their sum is
// below 3.6 * 2^-24, that is below 3.6 ulp. With the rounding of the product, and of the exact value that
// it is compared to, the two floats differ by at most 4 ulp. In 10^9 normals they differed by at most 3.
#pragma once

#include "philox.h"

namespace mmfast {

// c[0] + c[1] x + ... by Horner's rule.
template <class L, int N, class F>
MMFAST_HD F polynomial(F x, const float (&c)[N]) {
    F sum = L::splat(c[N - 1]);
#if defined(__CUDACC__) || defined(__clang__)
#pragma unroll
#elif defined(__GNUC__)
#pragma GCC unroll 8
#endif
    for (int i = N - 2; i >= 0; --i) sum = L::fma(sum, x, L::splat(c[i]));
    return sum;
}

// sqrt(-2 ln u), u = (a + 1/2) / 2^32 rounded to float32.
template <class L>
MMFAST_HD typename L::F radius(typename L::U a) {
    const float log_coefs[] = {0.249997616f, 0.0834078938f,   0.030461289f,   0.0164772775f,
                               -0.00564808957f, 0.0188788101f, -0.0128050316f, 0.00552456314f};
    const uint32_t low = 0x3F000001u;  // the bits of the first float above 1/2
    const auto u = L::fma(L::from_unsigned(a), L::splat(0x1p-32f), L::splat(0x1p-33f));
    // u = 2^e m with m in (1/2, 1], so e <= 0: neither part of -2 ln u is negative, nothing cancels, and
    // u = 1 gives exactly 0.
    const auto shifted = L::add(L::bits(u), 0u - low);
    const auto e = L::from_signed(L::template shift_right<23>(shifted));
    const auto m = L::as_float(L::add(L::and_(shifted, 0x007FFFFFu), low));
    const auto g = L::fma(m, L::splat(-2.0f), L::splat(2.0f));  // exact; -2 ln m = g + g^2 P(g)
    const auto log_m = L::fma(L::mul(g, g), polynomial<L>(g, log_coefs), g);
    return L::sqrt(L::fma(e, L::splat(-1.38629436f), log_m));  // -2 ln 2
}

// The two normals from the words (a, b).
template <class L>
MMFAST_HD void normal_pair(typename L::U a, typename L::U b, typename L::F& first, typename L::F& second) {
    // The first coefficient of the sine, pi/2, is split in two parts: 1.57079637 and the first entry here.
    const float sin_coefs[] = {-4.8797947e-08f, -0.64596349f, 0.0796803609f, -0.00460251188f};
    const float cos_coefs[] = {1.0f, -1.23370051f, 0.253668547f, -0.0208555963f, 0.00089448638f};
    const auto r = radius<L>(a);
    // theta = (quadrant + y) pi/2 with y in [-1/2, 1/2). Both parts are exact in integers, so the
    // relative accuracy holds near the zeros. Bits 30 and 31 of `turn` are the quadrant.
    const auto y = L::mul(L::from_signed(L::template shift_left<2>(b)), L::splat(0x1p-32f));
    const auto turn = L::add(b, 0x20000000u);
    const auto z = L::mul(y, y);
    auto sine = L::fma(y, L::splat(1.57079637f), L::mul(y, polynomial<L>(z, sin_coefs)));
    auto cosine = polynomial<L>(z, cos_coefs);
    L::swap_if_bit30(turn, sine, cosine);
    first = L::mul(r, L::flip_if_bit31(L::add(turn, 0x40000000u), cosine));
    second = L::mul(r, L::flip_if_bit31(turn, sine));
}

// Two vectors for each one of L, so that two independent chains of operations alternate. The chains are
// longer than a processor can look ahead.
template <class L>
struct Twice {
    static constexpr int W = 2 * L::W;
    struct C { typename L::C a, b; };
    struct U { typename L::U a, b; };
    struct F { typename L::F a, b; };
    static MMFAST_HD C blocks(uint32_t first) { return {L::blocks(first), L::blocks(first + L::W)}; }
    static MMFAST_HD void mul(C x, uint32_t m, C& high, C& low) {
        L::mul(x.a, m, high.a, low.a);
        L::mul(x.b, m, high.b, low.b);
    }
    static MMFAST_HD C xor_(C x, uint32_t k) { return {L::xor_(x.a, k), L::xor_(x.b, k)}; }
    static MMFAST_HD C xor3(C x, C y, uint32_t k) { return {L::xor3(x.a, y.a, k), L::xor3(x.b, y.b, k)}; }
    static MMFAST_HD U word(C x) { return {L::word(x.a), L::word(x.b)}; }

    static MMFAST_HD U add(U x, uint32_t y) { return {L::add(x.a, y), L::add(x.b, y)}; }
    static MMFAST_HD U and_(U x, uint32_t y) { return {L::and_(x.a, y), L::and_(x.b, y)}; }
    template <int N>
    static MMFAST_HD U shift_left(U x) { return {L::template shift_left<N>(x.a), L::template shift_left<N>(x.b)}; }
    template <int N>
    static MMFAST_HD U shift_right(U x) { return {L::template shift_right<N>(x.a), L::template shift_right<N>(x.b)}; }
    static MMFAST_HD U bits(F x) { return {L::bits(x.a), L::bits(x.b)}; }
    static MMFAST_HD F as_float(U x) { return {L::as_float(x.a), L::as_float(x.b)}; }
    static MMFAST_HD F splat(float x) { return {L::splat(x), L::splat(x)}; }
    static MMFAST_HD F mul(F x, F y) { return {L::mul(x.a, y.a), L::mul(x.b, y.b)}; }
    static MMFAST_HD F fma(F x, F y, F z) { return {L::fma(x.a, y.a, z.a), L::fma(x.b, y.b, z.b)}; }
    static MMFAST_HD F sqrt(F x) { return {L::sqrt(x.a), L::sqrt(x.b)}; }
    static MMFAST_HD F from_unsigned(U x) { return {L::from_unsigned(x.a), L::from_unsigned(x.b)}; }
    static MMFAST_HD F from_signed(U x) { return {L::from_signed(x.a), L::from_signed(x.b)}; }
    static MMFAST_HD void swap_if_bit30(U t, F& x, F& y) {
        L::swap_if_bit30(t.a, x.a, y.a);
        L::swap_if_bit30(t.b, x.b, y.b);
    }
    static MMFAST_HD F flip_if_bit31(U t, F x) { return {L::flip_if_bit31(t.a, x.a), L::flip_if_bit31(t.b, x.b)}; }
};

// The normals of elements 4j..4j+3 for the L::W blocks j of L::blocks(first_block): n[i] holds elements 4j+i.
template <class L>
MMFAST_HD void normals(const NoiseStream& stream, uint32_t first_block, typename L::F n[4]) {
    using Pairs = Twice<L>;
    typename L::C w[4];
    philox<L>(stream, L::blocks(first_block), w);
    typename Pairs::F first, second;
    normal_pair<Pairs>({L::word(w[0]), L::word(w[2])}, {L::word(w[1]), L::word(w[3])}, first, second);
    n[0] = first.a, n[1] = second.a, n[2] = first.b, n[3] = second.b;
}

}  // namespace mmfast
