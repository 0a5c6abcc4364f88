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

from mmfast.errors import MmfastError
from mmfast.ops import backends, reference
from mmfast.ops.glance import PLAIN, RECORDED, express, needs_grad, ordinary, transformed, watched
from mmfast.ops.library import as_tensors, call, library
from mmfast.ops.reference import Key, Rows, per_sample, pick, sum_samples


class _Combine(torch.autograd.Function):
    """`combine` with gradients for the terms, coefs and sigma; the noise has no inputs to pass one to."""

    @staticmethod
    def forward(ctx, starts, rows, key, sample_ids, stream, shape, dtype, return_noise, coefs, sigma, *terms):  # type: ignore[no-untyped-def]
        with torch._C._AutoDispatchBelowAutograd():
            out, eps = call(
                "combine", coefs.device, terms, starts, coefs, sigma, rows, key, sample_ids, stream, shape, dtype,
                return_noise,
            )  # fmt: skip
        ctx.options = (starts, rows, key, sample_ids, stream, [(x.shape, x.dtype) for x in terms])
        # Only the gradient of the coefficients reads the terms: without it they need not be kept alive.
        ctx.save_for_backward(coefs, sigma, *(terms if ctx.needs_input_grad[8] else ()))
        ctx.mark_non_differentiable(eps)
        return out, eps

    @staticmethod
    def backward(ctx, grad, _grad_eps):  # type: ignore[no-untyped-def]
        starts, rows, key, sample_ids, stream, kinds = ctx.options
        coefs, sigma, *terms = ctx.saved_tensors
        if not terms:
            terms = [grad.new_empty((), dtype=dtype).expand(shape) for shape, dtype in kinds]
        needs_coefs, needs_sigma, *needs_terms = ctx.needs_input_grad[8:]
        needs = [*needs_terms, needs_coefs, needs_sigma]
        own = pick(coefs, rows, len(grad)), None if sigma is None else pick(sigma, rows, len(grad))
        args = (grad, terms, starts, *own, key, sample_ids, stream, needs)
        # Under create_graph the gradient is itself differentiated: the reference's torch ops can be.
        if torch.is_grad_enabled():
            found = iter(reference.combine_backward(*args))
        else:
            found = iter(call("combine_backward", grad.device, *args))
        of_terms = [next(found) if needed else None for needed in needs_terms]
        of_coefs = next(found) if needs_coefs else None
        of_sigma = next(found) if needs_sigma else None
        return (None,) * 8 + (of_coefs, of_sigma, *of_terms)


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
    return _Combine.apply(starts, rows, key, sample_ids, stream, shape, dtype, return_noise, coefs, sigma, *terms)


library.impl("combine", _combine_autograd, "Autograd")


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
    if transformed() or (key is None and torch.compiler.is_compiling()):
        return reference.combine(terms, starts, coefs, sigma, rows, key, *rest)
    if watched() or not ordinary(coefs, sigma, *terms):
        rows, key, coefs, sigma = as_tensors(rows, key, coefs.device, (coefs, sigma))
        return torch.ops.mmfast.combine.default(terms, starts, coefs, sigma, rows, key, *rest)
    if needs_grad(coefs, sigma, *terms):
        return _combine_autograd(terms, starts, coefs, sigma, rows, key, *rest)
    return backends.choose(coefs.device.type).combine(terms, starts, coefs, sigma, rows, key, *rest)


