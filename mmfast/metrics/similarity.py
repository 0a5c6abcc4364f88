"""How well predictions match the truth: embeddings by cosine and retrieval, masks by overlap."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfast.errors import MmfastError


class Rank(NamedTuple):
    """The rank of the matching key among all keys, 1 being best; top1 and top5: the shares of ranks <= 1 and <= 5."""

    mean: float
    median: float
    top1: float
    top5: float


def cosine(a: Tensor, b: Tensor) -> float:
    """The mean over rows of a . b / (|a| |b|), for a, b [n, D]; a row of zeros counts as 0."""
    _check_pairs(a, b, "a", "b")
    return float((_unit(a) * _unit(b)).sum(1).mean())


@torch.no_grad()
def retrieval_rank(queries: Tensor, keys: Tensor, block: int = 1024) -> Rank:
    """The rank of keys[i] for queries[i] among all keys by cosine, both [n, D].

    Ties count half, so the matching key is in the middle of its ties, and n equal keys have rank (n + 1) / 2, as chance
    does. Computed for `block` queries at a time. Raises MmfastError for other shapes and non-finite values.
    """
    _check_pairs(queries, keys, "queries", "keys")
    for name, rows in (("queries", queries), ("keys", keys)):
        if not bool(rows.isfinite().all()):
            raise MmfastError(f"{name} holds numbers that are not finite, which have no rank")
    x, y = _unit(queries), _unit(keys)
    ranks = []
    for rows in torch.arange(len(x), device=x.device).split(block):
        similarity = x[rows] @ y.T
        own = similarity.gather(1, rows[:, None])
        # Equal keys agree only up to float64 rounding, about 1e-16.
        nearer = (similarity > own + 1e-12).sum(1)
        as_near = (similarity >= own - 1e-12).sum(1) - nearer
        ranks.append(nearer + (as_near + 1) / 2)
    rank = torch.cat(ranks).double()
    return Rank(
        mean=float(rank.mean()),
        median=float(rank.quantile(0.5)),
        top1=float((rank <= 1).double().mean()),
        top5=float((rank <= 5).double().mean()),
    )


def mean_iou(predicted: Tensor, truth: Tensor, classes: int, background: bool = False) -> float:
    """Mean intersection over union of the classes, counted over all elements of two int64 tensors.

    Class 0, the background, counts only with `background`. Classes in neither tensor are ignored; with none left the
    two agree, and the result is 1. Raises MmfastError if shapes differ or numbers are outside 0 .. classes - 1.
    """
    if predicted.shape != truth.shape:
        raise MmfastError(
            f"predicted is {list(predicted.shape)} and truth {list(truth.shape)}; they should have the same shape"
        )
    for name, x in (("predicted", predicted), ("truth", truth)):
        if x.is_floating_point() or (x.numel() and not 0 <= int(x.min()) <= int(x.max()) < classes):
            raise MmfastError(f"{name} is {x.dtype}; it should hold whole class numbers 0 .. {classes - 1}")
    counts = torch.bincount((predicted.long() * classes + truth.long()).flatten(), minlength=classes**2)
    table = counts.reshape(classes, classes).double()
    union = table.sum(0) + table.sum(1) - table.diagonal()
    counted = union > 0
    counted[0] &= background
    return float((table.diagonal() / union)[counted].mean()) if counted.any() else 1.0


def _check_pairs(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    if a.dim() != 2 or a.shape != b.shape or not len(a):
        raise MmfastError(f"{name_a} is {list(a.shape)} and {name_b} {list(b.shape)}; both should be [n, D], n > 0")


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.double(), dim=1)
