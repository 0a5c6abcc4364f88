"""How a Triton kernel is launched: what it is told of keys, terms and tables, and over how many programs.

Run on one H100 (tests/test_gpu.py).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops.layout import Layout, lay_out
from mmfast.ops.reference import Key

kernels: Any = None
missing = ""
try:
    kernels = importlib.import_module("mmfast.ops.triton_kernels")
except ImportError as error:
    missing = str(error)

interpreted = kernels is not None and not isinstance(kernels.combine, kernels.triton.JITFunction)

ITEM = 8192  # as in triton_kernels.py
BLOCK = 1024  # elements a program: 8 a thread
LANES = 1024  # of a sum of 4 bytes each: lanes_of. The order of the sum depends on it, its speed too
WARPS, SUM_WARPS = 4, 8


def launch(kernel: Any, programs: int, warps: int, *arguments: object, **constants: object) -> None:
    """Run `programs` programs of a kernel on the device of its first argument, a tensor."""
    assert isinstance(arguments[0], Tensor)
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants, num_warps=warps)


def identity(key: Key | None, sample_ids: Tensor | None, stream: int) -> tuple[object, ...]:
    """What the kernels need to make noise: triton_noise.py. Halves of 32 bits, so that no seed is another type."""
    ids = None if sample_ids is None else sample_ids.contiguous()
    if isinstance(key, Tensor):
        return key.contiguous(), 0, 0, 0, ids, stream
    seed, draw = key or (0, 0)
    return None, signed(seed), signed(seed >> 32), signed(draw), ids, stream


def signed(word: int) -> int:
    """The low 32 bits, as the int32 with these bits."""
    return (word + 2**31) % 2**32 - 2**31


def place(
    terms: Sequence[Tensor], starts: Sequence[int], shape: Sequence[int], tile: int
) -> tuple[tuple[Tensor, ...], Layout, dict[str, object]]:
    """The terms as they can be read, how they lie, and the constants of a kernel with tiles of this size."""
    tensors, layout = lay_out(terms, starts, shape)
    rows = "one" if layout.rows == 1 else "long" if layout.inner >= tile else "short"
    constants = {"KINDS": layout.kinds, "CUTS": layout.cuts, "ROWS": rows, "OFFSET": offset(shape)}
    return tuple(tensors), layout, constants


def offset(shape: Sequence[int]) -> object:
    """The type of an element's number in a sample; a last tile may reach beyond the sample."""
    return kernels.tl.int32 if math.prod(shape[1:]) < 2**31 - 2 * ITEM else kernels.tl.int64


def lanes_of(dtype: torch.dtype) -> int:
    """The lanes of a sum, such that every thread loads 16 bytes of the smaller types at once."""
    return LANES * (2 if dtype.itemsize == 2 else 1)


def table_of(rows: Tensor | None, *tables: Tensor | None) -> tuple[Tensor | None, int]:
    """`rows` and table_step: tables of one row, with no `rows`, serve every sample."""
    lengths = {len(table) for table in tables if table is not None}
    assert len(lengths) == 1, "the tables of a call have the same rows"
    return (None, int(lengths != {1})) if rows is None else (rows.contiguous(), 1)
