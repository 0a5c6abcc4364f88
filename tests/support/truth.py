"""The design's formulas once more, in plain integers and float64: what the tests compare the package with.

Written from the text of the design; nothing here comes from mmfast. Everything is for one sample and one t, and
a result that is a sum keeps its terms apart, as pairs (coefficient, array): `total` adds them, and `size` is the
sum of their absolute values, which is what rounding errors are in proportion to.
"""

import math

import numpy as np

MASK = 0xFFFFFFFF


# --- noise --------------------------------------------------------------------------------------------------


def philox4x32(counter, key, rounds=10):
    """Philox4x32 in Python's integers: four words and two of the key -> four words."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def words(seed, stream, sample_id, draw, count):
    """The sample's words: key = seed; counter = (block, draw, id low, id bits 32-47 | stream << 16)."""
    seed %= 1 << 64
    key = (seed & MASK, seed >> 32)
    high = (sample_id >> 32 & 0xFFFF) | stream << 16
    blocks = (philox4x32((j, draw, sample_id & MASK, high), key) for j in range(-(-count // 4)))
    return [word for block in blocks for word in block][:count]


def normals(seed, stream, sample_id, draw, count):
    """The sample's normals, float64 [count]: u = (x_0 + 1/2)/2^32 in float32 arithmetic, then Box-Muller."""
    x = np.array(words(seed, stream, sample_id, draw, count + count % 2), dtype=np.uint64).reshape(-1, 2)
    u = np.float32(x[:, 0].astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33).astype(np.float64)
    angle = 2 * math.pi * x[:, 1].astype(np.float64) / 2.0**32
    radius = np.sqrt(-2 * np.log(u))
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1).reshape(-1)[:count]


# --- schedules ----------------------------------------------------------------------------------------------


def linear(T, first=1e-4, last=0.02):
    """alpha_bar [T + 1] of Ho et al.: 1 - a_t rises linearly."""
    beta = [first + (last - first) * i / max(T - 1, 1) for i in range(T)]
    return np.concatenate(([1.0], np.cumprod([1 - b for b in beta])))


def cosine(T, offset=0.008, most=0.999):
    """alpha_bar [T + 1] of Nichol and Dhariwal, with 1 - a_t at most 0.999."""

    def f(u):
        return math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2

    table = [1.0]
    for t in range(1, T + 1):
        table.append(table[-1] * (1 - min(1 - f(t / T) / f((t - 1) / T), most)))
    return np.array(table)


def weight(kind, scale, abar):
    """W [T + 1] of a kind, as the design's section 2 defines it."""
    if kind == "constant":
        W = [0.0]
        for t in range(1, len(abar)):
            W.append(math.sqrt(abar[t] / abar[t - 1]) * (W[-1] + scale))
        return np.array(W)
    signal = np.sqrt(abar)
    return (
        scale
        * {
            "none": 0 * signal,
            "carried": signal,
            "bridge": 4 * signal * (1 - signal),
            "shift": 1 - signal,
        }[kind]
    )


# --- the process --------------------------------------------------------------------------------------------


def total(terms):
    """Sum of coefficient * array."""
    return sum((c * x for c, x in terms), start=np.float64(0))


def size(terms):
    """Sum of |coefficient * array|, what the rounding errors of `total` are in proportion to."""
    return sum((np.abs(c * x) for c, x in terms), start=np.float64(0))


def marginal(abar, W, t, z0, E):
    """q(z_t | z_0, X) = N(sqrt(abar_t) z_0 + sum_i W_t^(i) E_i, (1 - abar_t) I): the mean's terms, the deviation."""
    mean = [(math.sqrt(abar[t]), z0), *((w, e) for w, e in zip(W[t], E, strict=True))]
    return mean, math.sqrt(1 - abar[t])


def deviation(abar, t, s):
    """sqrt((1 - a)(1 - abar_s)/(1 - abar_t)), a = abar_t/abar_s."""
    a = abar[t] / abar[s]
    return math.sqrt((1 - a) * (1 - abar[s]) / (1 - abar[t]))


def posterior(abar, W, t, s, z_t, eps, E):
    """The terms of (z_t - (1 - a)/sqrt(1 - abar_t) eps)/sqrt(a) - sum_i w^(i) E_i, w = W_t/sqrt(a) - W_s.

    The two parts of w are terms of their own, since they may cancel.
    """
    a = abar[t] / abar[s]
    terms = [(1 / math.sqrt(a), z_t), (-(1 - a) / math.sqrt(a) / math.sqrt(1 - abar[t]), eps)]
    for w_t, w_s, e in zip(W[t], W[s], E, strict=True):
        terms += [(-w_t / math.sqrt(a), e), (w_s, e)]
    return terms


def predicted_z0(abar, W, t, z_t, eps, E):
    """The terms of (z_t - m_t - sqrt(1 - abar_t) eps)/sqrt(abar_t)."""
    g = 1 / math.sqrt(abar[t])
    terms = [(g, z_t), (-g * math.sqrt(1 - abar[t]), eps)]
    return terms + [(-g * w, e) for w, e in zip(W[t], E, strict=True)]


def posterior_from_z0(abar, W, t, s, z_t, z0, E):
    """The terms of c0 z_0 + cy (z_t - m_t) + m_s."""
    a, v = abar[t] / abar[s], 1 - abar[t]
    c0, cy = math.sqrt(abar[s]) * (1 - a) / v, math.sqrt(a) * (1 - abar[s]) / v
    terms = [(c0, z0), (cy, z_t)]
    for w_t, w_s, e in zip(W[t], W[s], E, strict=True):
        terms += [(-cy * w_t, e), (w_s, e)]
    return terms


def log_normal(x, mean, variance):
    """ln N(x; mean, variance), elementwise."""
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * math.pi * variance))
