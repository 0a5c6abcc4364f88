"""The backward passes of all ops, shared by all backends.

Under create_graph, and for batches of gradients, they use the reference's sums, which are torch's own ops and can be
differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.errors import MmfastError
from mmfast.ops import around, backends, library, reference
from mmfast.ops.call import Block, Bounds, Call, Noise, Tables, Term, arithmetic, pick, tensor_of
from mmfast.ops.gradients import Place, combine_backward
from mmfast.ops.reference import per_sample


def kernel(name: str, call: Call, *options: Any) -> Any:
    """Run the op on a complete call, without a gradient."""
    coefs = call.tables.coefs
    with around.below_autograd():
        if (around.watched() and around.BELOW_AUTOGRAD is not None) or not around.ordinary(coefs):
            return getattr(library, name)(call, *options)
        return getattr(backends.for_terms(backends.choose(coefs.device.type), call.terms), name)(call, *options)


# --- combine ------------------------------------------------------------------------------------------------


class Combine(torch.autograd.Function):
    """`combine` with gradients for the terms, coefs and sigma. The noise has no differentiable inputs.

    done: the op's results if they have already been computed; otherwise whether to return the noise too.
    """

    @staticmethod
    def forward(ctx, call, done, coefs, sigma, *tensors):  # type: ignore[no-untyped-def]
        if isinstance(done, bool):  # autograd may pass a tensor without the wrapper that it has in the call
            call = call._replace(terms=with_tensors(call.terms, tensors), tables=Tables(coefs, sigma))
            done = kernel("combine", call, done)
        out, eps = done
        rows, noise = call.rows, call.noise
        _, _, needs_coefs, needs_sigma, *_ = ctx.needs_input_grad
        ctx.row, ctx.noise = None if isinstance(rows, Tensor) else rows, None
        ctx.places = [(x.tensor.shape, x.start) if isinstance(x, Block) else (x.shape, -1) for x in call.terms]
        saved = [coefs, rows if isinstance(rows, Tensor) else None]  # saved, so that in-place changes are detected
        if needs_sigma and noise is not None:
            of_tensor = isinstance(noise.key, Tensor)
            ctx.noise = noise._replace(key=None if of_tensor else noise.key, sample_ids=None)
            saved += [noise.key if of_tensor else None, noise.sample_ids]
        # Only the gradient of the coefficients reads the terms; without it they need not be kept alive.
        ctx.save_for_backward(*saved, *(tensors if needs_coefs else ()))
        if eps is None:
            return out
        ctx.mark_non_differentiable(eps)
        return out, eps

    @staticmethod
    def backward(ctx, grad, _grad_eps=None):  # type: ignore[no-untyped-def]
        coefs, rows, *rest = ctx.saved_tensors
        of_coefs, of_sigma, *of_terms = ctx.needs_input_grad[2:]
        noise, places = ctx.noise, ctx.places
        if noise is not None:
            key, ids, *rest = rest
            noise = noise._replace(key=noise.key if key is None else key, sample_ids=ids)
        terms = [
            x if start < 0 else Block(x, start, grad.shape[1]) for x, (_, start) in zip(rest, places, strict=False)
        ]
        call = Call(terms, Tables(coefs), ctx.row if rows is None else rows, noise, grad.shape, grad.dtype)
        *of_terms, of_coefs, of_sigma = _gradients(call, grad, places, [*of_terms, of_coefs, of_sigma])
        return None, None, of_coefs, of_sigma, *of_terms


class Scaled(torch.autograd.Function):
    """A finished `combine` in the usual case: all terms have the full shape, and no table needs a gradient.

    The gradient of term k is coefs[:, k] grad, which reads no term. call: the coefs and rows; done: as for
    `_record_done`.
    """

    @staticmethod
    def forward(ctx, call, done, *_terms):  # type: ignore[no-untyped-def]
        coefs, rows = call
        if rows is None:  # setting an attribute of ctx, or saving a None, would take longer
            ctx.save_for_backward(coefs)
        elif isinstance(rows, int):  # the whole table, as Combine saves it: a checkpoint may recompute by the other
            ctx.save_for_backward(coefs)
            ctx.row = rows
        else:
            ctx.save_for_backward(coefs, rows)
        out, eps, _ = done
        if eps is None:
            return out
        ctx.mark_non_differentiable(eps)
        return out, eps

    @staticmethod
    def backward(ctx, grad, _grad_eps=None):  # type: ignore[no-untyped-def]
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad
        coefs, rows = saved if len(saved) == 2 else (saved[0], getattr(ctx, "row", None))
        found = backends.look("scale", grad, coefs, rows, needs, 2)
        if found is not None:
            return found
        call = Call([], Tables(coefs), rows, None, grad.shape, grad.dtype)
        *of_terms, _, _ = _gradients(call, grad, [(grad.shape, -1)] * len(needs[2:]), [*needs[2:], False, False])
        return None, None, *of_terms


def _gradients(call: Call, grad: Tensor, places: Sequence[Place], needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of combine_backward by whatever applies here; None for those that are not needed."""
    if around.by_torch_ops(grad):
        found = combine_backward(reference, call, grad, places, needs)
    elif around.watched() and around.BELOW_AUTOGRAD is not None:
        found = library.combine_backward(
            call._replace(tables=call.tables.own(call.rows, len(grad)), rows=None), grad, places, needs
        )
    else:
        serving = backends.for_terms(backends.choose(grad.device.type), call.terms)
        found = combine_backward(serving, call, around.in_memory(grad), places, needs)
    results = iter(found)
    return [next(results) if needed else None for needed in needs]