class _Express(torch.autograd.Function):
    """`combine` by glance.express for tensors of which some are to be differentiated, and nothing else is unusual."""

    @staticmethod
    def forward(ctx, tables, rows, identity, return_noise, *terms):  # type: ignore[no-untyped-def]
        ctx.tables, ctx.rows = tables.coefs, rows
        done = express(list(terms), tables, rows, identity, return_noise)  # gradients are off in here
        if type(done) is int:
            raise _NotAsUsualError
        if done[1] is None:
            return done[0]
        ctx.mark_non_differentiable(done[1])
        return done

    @staticmethod
    def backward(ctx, grad, _grad_eps=None):  # type: ignore[no-untyped-def]
        needed = ctx.needs_input_grad[4:]
        coefs = pick(ctx.tables, ctx.rows, len(grad))
        if torch.is_grad_enabled() or watched():
            scaled = [per_sample(coefs[:, k], grad.dim()) * grad if yes else None for k, yes in enumerate(needed)]
        else:
            args = ([grad] * len(needed), [-1] * len(needed), coefs, None, None, None, 0, [*needed, False, False])
            found = iter(call("combine_backward", grad.device, grad, *args))
            scaled = [next(found) if yes else None for yes in needed]
        return None, None, None, None, *scaled


class _NotAsUsualError(Exception):
    """An express call that cannot be one after all."""


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
            found = _Express.apply(tables, rows, identity, second, *terms)
            return found if second else (found, None)
        except _NotAsUsualError:
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
        return _Combine.apply(starts, rows, *rest, coefs, sigma, *terms)

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
    if transformed() or (key is None and torch.compiler.is_compiling()):
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


class _SquaredError(torch.autograd.Function):
    """`squared_error` with its gradient for term 0, which the forward pass has made already."""

    @staticmethod
    def forward(ctx, first, others, starts, coefs, sigma, weight, rows, key, sample_ids, stream, shape, dtype, scale):  # type: ignore[no-untyped-def]
        ctx.factor = None
        if dtype == torch.float16:  # its range would lose small gradients before a loss scale is on them: keep c_0 r
            ctx.factor = 2 * scale * pick(weight, rows, shape[0])
            weight, scale = torch.ones_like(weight), 0.5
        with torch._C._AutoDispatchBelowAutograd():
            loss, ctx.grad = call(
                "squared_error", first.device, [first, *others], starts, coefs, sigma, weight, rows, key, sample_ids,
                stream, shape, dtype, scale, True,
            )  # fmt: skip
        ctx.version = ctx.grad._version
        return loss if ctx.factor is None else loss * ctx.factor

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            raise MmfastError("the fused loss has no second derivative; give it fused=False to differentiate it twice")
        ready = ctx.grad
        if ready._version != ctx.version:
            raise MmfastError("the fused loss's gradient was changed in place; give it fused=False to have it again")
        if ctx.factor is not None:
            grad = grad * ctx.factor
        # The usual case, loss.backward(): there is nothing left to do. Looking at a GPU's values would wait for it.
        elif grad.device.type == "cpu" and not watched() and bool((grad == 1).all()):
            return ready, *(None,) * 12
        args = ([ready], [-1], grad.to(reference.arithmetic(ready.dtype))[:, None], None, None, None, None, 0)
        return combine(*args, ready.shape, ready.dtype, False)[0], *(None,) * 12


def _squared_error_autograd(terms: Sequence[Tensor], *args: Any) -> tuple[Tensor, Tensor]:
    first, *others = terms
    if needs_grad(first) and not args[-1]:
        loss = _SquaredError.apply(first, others, *args[:-1])
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
    compiled = key is None and torch.compiler.is_compiling()
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
        return _SquaredError.apply(terms[0], terms[1:], *args)
    return call("squared_error", coefs.device, terms, *args, False)[0]


class _BlockMask(torch.autograd.Function):
    """`block_mask`; what is hidden has no gradient."""

    @staticmethod
    def forward(ctx, x, *args):  # type: ignore[no-untyped-def]
        with torch._C._AutoDispatchBelowAutograd():
            out, mask = call("block_mask", x.device, x, *args)
        ctx.save_for_backward(mask)
        ctx.mark_non_differentiable(mask)
        return out, mask

    @staticmethod
    def backward(ctx, grad, _grad_mask):  # type: ignore[no-untyped-def]
        (mask,) = ctx.saved_tensors
        return torch.where(mask > 0, grad, 0.0), *(None,) * 5


def _block_mask_autograd(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    if needs_grad(x):
        return _BlockMask.apply(x, *args)
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
        _BlockMask.apply(x, threshold, key, *rest)
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
