"""The gradients of `combine`, built on the sums that every backend has: `scale`, `dots` and `row_sums`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import reference
from mmfast.ops.call import Block, Call

# The shape of a term and its first channel (-1 if it is not a Block).
Place = tuple[Sequence[int], int]


def combine_backward(
    backend: Any, call: Call, grad: Tensor, places: Sequence[Place], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `combine` for those of the terms, coefs and sigma that `needs` (K + 2 flags) selects, in order.

    d/d term_k = coefs[b, k] grad, summed over the dimensions that the term was broadcast along; d/d coefs[b, k] =
    <grad[b], term_k[b]>; d/d sigma[b] = <grad[b], eps[b]> with eps regenerated from its identity, and for
    d/d sigma[b, l] the same over the channels of level l. Sums are in float64, in an order that depends only on the
    shapes and types. Where a coefficient is zero, its term was not read and the term's gradient is zero; the
    coefficient's own gradient is the true one. Only that gradient reads the terms. places: the terms' shapes and
    first channels (-1 if not a Block).
    """
    of_coefs, of_sigma = needs[-2:]
    grad, coefs, whole = grad.contiguous(), call.tables.coefs, grad.shape
    # One pass over grad gives the gradients of all terms of the full shape.
    alike = [k for k, (shape, start) in enumerate(places) if needs[k] and start < 0 and shape == whole]
    scaled = iter(backend.scale(grad, coefs, call.rows, alike) if alike else ())
    result = []
    for k, (shape, start) in enumerate(places):
        if k in alike:
            result.append(next(scaled))
        elif needs[k]:
            part = grad if start < 0 else grad.narrow(1, start, shape[1]).contiguous()
            result.append(_term_gradient(backend, part, shape, (coefs, call.rows, k)))
    by_level = of_sigma and call.noise is not None and bool(call.noise.levels)
    if of_coefs or (of_sigma and not by_level):
        of_terms, noise = call.terms if of_coefs else [], None if by_level or not of_sigma else call.noise
        dots = backend.dots(call._replace(terms=of_terms, noise=noise), grad)
        dots = dots.to(coefs.dtype)
        if of_coefs:
            result.append(dots[:, :-1].contiguous())
        if of_sigma and not by_level:
            result.append(dots[:, -1].contiguous())
    if by_level:
        result.append(_levels_gradient(backend, call, grad).to(coefs.dtype))
    return result


def _levels_gradient(backend: Any, call: Call, grad: Tensor) -> Tensor:
    """<grad[b], eps[b]> over the channels of each level: [B, L]. Rarely used, so each level regenerates the noise."""
    assert call.noise is not None
    levels, plain = call.noise.levels, call._replace(terms=[], noise=call.noise._replace(levels=()))
    if grad.dim() == 1:
        return backend.dots(plain, grad)
    parts = []
    for first, end in zip(levels, [*levels[1:], grad.shape[1]], strict=True):
        part = Block(grad.narrow(1, first, end - first), first, grad.shape[1])
        parts.append(backend.dots(plain, reference.in_space(part, grad.shape).contiguous()))
    return torch.cat(parts, 1)


def _term_gradient(backend: Any, grad: Tensor, shape: Sequence[int], column: tuple[Tensor, Any, int]) -> Tensor:
    """The sum of coef[b] grad[b] over the dimensions that a term of `shape` is broadcast along."""
    coefs, rows, k = column
    kept = [d for d in range(grad.dim()) if shape[d] == grad.size(d)]
    summed = [d for d in range(grad.dim()) if shape[d] != grad.size(d)]
    if not summed:
        return backend.scale(grad, coefs, rows, [k])[0]
    dtype = grad.dtype
    if 0 in summed:  # apply the coefficient before the sum over samples, without rounding to half precision
        grad = backend.scale(grad.to(coefs.dtype), coefs, rows, [k])[0]
    count = math.prod(shape)
    if count == 0 or grad.numel() == 0:
        return grad.new_zeros(tuple(shape), dtype=dtype)
    sums = backend.row_sums(grad.permute(kept + summed).reshape(count, -1).contiguous()).reshape(tuple(shape))
    if 0 in kept:
        sums = backend.scale(sums, coefs.double(), rows, [k])[0]
    return sums.to(dtype)
