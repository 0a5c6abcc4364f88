"""Precision, recall, density and coverage: how much generated data is realistic, and how much real data is covered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.errors import MmfastError


class PrecisionRecall(NamedTuple):
    """Each is 1 for a perfect model in the limit; only density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


@torch.no_grad()
def precision_recall(real: Tensor, fake: Tensor, k: int = 3, block: int = 1024) -> PrecisionRecall:
    """Compare features real [n, D] and fake [m, D], n, m > k. A point's ball reaches its k-th nearest point in its set.

    precision: share of fake points in any real point's ball; recall: share of real points in any fake point's ball
    (Kynkaanniemi et al. 2019, arXiv 1904.06991). density: mean over the fake points of the number of real points'
    balls that contain them, divided by k; coverage: share of real points with a fake point in their ball (Naeem et al.
    2020, arXiv 2002.09797). Balls are closed: a point at exactly the radius is inside.

    Distances are computed in float64, `block` rows at a time, so that 10,000 by 10,000 are never in memory at once.
    Raises MmfastError for other shapes and for values that are not finite.
    """
    for name, x in (("real", real), ("fake", fake)):
        if x.dim() != 2 or x.shape[1] != real.shape[-1] or not 1 <= k < len(x):
            raise MmfastError(
                f"{name} is {list(x.shape)} with k = {k}; it should be [n, D], n > k >= 1, with the same D for both"
            )
        if not x.isfinite().all():
            raise MmfastError(f"{name} holds values that are not finite; it should hold finite features")
    # Squared distances are computed from products, with rounding errors relative to the squared norms: centring helps.
    x, y = real.double(), fake.to(real.device).double()
    centre = x.mean(0)
    x, y = x - centre, y - centre
    size_x, size_y = x.square().sum(1), y.square().sum(1)
    reach_x, reach_y = (_radius(z, k, block) for z in (x, y))
    inside = torch.zeros(len(y), dtype=torch.int64, device=x.device)
    covered = recalled = 0
    for rows, distance in _distances(x, y, block):
        # Rounding may add this much to a distance exactly at the radius, as between equal points.
        distance -= 1e-13 * (size_x[rows, None] + size_y)
        in_ball_of_x = distance <= reach_x[rows, None]
        inside += in_ball_of_x.sum(0)
        covered += int(in_ball_of_x.any(1).sum())
        recalled += int((distance <= reach_y).any(1).sum())
    return PrecisionRecall(
        precision=float((inside > 0).double().mean()),
        recall=recalled / len(x),
        density=float(inside.double().mean() / k),
        coverage=covered / len(x),
    )


def _distances(x: Tensor, y: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows of x [n, D], with their squared distances |x_i - y_j|^2 to all of y [m, D]."""
    of_y = y.square().sum(1)
    for start in range(0, len(x), block):
        rows = slice(start, start + block)
        products = torch.addmm(of_y, x[rows], y.T, alpha=-2)
        yield rows, products.add_(x[rows].square().sum(1, keepdim=True)).clamp_(min=0)


def _radius(x: Tensor, k: int, block: int) -> Tensor:
    """The squared distance of each point to its k-th nearest other point: [n]."""
    # k + 1, because the nearest is the point itself, at 0.
    return torch.cat([d.kthvalue(k + 1, 1).values for _, d in _distances(x, x, block)])
