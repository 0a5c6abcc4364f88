"""The autograd functions of the ops. Under create_graph, and for batches of gradients, their backward passes are made
of torch's own ops; else of the kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast.errors import MmfastError
from mmfast.ops import reference
from mmfast.ops.glance import by_torch_ops, express, in_memory, watched
from mmfast.ops.library import call
from mmfast.ops.reference import per_sample, pick


def _tensor(x: Any) -> Tensor | None:
    """x, if autograd can save it: then a change of it in place is noticed."""
    return x if isinstance(x, Tensor) else None


class Combine(torch.autograd.Function):
    """`combine` with gradients for the terms, coefs and sigma; the noise has no inputs to pass one to."""

    @staticmethod
    def forward(ctx, starts, rows, key, sample_ids, stream, shape, dtype, return_noise, coefs, sigma, *terms):  # type: ignore[no-untyped-def]
        with torch._C._AutoDispatchBelowAutograd():
            out, eps = call(
                "combine", coefs.device, terms, starts, coefs, sigma, rows, key, sample_ids, stream, shape, dtype,
                return_noise,
            )  # fmt: skip
        ctx.options = (starts, rows if isinstance(rows, int) else None, key if isinstance(key, tuple) else None, stream)
        ctx.kinds = [(x.shape, x.dtype) for x in terms]
        # Only the gradient of the coefficients reads the terms: without it they need not be kept alive.
        kept = terms if ctx.needs_input_grad[8] else ()
        ctx.save_for_backward(coefs, sigma, _tensor(rows), _tensor(key), sample_ids, *kept)
        ctx.mark_non_differentiable(eps)
        return out, eps

    @staticmethod
    def backward(ctx, grad, _grad_eps):  # type: ignore[no-untyped-def]
        starts, row, pair, stream = ctx.options
        coefs, sigma, rows, key, sample_ids, *terms = ctx.saved_tensors
        rows, key = row if rows is None else rows, pair if key is None else key
        if not terms:
            terms = [grad.new_empty((), dtype=dtype).expand(shape) for shape, dtype in ctx.kinds]
        needs_coefs, needs_sigma, *needs_terms = ctx.needs_input_grad[8:]
        own = pick(coefs, rows, len(grad)), None if sigma is None else pick(sigma, rows, len(grad))
        args = (terms, starts, *own, key, sample_ids, stream, [*needs_terms, needs_coefs, needs_sigma])
        if by_torch_ops(grad):
            found = iter(reference.combine_backward(grad, *args))
        else:
            found = iter(call("combine_backward", grad.device, in_memory(grad), *args))
        of_terms = [next(found) if needed else None for needed in needs_terms]
        of_coefs = next(found) if needs_coefs else None
        of_sigma = next(found) if needs_sigma else None
        return (None,) * 8 + (of_coefs, of_sigma, *of_terms)


class NotAsUsualError(Exception):
    """An express call that cannot be one after all."""


class Express(torch.autograd.Function):
    """`combine` by glance.express for tensors of which some are to be differentiated, and nothing else is unusual."""

    @staticmethod
    def forward(ctx, tables, rows, identity, return_noise, *terms):  # type: ignore[no-untyped-def]
        done = express(list(terms), tables, rows, identity, return_noise)  # gradients are off in here
        if type(done) is int:
            raise NotAsUsualError
        ctx.coefs, ctx.row = tables.coefs, rows if isinstance(rows, int) else None
        ctx.save_for_backward(_tensor(rows))
        if done[1] is None:
            return done[0]
        ctx.mark_non_differentiable(done[1])
        return done

    @staticmethod
    def backward(ctx, grad, _grad_eps=None):  # type: ignore[no-untyped-def]
        needed, (rows,) = ctx.needs_input_grad[4:], ctx.saved_tensors
        coefs = pick(ctx.coefs, ctx.row if rows is None else rows, len(grad))
        if by_torch_ops(grad) or watched():
            scaled = [per_sample(coefs[:, k], grad.dim()) * grad if yes else None for k, yes in enumerate(needed)]
        else:
            grad = in_memory(grad)
            args = ([grad] * len(needed), [-1] * len(needed), coefs, None, None, None, 0, [*needed, False, False])
            found = iter(call("combine_backward", grad.device, grad, *args))
            scaled = [next(found) if yes else None for yes in needed]
        return None, None, None, None, *scaled


class SquaredError(torch.autograd.Function):
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
        elif grad.device.type == "cpu" and not (watched() or by_torch_ops(grad)) and bool((grad == 1).all()):
            return ready, *(None,) * 12
        wide = grad.to(reference.arithmetic(ready.dtype))
        if by_torch_ops(grad):
            return (per_sample(wide, ready.dim()) * ready).to(ready.dtype), *(None,) * 12
        args = ([ready], [-1], in_memory(wide)[:, None], None, None, None, None, 0)
        return call("combine", ready.device, *args, ready.shape, ready.dtype, False)[0], *(None,) * 12


class BlockMask(torch.autograd.Function):
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