def with_tensors(terms: Sequence[Term], tensors: Sequence[Tensor]) -> list[Term]:
    """The terms with their tensors replaced."""
    return [
        Block(x, term.start, term.channels) if isinstance(term, Block) else x
        for term, x in zip(terms, tensors, strict=True)
    ]


def combine(call: Call, return_noise: bool) -> tuple[Tensor, Tensor | None]:
    """reference.combine, differentiable in the terms, coefs and sigma."""
    coefs, sigma, *_ = call.tables
    if call.rows is not None and around.needs_grad(coefs, sigma):
        # Give each sample its own row, by differentiable ops.
        coefs, sigma, *_ = call.tables.own(call.rows, call.shape[0])
        call = call._replace(tables=Tables(coefs, sigma), rows=None)
    return _record(call, return_noise, coefs, sigma)


def _record(call: Call, done: Any, coefs: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor | None]:
    found = Combine.apply(call, done, coefs, sigma, *[x.tensor if isinstance(x, Block) else x for x in call.terms])
    return found if type(found) is tuple else (found, None)


def _record_done(terms: Sequence[Term], tables: Any, rows: Any, noise: Any, done: Any) -> tuple[Tensor, Tensor | None]:
    """Attach gradients to the results of `combine`. done: the results, and whether the case of `Scaled` applies."""
    if done[2]:
        found = Scaled.apply((tables.coefs, rows), done, *terms)
        return found if type(found) is tuple else (found, None)
    made = None if noise is None else Noise(*noise)
    call = Call(terms, tables, rows, made, done[0].shape, done[0].dtype)
    return _record(call, done[:2], tables.coefs, tables.sigma)


# --- step, squared_error, block_mask ------------------------------------------------------------------------


def step(call: Call, bounds: Bounds, return_x0: bool) -> tuple[Tensor, Tensor | None]:
    """reference.step, differentiable: two combinations around a clamp."""
    wide = call.tables.coefs.dtype  # x0 and the bounds may be out of range in half precision
    to_x0 = call.tables.to_x0
    assert to_x0 is not None
    terms = with_tensors(call.terms, [tensor_of(x).to(wide) for x in call.terms])
    first = call._replace(terms=terms, tables=Tables(to_x0), noise=None, dtype=wide)
    x0 = combine(first, False)[0].clamp(bounds.low, bounds.high)
    last: Term = x0
    if bounds.start >= 0:
        x0 = x0.narrow(1, bounds.start, bounds.channels)
        last = Block(x0, bounds.start, call.shape[1])
    tables = Tables(call.tables.coefs, call.tables.sigma)
    out, _ = combine(call._replace(terms=[*terms, last], tables=tables, dtype=wide), False)
    return out.to(call.dtype), x0.to(call.dtype) if return_x0 else None


