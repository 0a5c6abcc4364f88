"""torch.library's view of the primitive: schema, fake, one kernel a device, autograd.

The kernels only forward to the backend that backends.py chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mmfast.ops import backends, reference

_library = torch.library.Library("mmfast", "DEF")
_library.define(
    "combine(Tensor[] terms, int[] starts, Tensor coefs, Tensor? sigma, Tensor? key, Tensor? sample_ids, "
    "int stream, SymInt[] shape, ScalarType dtype, bool return_noise) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "combine_backward(Tensor grad, Tensor[] terms, int[] starts, Tensor coefs, Tensor? sigma, Tensor? key, "
    "Tensor? sample_ids, int stream, bool[] needs) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_combine = torch.ops.mmfast.combine.default
_combine_backward = torch.ops.mmfast.combine_backward.default


def _register(device: str, key: str) -> None:
    def combine(*args: Any) -> tuple[Tensor, Tensor]:
        return backends.choose(device).combine(*args)

    def combine_backward(*args: Any) -> list[Tensor]:
        return backends.choose(device).combine_backward(*args)

    _library.impl("combine", combine, key)
    _library.impl("combine_backward", combine_backward, key)


_register("cpu", "CPU")
_register("cuda", "CUDA")


@torch.library.register_fake("mmfast::combine", lib=_library)
def _(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    key: Tensor | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    return_noise: bool,
) -> tuple[Tensor, Tensor]:
    out = coefs.new_empty(tuple(shape), dtype=dtype)
    return out, torch.empty_like(out) if return_noise else out.new_empty(0)


@torch.library.register_fake("mmfast::combine_backward", lib=_library)
def _(
    grad: Tensor,
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    key: Tensor | None,
    sample_ids: Tensor | None,
    stream: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    *needs_terms, needs_coefs, needs_sigma = needs
    result = [x.new_empty(x.shape) for x, needed in zip(terms, needs_terms, strict=True) if needed]
    if needs_coefs:
        result.append(coefs.new_empty(coefs.shape))
    if needs_sigma and sigma is not None:
        result.append(sigma.new_empty(sigma.shape))
    return result


class _Combine(torch.autograd.Function):
    """`combine` with gradients for the terms, coefs and sigma; the noise has no inputs to pass one to."""

    @staticmethod
    def forward(ctx, starts, key, sample_ids, stream, shape, dtype, return_noise, coefs, sigma, *terms):  # type: ignore[no-untyped-def]
        with torch._C._AutoDispatchBelowAutograd():
            out, eps = _combine(terms, starts, coefs, sigma, key, sample_ids, stream, shape, dtype, return_noise)
        ctx.options = (starts, stream, [x.shape for x in terms], [x.dtype for x in terms])
        # Only the gradient of the coefficients reads the terms: without it they need not be kept alive.
        kept = terms if ctx.needs_input_grad[7] else ()
        ctx.save_for_backward(coefs, sigma, key, sample_ids, *kept)
        ctx.mark_non_differentiable(eps)
        return out, eps

    @staticmethod
    def backward(ctx, grad, _grad_eps):  # type: ignore[no-untyped-def]
        starts, stream, shapes, dtypes = ctx.options
        coefs, sigma, key, sample_ids, *terms = ctx.saved_tensors
        if not terms:
            terms = [grad.new_empty((), dtype=d).expand(s) for s, d in zip(shapes, dtypes, strict=True)]
        needs_coefs, needs_sigma, *needs_terms = ctx.needs_input_grad[7:]
        needs = [*needs_terms, needs_coefs, needs_sigma]
        # Under create_graph the gradient is itself differentiated: the reference's torch ops can be.
        backward = reference.combine_backward if torch.is_grad_enabled() else _combine_backward
        found = iter(backward(grad, terms, starts, coefs, sigma, key, sample_ids, stream, needs))
        of_terms = [next(found) if needed else None for needed in needs_terms]
        of_coefs = next(found) if needs_coefs else None
        of_sigma = next(found) if needs_sigma else None
        return (None,) * 7 + (of_coefs, of_sigma, *of_terms)


def _autograd(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    key: Tensor | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    return_noise: bool,
) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and (
        coefs.requires_grad or (sigma is not None and sigma.requires_grad) or any(term.requires_grad for term in terms)
    ):
        return _Combine.apply(starts, key, sample_ids, stream, shape, dtype, return_noise, coefs, sigma, *terms)
    with torch._C._AutoDispatchBelowAutograd():
        return _combine(terms, starts, coefs, sigma, key, sample_ids, stream, shape, dtype, return_noise)


_library.impl("combine", _autograd, "Autograd")


def combine(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    """The registered primitive, `torch.ops.mmfast.combine`; arguments and result: reference.combine.

    Plain tensors that need no gradient go straight to the backend: the dispatcher would only find the way there, and
    on a small or a cold call that costs more than the arithmetic.
    """
    if _transformed():
        return reference.combine(terms, starts, coefs, sigma, *rest)
    if _nobody_watches() and _plain(coefs) and (sigma is None or _plain(sigma)) and all(map(_plain, terms)):
        return backends.choose(coefs.device.type).combine(terms, starts, coefs, sigma, *rest)
    return _combine(terms, starts, coefs, sigma, *rest)


def _transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: both go through the reference's torch ops."""
    if torch.compiler.is_compiling():  # the compiler cannot look at either, and traces the op itself
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _nobody_watches() -> bool:
    """Whether no compiler, tracer or dispatch mode has to see the op."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
    )


def _plain(x: Tensor) -> bool:
    return type(x) is Tensor and not (x.requires_grad and torch.is_grad_enabled())
