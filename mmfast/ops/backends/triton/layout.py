"""The memory layout of terms, for kernels that work on addresses: csrc/cpu/layout.h in Python, with a cache.

A sample is rows x inner elements, split so that every term is regular: in each row it is contiguous or a single value,
and its rows are a fixed stride apart. This is pure integer work on sizes and strides.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

Ints = tuple[int, ...]


class Place(NamedTuple):
    """A term in memory, in elements. It covers the elements [begin, end) of a sample; a Block covers whole rows."""

    batch_stride: int
    row_stride: int
    begin: int
    end: int


class Layout(NamedTuple):
    """rows x inner, and for each term its place, its kind, and whether it covers only a part of the sample.

    Kinds: "whole" (element e is at e - begin), "value" (one per row) and "rows" (contiguous rows).
    """

    rows: int
    inner: int
    places: tuple[Place, ...]
    kinds: tuple[str, ...]
    cuts: tuple[bool, ...]
    misfits: Ints  # the indices of the terms that must be made contiguous first


def _collapse(size: Ints, stride: Ints, shape: Ints, unit: int) -> int | None:
    """The stride of all these dimensions collapsed into one, whose innermost stride is `unit` (0: any).

    0 if the tensor is constant along them, None if no single stride works.
    """
    if all(n == 1 or mine == 1 or step == 0 for n, mine, step in zip(shape, size, stride, strict=True)):
        return 0
    expected = unit
    for n, mine, step in zip(shape[::-1], size[::-1], stride[::-1], strict=True):
        if n == 1:
            continue
        if mine != n or step == 0:
            return None
        if expected == 0:
            unit = expected = step
        if step != expected:
            return None
        expected *= n
    return unit


def _fit(shape: Ints, size: Ints, stride: Ints, start: int, split: int) -> tuple[Place, str, bool] | None:
    """The term with the dimensions [1, split) as rows and the rest as inner; None if that is not regular."""
    begin, end = 0, math.prod(shape[1:])
    if start >= 0:
        channel = math.prod(shape[2:])
        begin, end = start * channel, (start + size[1]) * channel
        cut = (begin, end) != (0, math.prod(shape[1:]))
        shape = (shape[0], size[1], *shape[2:])
    else:
        cut = False
    row_stride = _collapse(size[1:split], stride[1:split], shape[1:split], 0)
    step = _collapse(size[split:], stride[split:], shape[split:], 1)
    if row_stride is None or step is None:
        return None
    rows, inner = math.prod(shape[1:split]), math.prod(shape[split:])
    kind = "rows"
    if step == 0 and (inner > 1 or rows == 1 or row_stride != 1):
        kind = "value"
    elif rows == 1 or row_stride == inner:
        kind = "whole"
    return Place(0 if size[0] == 1 else stride[0], row_stride, begin, end), kind, cut


@functools.lru_cache(maxsize=4096)
def choose_layout(shape: Ints, sizes: tuple[Ints, ...], strides: tuple[Ints, ...], starts: Ints) -> Layout:
    """The split of [B, ...] into rows and inner with the fewest misfits, and on a tie the longest rows."""
    best: Layout | None = None
    for split in range(1, len(shape) + 1):
        fits = [_fit(shape, *term, split) for term in zip(sizes, strides, starts, strict=True)]
        misfits = tuple(k for k, fit in enumerate(fits) if fit is None)
        if best is not None and len(misfits) >= len(best.misfits):
            continue
        found = [fit for fit in fits if fit is not None]
        best = Layout(
            math.prod(shape[1:split]),
            math.prod(shape[split:]),
            tuple(place for place, _, _ in found),
            tuple(kind for _, kind, _ in found),
            tuple(cut for _, _, cut in found),
            misfits,
        )
        if not misfits:
            break
    assert best is not None
    return best
