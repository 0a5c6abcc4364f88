"""Launch the Triton kernels: their arguments for keys, terms and tables, and the number of programs.

Tested on one H100 at 2296999 (tests/ops/backends/test_gpu.py); later changes have not run on a GPU.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops.backends.copies import contiguous
from mmfast.ops.backends.triton.layout import Layout, choose_layout
from mmfast.ops.call import Block, Call, Noise, Rows, Term, tensor_of

kernels: Any = None
missing = ""
try:
    kernels = importlib.import_module("mmfast.ops.backends.triton.kernels")
except ImportError as error:
    missing = str(error)

interpreted = kernels is not None and not isinstance(kernels.combine, kernels.triton.JITFunction)

ITEM = 8192  # as in kernels.py
BLOCK = 1024  # elements per program: 8 per thread
LANES = 1024  # of a sum of 4-byte elements (lanes_of); sets the order of the sum and its speed
WARPS, SUM_WARPS = 4, 8


def launch(kernel: Any, programs: int, warps: int, *arguments: object, **constants: object) -> None:
    """Run `programs` programs of a kernel on the device of its first argument, a tensor."""
    assert isinstance(arguments[0], Tensor)
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants, num_warps=warps)


def identity(noise: Noise | None) -> tuple[object, ...]:
    """The identity that the kernels take (noise.py). The seed is in 32-bit halves, so that its type never changes."""
    key, sample_ids, stream, _ = noise or Noise((0, 0))
    ids = None if sample_ids is None else sample_ids.contiguous()
    if isinstance(key, Tensor):
        return key.contiguous(), 0, 0, 0, ids, stream
    seed, draw = key
    return None, signed(seed), signed(seed >> 32), signed(draw), ids, stream


def signed(word: int) -> int:
    """Reinterpret the low 32 bits as an int32."""
    return (word + 2**31) % 2**32 - 2**31


def lay_out(terms: Sequence[Term], shape: Sequence[int]) -> tuple[list[Tensor], Layout]:
    """The terms' tensors, made contiguous where necessary, and their layout. shape: [B, ...], not empty."""
    for _ in range(2):
        tensors = [tensor_of(x) for x in terms]
        sizes, strides = tuple(tuple(t.shape) for t in tensors), tuple(t.stride() for t in tensors)
        starts = tuple(x.start if isinstance(x, Block) else -1 for x in terms)
        layout = choose_layout(tuple(shape), sizes, strides, starts)
        if not layout.misfits:
            return tensors, layout
        terms = contiguous(terms, layout.misfits, shape)
    raise AssertionError("contiguous terms always have a layout")


def place(call: Call, tile: int) -> tuple[tuple[Tensor, ...], Layout, dict[str, object]]:
    """The terms in a readable form, their layout, and the constants of a kernel with tiles of this size."""
    tensors, layout = lay_out(call.terms, call.shape)
    rows = "one" if layout.rows == 1 else "long" if layout.inner >= tile else "short"
    constants = {"KINDS": layout.kinds, "CUTS": layout.cuts, "ROWS": rows, "OFFSET": offset(call.shape)}
    return tuple(tensors), layout, constants


def levels_of(call: Call) -> tuple[tuple[int, ...], int]:
    """The first elements of all noise levels except the first, and the number of levels (0 if sigma is [R])."""
    levels = () if call.noise is None or call.shape is None else call.noise.levels
    return tuple(first * math.prod(call.shape[2:]) for first in levels[1:]), len(levels)


def offset(shape: Sequence[int]) -> object:
    """The type of an element's index in a sample; the last tile may extend beyond the sample."""
    return kernels.tl.int32 if math.prod(shape[1:]) < 2**31 - 2 * ITEM else kernels.tl.int64


def lanes_of(dtype: torch.dtype) -> int:
    """The number of lanes of a sum, chosen so that each thread loads 16 bytes of the smaller types at once."""
    return LANES * (2 if dtype.itemsize == 2 else 1)


def table_of(rows: Rows, *tables: Tensor | None) -> tuple[Tensor | None, int]:
    """`rows` and table_step, which is 0 if tables of one row serve every sample."""
    lengths = {len(table) for table in tables if table is not None}
    assert len(lengths) == 1, "the tables of a call have the same rows"
    return (rows.contiguous(), 1) if isinstance(rows, Tensor) else (None, int(lengths != {1}))
