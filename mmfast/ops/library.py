"""The ops in torch.library, for compilers, dispatch modes and tensor subclasses: a schema, a fake and a kernel each.

Only here is a `Call` flattened, because a schema does not support objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import around, backends
from mmfast.ops.call import Block, Bounds, Call, Noise, Tables, Term, tensor_of

library = torch.library.Library("mmfast", "DEF")

_NOISE = "Tensor? key, Tensor? sample_ids, int stream"
_TERMS = "Tensor[] terms, int[] starts"
_CALL = (
    f"{_TERMS}, Tensor coefs, Tensor? sigma, Tensor? to_x0, Tensor? weight, Tensor? rows, {_NOISE}, SymInt[] shape, "
    "ScalarType dtype"
)
_LEVELS = "*, int[] levels=[]"
_SCHEMAS = {
    "combine": f"({_CALL}, bool return_noise, {_LEVELS}) -> (Tensor, Tensor)",
    "step": (
        f"({_CALL}, float low, float high, int start, SymInt channels, bool return_x0, {_LEVELS}) -> (Tensor, Tensor)"
    ),
    "squared_error": f"({_CALL}, float scale, bool return_grad, {_LEVELS}) -> (Tensor, Tensor)",
    "combine_backward": f"(Tensor grad, {_TERMS}, Tensor coefs, {_NOISE}, bool[] needs, {_LEVELS}) -> Tensor[]",
    "random_words": f"({_NOISE}, SymInt batch, SymInt count, Device device) -> Tensor",
    "block_mask": f"(Tensor x, Tensor hidden, {_NOISE}, int[] block, bool exact) -> (Tensor, Tensor)",
}
for _name, _schema in _SCHEMAS.items():
    library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))


# --- flat and back ------------------------------------------------------------------------------------------


def _flat_noise(noise: Noise | None, device: torch.device) -> tuple[Any, ...]:
    if noise is None:
        return None, None, 0
    key = noise.key
    if isinstance(key, tuple):  # under a compiler an int may be symbolic
        # The driver stages a small copy from pageable memory, so this does not wait for the GPU.
        key = torch.tensor(key, dtype=torch.int64).to(device, non_blocking=True)
    return key, noise.sample_ids, noise.stream


def _noise(key: Tensor | None, sample_ids: Tensor | None, stream: int, levels: Sequence[int] = ()) -> Noise | None:
    return None if key is None else Noise(key, sample_ids, stream, tuple(levels))


def _levels(call: Call) -> list[int]:
    return [] if call.noise is None else list(call.noise.levels)


def _flat_terms(terms: Sequence[Term]) -> tuple[list[Tensor], list[int]]:
    return [tensor_of(x) for x in terms], [x.start if isinstance(x, Block) else -1 for x in terms]


def _terms(tensors: Sequence[Tensor], starts: Sequence[int], shape: Sequence[int]) -> list[Term]:
    return [x if start < 0 else Block(x, start, shape[1]) for x, start in zip(tensors, starts, strict=True)]


def flatten(call: Call) -> tuple[Any, ...]:
    """Flatten a complete call into the arguments of a schema, without the noise's levels."""
    call = call.one_row()
    noise = _flat_noise(call.noise, call.tables.coefs.device)
    return *_flat_terms(call.terms), *call.tables, call.rows, *noise, call.shape, call.dtype


def unflatten(args: Sequence[Any], levels: Sequence[int] = ()) -> tuple[Call, Sequence[Any]]:
    """Rebuild the call from a schema's arguments; returns it with the arguments that follow it."""
    tensors, starts, coefs, sigma, to_x0, weight, rows, key, sample_ids, stream, shape, dtype, *rest = args
    tables = Tables(coefs, sigma, to_x0, weight)
    noise = _noise(key, sample_ids, stream, levels)
    return Call(_terms(tensors, starts, shape), tables, rows, noise, shape, dtype), rest


