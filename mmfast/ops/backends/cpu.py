"""The C++ kernels for the CPU (csrc/), which read a `Call` directly. reference.py defines the functions.

They use float32 arithmetic (float64 for float64), with one fused multiply-add per term in the order of the terms. Sums
are in float64, in an order that does not depend on the number of threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from mmfast.errors import BackendError
from mmfast.ops import extensions
from mmfast.ops.backends.copies import with_copies
from mmfast.ops.call import Bounds, Call, Noise, Rows

_cpu, _missing = extensions.load("_mmfast_cpu")

name = "cpu"
devices = ("cpu",)
max_terms = math.inf

_TITLES = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "baseline": "baseline"}


def unavailable() -> str | None:
    """One line on why this backend cannot run here, or None if it can."""
    return _missing or None


def describe() -> str:
    threads = torch.get_num_threads()
    parallel = f"OpenMP, {threads} thread{'s' * (threads != 1)}" if _cpu.has_openmp() else "no OpenMP, 1 thread"
    return f"{_TITLES[_cpu.isa()]}, {parallel}, {_cpu.__file__}"


def isas() -> list[str]:
    """The instruction sets that this build and this CPU support, best first."""
    return list(_cpu.isas())


def set_isa(name: str | None) -> None:
    """Use this instruction set from now on; None for the best. All give bit-identical results."""
    _cpu.set_isa(name or "")


if _cpu is not None and os.environ.get("MMFAST_ISA"):
    try:
        set_isa(os.environ["MMFAST_ISA"])
    except ValueError as error:
        raise BackendError(f"MMFAST_ISA: {error}; it can be {', '.join(isas())}, or unset") from None


def combine(call: Call, return_noise: bool) -> tuple[Tensor, Tensor | None]:
    return with_copies(_cpu.combine, call, return_noise)


def step(call: Call, bounds: Bounds, return_x0: bool) -> tuple[Tensor, Tensor | None]:
    return with_copies(_cpu.step, call, bounds, return_x0)


def squared_error(call: Call, scale: float, return_grad: bool) -> tuple[Tensor, Tensor | None]:
    return with_copies(_cpu.squared_error, call, scale, return_grad)


def random_words(noise: Noise, batch: int, count: int, device: torch.device) -> Tensor:
    return _cpu.random_words(noise, torch.empty(batch, count, dtype=torch.int64, device=device))


def block_mask(
    x: Tensor, hidden: int | Tensor, noise: Noise, block: Sequence[int], exact: bool
) -> tuple[Tensor, Tensor]:
    if isinstance(hidden, Tensor):
        hidden = hidden.contiguous()
    return _cpu.block_mask(x.contiguous(), hidden, noise, tuple(block), exact)


def scale(x: Tensor, coefs: Tensor, rows: Rows, columns: Sequence[int]) -> list[Tensor]:
    return _cpu.scale(x, coefs, rows, columns)


def dots(call: Call, grad: Tensor) -> Tensor:
    return with_copies(_cpu.dots, call, grad)


def row_sums(x: Tensor) -> Tensor:
    return _cpu.row_sums(x)
