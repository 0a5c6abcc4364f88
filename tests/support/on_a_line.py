"""Measures of sets of numbers, written out: a Gaussian is (mean, deviation), and a ball is an interval."""

import numpy as np


def frechet(a, b):
    """(difference of means)^2 + (difference of deviations)^2: of two normal distributions on the line."""
    a, b = (np.array(x, dtype=np.float64) for x in (a, b))
    return (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2


def share_inside(points, others, k=3):
    """The share of `others` within reach of some point, which is the distance to its k-th nearest other point."""
    reach = [sorted(abs(p - q) for q in points)[k] for p in points]
    return np.mean([any(abs(p - q) <= r for p, r in zip(points, reach, strict=True)) for q in others])
