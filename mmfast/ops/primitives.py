"""The registered ops as functions: gradients, and which way a call takes. Arguments and results: reference.py.

A call goes straight to its backend where nothing has to be recorded; through an autograd.Function where term 0 (or,
for `combine`, anything) is to be differentiated; and by the ops it is made of where that is not enough. Within
torch.compile a combination without noise is given as plain torch, which Inductor fuses with its neighbours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import backends, reference
from mmfast.ops.glance import PLAIN, RECORDED, express, needs_grad, ordinary, transformed, watched
from mmfast.ops.gradients import BlockMask, Combine, Express, NotAsUsualError, SquaredError
from mmfast.ops.library import as_tensors, call, library
from mmfast.ops.reference import Key, Rows, pick, sum_samples


def _combine_autograd(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    rows: Rows,
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    return_noise: bool,
) -> tuple[Tensor, Tensor]:
    if not needs_grad(coefs, sigma, *terms):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.mmfast.combine.default(
                terms, starts, coefs, sigma, rows, key, sample_ids, stream, shape, dtype, return_noise
            )
    if needs_grad(coefs, sigma):  # a row of its own for each sample, by ops that pass the gradients on
        coefs = pick(coefs, rows, shape[0])
        sigma, rows = None if sigma is None else pick(sigma, rows, shape[0]), None
    return Combine.apply(starts, rows, key, sample_ids, stream, shape, dtype, return_noise, coefs, sigma, *terms)


library.impl("combine", _combine_autograd, "Autograd")


# Whether a compiled graph gets a combination without noise as torch's ops, for Inductor to fuse, or as one op of ours:
# benchmarks/compiled.py measures both.
PLAIN_IN_GRAPHS = True


def way(seen: int) -> Any:
    """Where `combine` and `step` are for terms of which a glance saw this, with tables that need no gradient."""
    if seen == PLAIN:
        return backends.choose("cpu")
    return _Recorded if seen == RECORDED else sys.modules[__name__]


def combine(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    rows: Rows,
    key: Key | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    """reference.combine, differentiable in the terms, coefs and sigma."""
    if transformed() or (key is None and PLAIN_IN_GRAPHS and torch.compiler.is_compiling()):
        return reference.combine(terms, starts, coefs, sigma, rows, key, *rest)
    if watched() or not ordinary(coefs, sigma, *terms):
        rows, key, coefs, sigma = as_tensors(rows, key, coefs.device, (coefs, sigma))
        return torch.ops.mmfast.combine.default(terms, starts, coefs, sigma, rows, key, *rest)
    if needs_grad(coefs, sigma, *terms):
        return _combine_autograd(terms, starts, coefs, sigma, rows, key, *rest)
    return backends.choose(coefs.device.type).combine(terms, starts, coefs, sigma, rows, key, *rest)


def by_express(
    terms: list[Any], tables: Any, rows: Any, identity: tuple[Any, ...], second: bool, low: float, high: float
) -> tuple[Tensor, Any] | None:
    """glance.express with gradients; None for the long way."""
    if backends.forced_by_user():
        return None
    done = express(terms, tables, rows, identity, second, low, high)
    if type(done) is tuple:
        return done
    if done == RECORDED and tables.to_x0 is None:
        try:
            found = Express.apply(tables, rows, identity, second, *terms)
            return found if second else (found, None)
        except NotAsUsualError:
            pass
    return None


class _Recorded:
    """The ops for tensors that are plain but for the gradient that is wanted."""

    @staticmethod
    def combine(
        terms: Sequence[Tensor],
        starts: Sequence[int],
        coefs: Tensor,
        sigma: Tensor | None,
        rows: Rows,
        *rest: Any,
    ) -> tuple[Tensor, Tensor]:
        return Combine.apply(starts, rows, *rest, coefs, sigma, *terms)

    @staticmethod
    def step(*args: Any) -> tuple[Tensor, Tensor]:
        return step(*args)


def step(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    to_x0: Tensor,
    coefs: Tensor,
    sigma: Tensor | None,
    rows: Rows,
    low: float,
    high: float,
    x0_start: int,
    x0_channels: int,
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    return_x0: bool,
) -> tuple[Tensor, Tensor]:
    """reference.step; where something is to be differentiated, by two combinations and a clamp."""
    noise = (key, sample_ids, stream, shape)
    if transformed() or (key is None and PLAIN_IN_GRAPHS and torch.compiler.is_compiling()):
        return reference.step(
            terms, starts, to_x0, coefs, sigma, rows, low, high, x0_start, x0_channels, *noise, dtype, return_x0
        )
    if not needs_grad(to_x0, coefs, sigma, *terms):
        if watched():
            rows, key, to_x0, coefs, sigma = as_tensors(rows, key, coefs.device, (to_x0, coefs, sigma))
        return call(
            "step", coefs.device, terms, starts, to_x0, coefs, sigma, rows, low, high, x0_start, x0_channels,
            key, sample_ids, stream, shape, dtype, return_x0,
        )  # fmt: skip
    wide = coefs.dtype  # half precision may hold neither x0 nor the bounds
    terms = [x.to(wide) for x in terms]
    x0 = combine(terms, starts, to_x0, None, rows, None, None, stream, shape, wide, False)[0].clamp(low, high)
    if x0_start >= 0:
        x0 = x0.narrow(1, x0_start, x0_channels)
    out, _ = combine([*terms, x0], [*starts, x0_start], coefs, sigma, rows, *noise, wide, False)
    return out.to(dtype), x0.to(dtype) if return_x0 else x0.new_empty(0, dtype=dtype)


def _squared_error_autograd(terms: Sequence[Tensor], *args: Any) -> tuple[Tensor, Tensor]:
    first, *others = terms
    if needs_grad(first) and not args[-1]:
        loss = SquaredError.apply(first, others, *args[:-1])
        return loss, first.new_empty(0)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.mmfast.squared_error.default(terms, *args)


library.impl("squared_error", _squared_error_autograd, "Autograd")


def squared_error(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    rows: Rows,
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    scale: float,
    fused: bool = True,
) -> Tensor:
    """reference.squared_error's loss [B], differentiable in the terms, coefs and sigma.

    In term 0 alone by the gradient made in the forward pass, in anything else (and twice, with fused=False) by the
    ops it is made of.
    """
    compiled = key is None and PLAIN_IN_GRAPHS and torch.compiler.is_compiling()
    if transformed() or compiled or not fused or needs_grad(coefs, sigma, weight, *terms[1:]):
        wide = coefs.dtype
        noise = (key, sample_ids, stream, shape)
        r, _ = combine([x.to(wide) for x in terms], starts, coefs, sigma, rows, *noise, wide, False)
        return scale * pick(weight, rows, shape[0]) * sum_samples(r.square())
    if watched():
        rows, key, coefs, sigma, weight = as_tensors(rows, key, coefs.device, (coefs, sigma, weight))
    args = (starts, coefs, sigma, weight, rows, key, sample_ids, stream, shape, dtype, scale)
    if watched():
        return torch.ops.mmfast.squared_error.default(terms, *args, False)[0]
    if needs_grad(terms[0]):
        return SquaredError.apply(terms[0], terms[1:], *args)
    return call("squared_error", coefs.device, terms, *args, False)[0]


def _block_mask_autograd(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    if needs_grad(x):
        return BlockMask.apply(x, *args)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.mmfast.block_mask.default(x, *args)


library.impl("block_mask", _block_mask_autograd, "Autograd")


def block_mask(x: Tensor, threshold: Tensor, key: Key, *rest: Any) -> tuple[Tensor, Tensor]:
    """reference.block_mask, differentiable in x."""
    if transformed():
        return reference.block_mask(x, threshold, key, *rest)
    if watched():
        _, key = as_tensors(None, key, x.device, ())
        return torch.ops.mmfast.block_mask.default(x, threshold, key, *rest)
    return (
        BlockMask.apply(x, threshold, key, *rest)
        if needs_grad(x)
        else call("block_mask", x.device, x, threshold, key, *rest)
    )


def block_ranks(
    key: Key, sample_ids: Tensor | None, stream: int, batch: int, blocks: int, device: torch.device
) -> Tensor:
    """reference.block_ranks."""
    if watched():
        _, key = as_tensors(None, key, device, ())
    return call("block_ranks", device, key, sample_ids, stream, batch, blocks, device)
