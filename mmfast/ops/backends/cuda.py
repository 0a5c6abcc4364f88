"""The CUDA C++ kernels (csrc/cuda/), which read a `Call` directly. reference.py defines the functions.

One call into the extension reads the tensors, allocates the results and queues the kernels on torch's current stream.
Nothing here waits for the device, so a CUDA graph can capture it all after a first call, which loads the kernels.

The kernels use float32 arithmetic (float64 for float64), with one fused multiply-add per term in the order of the
terms. Sums are in float64, in an order that depends only on the shapes and types. The tests also run the kernels on
the host, without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfast.ops import extensions
from mmfast.ops.backends.copies import with_copies
from mmfast.ops.call import Bounds, Call, Noise, Rows, Tables

_cuda, _missing = extensions.load("_mmfast_cuda")

name = "cuda"
devices = ("cuda",)
max_terms = 32 if _cuda is None else _cuda.max_terms


def unavailable() -> str | None:
    """One line on why this backend cannot run here, or None if it can.

    This does not initialise CUDA, which a process must not do before it forks. A GPU that the extension has no code for
    therefore shows up only in the first call, as a RuntimeError.
    """
    if _cuda is None:
        return f"{_missing or 'the extension _mmfast_cuda is not built'} where there is nvcc"
    return None if torch.cuda.is_available() else f"torch sees no CUDA device for {_cuda.__file__}"


def describe() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, {_cuda.__file__}"


def _whole(call: Call) -> Call:
    """The call with contiguous tables of equal length, as the kernels require."""
    rows = next((len(x) for x in call.tables if x is not None and len(x) != 1), 1)
    return call._replace(tables=call.tables.map(lambda x: x.expand(rows, *x.shape[1:]).contiguous()))


def combine(call: Call, return_noise: bool) -> tuple[Tensor, Tensor | None]:
    return with_copies(_cuda.combine, _whole(call), return_noise)


def step(call: Call, bounds: Bounds, return_x0: bool) -> tuple[Tensor, Tensor | None]:
    return with_copies(_cuda.step, _whole(call), bounds, return_x0)


def squared_error(call: Call, scale: float, return_grad: bool) -> tuple[Tensor, Tensor | None]:
    return with_copies(_cuda.squared_error, _whole(call), scale, return_grad)


def random_words(noise: Noise, batch: int, count: int, device: torch.device) -> Tensor:
    return _cuda.random_words(noise, torch.empty(batch, count, dtype=torch.int64, device=device))


def block_mask(
    x: Tensor, hidden: int | Tensor, noise: Noise, block: Sequence[int], exact: bool
) -> tuple[Tensor, Tensor]:
    if isinstance(hidden, Tensor):
        hidden = hidden.contiguous()
    elif not exact:
        hidden = torch.full((len(x),), hidden, dtype=torch.int64, device=x.device)
    return _cuda.block_mask(x.contiguous(), hidden, noise, tuple(block), exact)


def scale(x: Tensor, coefs: Tensor, rows: Rows, columns: Sequence[int]) -> list[Tensor]:
    return _cuda.scale(x, coefs.contiguous(), rows, columns)


def dots(call: Call, grad: Tensor) -> Tensor:
    return with_copies(_cuda.dots, call, grad)


def row_sums(x: Tensor) -> Tensor:
    one = x.new_ones(1, 1)
    return dots(Call([one], Tables(one), None, None, x.shape, x.dtype), x)[:, 0].contiguous()
