"""The noise in Triton: Philox and Box-Muller, as in csrc/philox.h and csrc/normal.h.

The words equal the reference's bit for bit, and the normals are within 4 ulp of it.

An identity is (key, seed low, seed high, draw, ids, stream). The kernel reads key (int64 [2]: seed and draw). If key is
None, the numbers are used instead, with the seed in 32-bit halves. ids: int64 [B], or None for 0, 1, 2, ...

This file and kernels.py use only builtins of tl, not its jitted functions (tl.sum, tl.cdiv), because the tests
interpret a copy of these modules next to a Triton that was imported to compile.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

M0, M1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)  # Philox: multipliers and key increments
W0, W1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)
HALF = tl.constexpr(0x3F000001)  # the bits of the first float above 1/2


@triton.jit
def philox_words(identity, b, quad):
    """The four words of the Philox blocks `quad` (uint32) of sample b: see csrc/philox.h."""
    key, seed_low, seed_high, draw, ids, stream = identity
    if key is not None:
        seed = tl.load(key)
        k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
        x1 = tl.load(key + 1).to(tl.uint32)
    else:
        k0, k1 = tl.cast(seed_low, tl.uint32), tl.cast(seed_high, tl.uint32)
        x1 = tl.cast(draw, tl.uint32)
    sample = tl.cast(b, tl.int64)
    if ids is not None:
        sample = tl.load(ids + b)
    x0, x2 = quad, sample.to(tl.uint32)
    x3 = ((sample >> 32) & 0xFFFF).to(tl.uint32) | (tl.cast(stream, tl.uint32) << 16)
    for _ in tl.static_range(10):
        p0, p1 = x0.to(tl.uint64) * M0, x2.to(tl.uint64) * M1
        x0 = (p1 >> 32).to(tl.uint32) ^ x1 ^ k0
        x1 = p1.to(tl.uint32)
        x2 = (p0 >> 32).to(tl.uint32) ^ x3 ^ k1
        x3 = p0.to(tl.uint32)
        k0, k1 = k0 + W0, k1 + W1
    return x0, x1, x2, x3


@triton.jit
def radius(a):
    """sqrt(-2 ln u), u = (a + 1/2) / 2^32: csrc/normal.h explains this and the coefficients."""
    u = tl.fma(a.to(tl.float32), 2.0**-32, 2.0**-33)
    shifted = u.to(tl.uint32, bitcast=True) - HALF
    e = (shifted.to(tl.int32, bitcast=True) >> 23).to(tl.float32)
    m = ((shifted & 0x007FFFFF) + HALF).to(tl.float32, bitcast=True)
    g = tl.fma(m, -2.0, 2.0)
    p = tl.fma(g, 0.00552456314, -0.0128050316)
    p = tl.fma(p, g, 0.0188788101)
    p = tl.fma(p, g, -0.00564808957)
    p = tl.fma(p, g, 0.0164772775)
    p = tl.fma(p, g, 0.030461289)
    p = tl.fma(p, g, 0.0834078938)
    p = tl.fma(p, g, 0.249997616)
    return tl.sqrt_rn(tl.fma(e, -1.38629436, tl.fma(g * g, p, g)))


@triton.jit
def flip_if_bit31(turn, x):
    return (x.to(tl.uint32, bitcast=True) ^ (turn & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def normal_pair(a, b):
    """The two normals from the words (a, b)."""
    r = radius(a)
    y = (b << 2).to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-32
    turn = b + 0x20000000
    z = y * y
    s = tl.fma(z, -0.00460251188, 0.0796803609)
    s = tl.fma(s, z, -0.64596349)
    s = tl.fma(s, z, -4.8797947e-08)
    s = tl.fma(y, 1.57079637, y * s)
    c = tl.fma(z, 0.00089448638, -0.0208555963)
    c = tl.fma(c, z, 0.253668547)
    c = tl.fma(c, z, -1.23370051)
    c = tl.fma(c, z, 1.0)
    swap = (turn & 0x40000000) != 0
    return r * flip_if_bit31(turn + 0x40000000, tl.where(swap, s, c)), r * flip_if_bit31(turn, tl.where(swap, c, s))


@triton.jit
def in_order(x0, x1, x2, x3, SIZE: tl.constexpr):
    """[SIZE / 4] each -> [SIZE]: x0[0], x1[0], x2[0], x3[0], x0[1], ..."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), [SIZE])


@triton.jit
def normals(identity, b, start, SIZE: tl.constexpr):
    """The noise of the elements [start, start + SIZE) of sample b, four per Philox block: float32 [SIZE]."""
    quad = tl.cast(start // 4, tl.uint32) + tl.arange(0, SIZE // 4).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(identity, b, quad)
    n0, n1 = normal_pair(w0, w1)
    n2, n3 = normal_pair(w2, w3)
    return in_order(n0, n1, n2, n3, SIZE)
