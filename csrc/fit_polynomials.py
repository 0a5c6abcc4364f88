"""Compute the polynomial coefficients of normal.h: python csrc/fit_polynomials.py

Each polynomial is minimax in the relative error, found in float64 by iteratively reweighted least
squares (Lawson's algorithm) on Chebyshev nodes. The coefficients are then rounded to float32 one by
one from the constant upwards. Each time the remaining ones are refitted, so that they absorb the
rounding of the earlier ones.
"""

import numpy as np


def lawson(basis, target, weight, rounds=3000):
    """argmin_c max |weight * (basis @ c - target)|, and the minimum."""
    w = np.full(len(target), 1.0 / len(target))
    best = (None, np.inf)
    for _ in range(rounds):
        root = np.sqrt(w) * weight
        c = np.linalg.lstsq(basis * root[:, None], target * root, rcond=None)[0]
        error = np.abs(weight * (basis @ c - target))
        if error.max() < best[1]:
            best = (c, error.max())
        w = w * error
        w /= w.sum()
    return best


def fit(function, low, high, degree, fixed=(), scale=None):
    """Fit float32 coefficients c_0.. of a polynomial to `function` on [low, high]. fixed: the first ones.

    Minimises the error relative to `scale` (the function itself if None), and returns it too.
    """
    nodes = np.cos(np.pi * (np.arange(2000) + 0.5) / 2000)
    x = (low + high) / 2 + (high - low) / 2 * nodes
    y = function(x)
    size = np.abs((scale or function)(x))
    powers = x[:, None] ** np.arange(degree + 1)
    done = [np.float32(c) for c in fixed]
    while len(done) <= degree:
        n = len(done)
        rest = y - powers[:, :n] @ np.array(done, np.float64)
        done.append(np.float32(lawson(powers[:, n:], rest, 1 / size)[0][0]))
    c = np.array(done, np.float64)
    return done, np.abs((powers @ c - y) / size).max()


def log(g):  # -2 ln(1 - g/2) / g
    return -2 * np.log1p(-g / 2) / g


def sine(z):  # sin(y pi/2) / y at z = y^2
    y = np.sqrt(z)
    return np.sin(np.pi / 2 * y) / y


def cosine(z):  # cos(y pi/2) at z = y^2
    return np.cos(np.pi / 2 * np.sqrt(z))


if __name__ == "__main__":
    half_pi = np.float32(np.pi / 2)
    for name, (c, error) in {
        "log": fit(log, 0, 1, 8, fixed=(1,)),
        "sin": fit(lambda z: sine(z) - half_pi, 0, 0.25, 3, scale=sine),
        "cos": fit(cosine, 0, 0.25, 4, fixed=(1,)),
    }.items():
        print(f"{name}: max relative error {error * 2**24:.3f} * 2^-24")
        print("   ", ", ".join(f"{v:.9g}f" for v in c))