class SquaredError(torch.autograd.Function):
    """`squared_error` with its gradient for term 0, which the forward pass computes.

    scale: the scale, or the op's results with the gradient if they have already been computed.
    """

    @staticmethod
    def forward(ctx, call, scale, first):  # type: ignore[no-untyped-def]
        # save_for_backward frees it after the last backward pass, and detects in-place changes.
        if isinstance(scale, tuple):
            loss, ready, _ = scale
            ctx.save_for_backward(ready, None)
            return loss
        factor = None
        if first.dtype == torch.float16:  # small gradients would underflow before a loss scale, so keep c_0 r
            weight = call.tables.weight
            factor = 2 * scale * pick(weight, call.rows, len(first))
            call, scale = call._replace(tables=call.tables._replace(weight=torch.ones_like(weight))), 0.5
        call = call._replace(terms=[first, *call.terms[1:]])
        loss, ready = kernel("squared_error", call, scale, True)
        ctx.save_for_backward(ready, factor)
        return loss if factor is None else loss * factor

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            raise MmfastError("the fused loss has no second derivative; give it fused=False to differentiate it twice")
        ready, factor = ctx.saved_tensors
        by_torch = around.by_torch_ops(grad)
        if factor is not None:
            grad = grad * factor
        # Usually, as in loss.backward(), nothing is left to do. Reading a GPU's values would wait for it.
        elif grad.device.type == "cpu" and not (by_torch or around.watched()) and bool((grad == 1).all()):
            return None, None, ready
        wide = grad.to(arithmetic(ready.dtype))
        if by_torch:
            return None, None, (per_sample(wide, ready.dim()) * ready).to(ready.dtype)
        scaled = Call([ready], Tables(around.in_memory(wide)[:, None]), None, None, ready.shape, ready.dtype)
        return None, None, kernel("combine", scaled, False)[0]


def squared_error(call: Call, scale: float, return_grad: bool = False) -> tuple[Tensor, Tensor | None]:
    """reference.squared_error's loss [B], differentiable in term 0 by the gradient from the forward pass."""
    return SquaredError.apply(call, scale, call.terms[0]), None


class BlockMask(torch.autograd.Function):
    """`block_mask`; hidden values get a zero gradient."""

    @staticmethod
    def forward(ctx, x, *args):  # type: ignore[no-untyped-def]
        with around.below_autograd():
            if around.watched() and around.BELOW_AUTOGRAD is not None:
                out, mask = library.block_mask(x, *args)
            else:
                out, mask = backends.choose(x.device.type).block_mask(x, *args)
        ctx.save_for_backward(mask)
        ctx.mark_non_differentiable(mask)
        return out, mask

    @staticmethod
    def backward(ctx, grad, _grad_mask):  # type: ignore[no-untyped-def]
        (mask,) = ctx.saved_tensors
        return torch.where(mask > 0, grad, 0.0), *(None,) * 4


def block_mask(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """reference.block_mask, differentiable in x."""
    return BlockMask.apply(x, *args)


# How dispatch.at_once records a finished op. If a table needs a gradient, the call has no rows.
RECORD: dict[str, Any] = {
    "combine": _record_done,
    "squared_error": lambda terms, _tables, _rows, _noise, done: (SquaredError.apply(None, done, terms[0]), None),
}


library.backward_kernel(combine_backward)
if around.BELOW_AUTOGRAD is not None:  # without it, dispatch.py uses torch's own ops under a mode
    library.gradient("combine", combine)
    library.gradient("step", step)
    library.gradient("squared_error", squared_error)
    library.mask_gradient(block_mask)
