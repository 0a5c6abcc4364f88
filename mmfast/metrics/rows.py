"""Distances between two sets of rows of real numbers, by column and of whole rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfast.errors import MmfastError


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or not min(len(x), len(y)):
        raise MmfastError(f"rows are {list(x.shape)} and {list(y.shape)}; they should be [n, D] and [m, D], n, m > 0")


def ks_distances(x: Tensor, y: Tensor) -> Tensor:
    """The Kolmogorov-Smirnov distance of each column, sup |F_x - F_y|, for rows [n, D] and [m, D]: float64 [D]."""
    _check(x, y)
    a, b = (z.double().T.contiguous().sort(1).values for z in (x, y))
    at = torch.cat((a, b), 1)
    below = [torch.searchsorted(z, at, right=True).double() / z.shape[1] for z in (a, b)]
    return (below[0] - below[1]).abs().amax(1)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of rows [n, D] and [m, D] (Szekely and Rizzo, 2013), at least 0.

    The means are over all pairs, including each row with itself (the V-statistic), so small sets of one distribution
    have a distance slightly above 0: compare with that of two sets of real rows of the same sizes.
    """
    _check(x, y)
    a, b = x.double(), y.double()
    for name, rows in (("x", a), ("y", b)):
        if not bool(rows.isfinite().all()):
            raise MmfastError(f"{name} holds numbers that are not finite, which have no distance")
    return max(0.0, float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()))
