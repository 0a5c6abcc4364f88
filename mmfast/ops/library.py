"""torch.library's view of the ops: a schema, a fake and a kernel each, which forwards to the backend that serves.

A backend is a module with one function an op, with the op's arguments in its order (reference.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import backends
from mmfast.ops.glance import watched
from mmfast.ops.reference import one_row

library = torch.library.Library("mmfast", "DEF")

# Arguments that several ops share.
_TERMS = "Tensor[] terms, int[] starts"
_NOISE = "Tensor? key, Tensor? sample_ids, int stream"
_RESULT = "SymInt[] shape, ScalarType dtype"

_SCHEMAS = {
    "combine": f"({_TERMS}, Tensor coefs, Tensor? sigma, Tensor? rows, {_NOISE}, {_RESULT}, bool return_noise)"
    " -> (Tensor, Tensor)",
    "combine_backward": f"(Tensor grad, {_TERMS}, Tensor coefs, Tensor? sigma, {_NOISE}, bool[] needs) -> Tensor[]",
    "step": f"({_TERMS}, Tensor to_x0, Tensor coefs, Tensor? sigma, Tensor? rows, float low, float high, int x0_start, "
    f"SymInt x0_channels, {_NOISE}, {_RESULT}, bool return_x0) -> (Tensor, Tensor)",
    "squared_error": f"({_TERMS}, Tensor coefs, Tensor? sigma, Tensor weight, Tensor? rows, {_NOISE}, {_RESULT}, "
    "float scale, bool return_grad) -> (Tensor, Tensor)",
    "block_ranks": "(Tensor key, Tensor? sample_ids, int stream, SymInt batch, SymInt blocks, Device device) -> Tensor",
    "block_mask": "(Tensor x, Tensor threshold, Tensor key, Tensor? sample_ids, int stream, int[] block) -> (Tensor, "
    "Tensor)",
}


def _kernel(name: str, device: str) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        return getattr(backends.choose(device), name)(*args)

    return kernel


for _name, _schema in _SCHEMAS.items():
    library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(_name, _kernel(_name, "cpu"), "CPU")
    library.impl(_name, _kernel(_name, "cuda"), "CUDA")


def _fake(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.library.register_fake(f"mmfast::{function.__name__}", function, lib=library)


@_fake
def combine(terms, starts, coefs, sigma, rows, key, sample_ids, stream, shape, dtype, return_noise):  # type: ignore[no-untyped-def]
    out = coefs.new_empty(tuple(shape), dtype=dtype)
    return out, torch.empty_like(out) if return_noise else out.new_empty(0)


@_fake
def combine_backward(grad, terms, starts, coefs, sigma, key, sample_ids, stream, needs):  # type: ignore[no-untyped-def]
    *needs_terms, needs_coefs, needs_sigma = needs
    result = [x.new_empty(x.shape) for x, needed in zip(terms, needs_terms, strict=True) if needed]
    if needs_coefs:
        result.append(coefs.new_empty(coefs.shape))
    if needs_sigma and sigma is not None:
        result.append(sigma.new_empty(sigma.shape))
    return result


@_fake
def step(  # type: ignore[no-untyped-def]
    terms, starts, to_x0, coefs, sigma, rows, low, high, x0_start, x0_channels, key, sample_ids, stream, shape, dtype,
    return_x0,
):  # fmt: skip
    of_x0 = shape if x0_start < 0 else (shape[0], x0_channels, *shape[2:])
    return coefs.new_empty(tuple(shape), dtype=dtype), coefs.new_empty(tuple(of_x0) if return_x0 else 0, dtype=dtype)


@_fake
def squared_error(  # type: ignore[no-untyped-def]
    terms, starts, coefs, sigma, weight, rows, key, sample_ids, stream, shape, dtype, scale, return_grad
):
    return coefs.new_empty(shape[0]), coefs.new_empty(tuple(shape) if return_grad else 0, dtype=dtype)


@_fake
def block_ranks(key, sample_ids, stream, batch, blocks, device):  # type: ignore[no-untyped-def]
    return torch.empty(batch, blocks, dtype=torch.int64, device=device)


@_fake
def block_mask(x, threshold, key, sample_ids, stream, block):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty(x.shape[0], 1, *x.shape[2:])


def call(name: str, device: torch.device, *args: Any) -> Any:
    """The op by its shortest way: straight to the backend, unless a compiler, tracer or dispatch mode has to see it.

    The dispatcher would only find the same way, and on a small or a cold call that costs more than the arithmetic.
    """
    if watched():
        return getattr(torch.ops.mmfast, name).default(*args)
    return getattr(backends.choose(device.type), name)(*args)


def as_tensors(rows: Any, key: Any, device: torch.device, tables: Sequence[Tensor | None]) -> Any:
    """Rows and key as the dispatcher takes them, tensors or None; returns (rows, key, *tables) with the row picked."""
    rows, *tables = one_row(rows, *tables)
    if isinstance(key, tuple):  # under a compiler an int may be symbolic
        # A small copy from pageable memory is staged by the driver: it does not wait for the GPU's work.
        key = torch.tensor(key, dtype=torch.int64).to(device, non_blocking=True)
    return rows, key, *tables