def _both(found: tuple[Tensor, Tensor | None], wanted: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both results as tensors, as the schema requires: an empty one replaces a missing second result."""
    first, second = found
    return first, first.new_empty(0, dtype=dtype) if second is None or not wanted else second


# --- the ops as a call's implementation (dispatch.choose) ---------------------------------------------------


def combine(call: Call, return_noise: bool) -> tuple[Tensor, Tensor | None]:
    """reference.combine, as torch's dispatcher sees it."""
    return torch.ops.mmfast.combine.default(*flatten(call), return_noise, levels=_levels(call))


def step(call: Call, bounds: Bounds, return_x0: bool) -> tuple[Tensor, Tensor | None]:
    """reference.step, as torch's dispatcher sees it."""
    return torch.ops.mmfast.step.default(*flatten(call), *bounds, return_x0, levels=_levels(call))


def squared_error(call: Call, scale: float, return_grad: bool) -> tuple[Tensor, Tensor | None]:
    """reference.squared_error, as torch's dispatcher sees it."""
    return torch.ops.mmfast.squared_error.default(*flatten(call), scale, return_grad, levels=_levels(call))


def combine_backward(
    call: Call, grad: Tensor, places: Sequence[tuple[Sequence[int], int]], needs: Sequence[bool]
) -> list[Tensor]:
    """gradients.combine_backward, as torch's dispatcher sees it; the tables have one row per sample."""
    noise = _flat_noise(call.noise, grad.device)
    tensors, starts = [tensor_of(x) for x in call.terms], [start for _, start in places]
    if not tensors:  # only their shapes are used
        tensors = [grad.new_empty(()).expand(tuple(shape)) for shape, _ in places]
    args = grad, tensors, starts, call.tables.coefs, *noise, list(needs)
    return torch.ops.mmfast.combine_backward.default(*args, levels=_levels(call))


def random_words(noise: Noise, batch: int, count: int, device: torch.device) -> Tensor:
    """reference.random_words, as torch's dispatcher sees it."""
    return torch.ops.mmfast.random_words.default(*_flat_noise(noise, device), batch, count, device)


def block_mask(
    x: Tensor, hidden: int | Tensor, noise: Noise, block: Sequence[int], exact: bool
) -> tuple[Tensor, Tensor]:
    """reference.block_mask, as torch's dispatcher sees it."""
    if not isinstance(hidden, Tensor):
        hidden = torch.full((len(x),), hidden, dtype=torch.int64, device=x.device)
    return torch.ops.mmfast.block_mask.default(x, hidden, *_flat_noise(noise, x.device), block, exact)


# --- kernels and fakes --------------------------------------------------------------------------------------


def kernel(name: str, function: Callable[[Any], Callable[..., Any]]) -> None:
    """Register function(backend)(*args) as the CPU and CUDA kernel of the op `name`."""
    for device, key in (("cpu", "CPU"), ("cuda", "CUDA")):

        def run(*args: Any, device: str = device, **named: Any) -> Any:
            return function(backends.choose(device))(*args, **named)

        library.impl(name, run, key)


def _options(name: str, rest: Sequence[Any]) -> Sequence[Any]:
    """Convert the schema's arguments after the call to the implementation's."""
    return (Bounds(*rest[:4]), *rest[4:]) if name == "step" else rest


def _of_call(name: str) -> Callable[[Any], Callable[..., Any]]:
    def on(backend: Any) -> Callable[..., Any]:
        def run(*args: Any, levels: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
            call, rest = unflatten(args, levels)
            serving = backends.for_terms(backend, call.terms)
            return _both(getattr(serving, name)(call, *_options(name, rest)), rest[-1], call.dtype)

        return run

    return on


def _on_words(backend: Any) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        noise = _noise(*args[:3])
        assert noise is not None
        return backend.random_words(noise, *args[3:])

    return run


def _on_mask(backend: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, hidden: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return backend.block_mask(x, hidden, _noise(*args[:3]), *args[3:])

    return run


for _name in ("combine", "step", "squared_error"):
    kernel(_name, _of_call(_name))
kernel("random_words", _on_words)
kernel("block_mask", _on_mask)


def _fake(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.library.register_fake(f"mmfast::{function.__name__.removeprefix('_fake_')}", function, lib=library)


@_fake
def _fake_combine(*args: Any, levels: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    call, (return_noise,) = unflatten(args)
    out = call.tables.coefs.new_empty(tuple(call.shape), dtype=call.dtype)
    return out, torch.empty_like(out) if return_noise else out.new_empty(0)


@_fake
def _fake_step(*args: Any, levels: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    call, (_low, _high, start, channels, return_x0) = unflatten(args)
    shape = tuple(call.shape)
    out = call.tables.coefs.new_empty(shape, dtype=call.dtype)
    of_x0 = shape if start < 0 else (shape[0], channels, *shape[2:])
    return out, out.new_empty(of_x0 if return_x0 else 0)


@_fake
def _fake_squared_error(*args: Any, levels: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    call, (_scale, return_grad) = unflatten(args)
    shape, coefs = tuple(call.shape), call.tables.coefs
    return coefs.new_empty(shape[0]), coefs.new_empty(shape if return_grad else 0, dtype=call.dtype)


@_fake
def _fake_combine_backward(
    grad: Tensor, terms: list[Tensor], starts: list[int], coefs: Tensor, *rest: Any, levels: Sequence[int] = ()
) -> Any:
    *needs_terms, needs_coefs, needs_sigma = rest[-1]
    result = [x.new_empty(x.shape) for x, needed in zip(terms, needs_terms, strict=True) if needed]
    if needs_coefs:
        result.append(coefs.new_empty(coefs.shape))
    if needs_sigma:
        result.append(coefs.new_empty((grad.shape[0], len(levels)) if levels else grad.shape[0]))
    return result


@_fake
def _fake_random_words(key: Tensor, sample_ids: Any, stream: int, batch: int, count: int, device: Any) -> Tensor:
    return torch.empty(batch, count, dtype=torch.int64, device=device)


@_fake
def _fake_block_mask(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], 1, *x.shape[2:])


# --- gradients: autograd.py registers its functions ---------------------------------------------------------


def backward_kernel(function: Callable[..., list[Tensor]]) -> None:
    """Register function(backend, call, grad, places, needs) as the kernel of combine_backward."""

    def on(backend: Any) -> Callable[..., list[Tensor]]:
        def run(grad: Tensor, *args: Any, levels: Sequence[int] = ()) -> list[Tensor]:
            tensors, starts, coefs, key, ids, stream, needs = args
            terms, noise = _terms(tensors, starts, grad.shape), _noise(key, ids, stream, levels)
            call = Call(terms, Tables(coefs), None, noise, grad.shape, grad.dtype)
            places = [(x.shape, start) for x, start in zip(tensors, starts, strict=True)]
            return function(backends.for_terms(backend, terms), call, grad, places, needs)

        return run

    kernel("combine_backward", on)


def gradient(name: str, function: Callable[..., tuple[Tensor, Tensor | None]]) -> None:
    """Register a differentiable function of a call for when a gradient is needed; otherwise the op's kernel runs."""
    plain = getattr(torch.ops.mmfast, name).default

    def run(*args: Any, levels: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        call, rest = unflatten(args, levels)
        tensors = [tensor_of(x) for x in call.terms]
        recorded = around.needs_grad(*tensors, *call.tables)
        if name == "squared_error":  # dispatch.py handles the other gradients
            recorded = around.needs_grad(*tensors[:1]) and not rest[-1]
        if not recorded:
            with around.below_autograd():
                return plain(*args, levels=levels)
        return _both(function(call, *_options(name, rest)), True, call.dtype)

    library.impl(name, run, "Autograd")


def mask_gradient(function: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Register a differentiable block_mask, as `gradient` does."""

    def run(x: Tensor, hidden: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        if around.needs_grad(x):
            return function(x, hidden, _noise(*args[:3]), *args[3:])
        with around.below_autograd():
            return torch.ops.mmfast.block_mask.default(x, hidden, *args)

    library.impl("block_mask", run, "Autograd")
