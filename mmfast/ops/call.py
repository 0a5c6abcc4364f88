"""What goes through the whole house: a `Call`, and the `Noise` that it asks for.

A public op makes one of what `checks` has seen, `dispatch` finds who serves it, and a backend reads it (the C++ ones
directly: csrc/call.h, which knows the order of the fields). Of what nobody has checked there are only the first four
fields, which `dispatch.at_once` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """A term that covers some channels of the diffusion space and is zero elsewhere, without being padded.

    tensor: [B, c, ...], of which every dimension but the second may be 1; it covers the channels
    start .. start + c of a space of `channels`.
    """

    tensor: Tensor
    start: int
    channels: int


Term = Tensor | Block


class Noise(NamedTuple):
    """The identity of the noise, instead of the noise: sample b's eps is a pure function of it and the element.

    key: (seed, draw), two ints that fit int64, or int64 [2]; sample_ids: int64 [B], None for 0 .. B - 1; stream: 0 ..
    65535.

    levels: the first channels of blocks of channels (dimension 1) that follow on one another from 0 on, each with a
    scale of the noise of its own: sigma is then [R, L]. () for one scale, and sigma [R]. eps itself knows no levels.
    """

    key: Any
    sample_ids: Tensor | None = None
    stream: int = 0
    levels: tuple[int, ...] = ()

    def with_levels(self, levels: tuple[int, ...]) -> Noise:
        """The same with other levels. By its constructor: torch 2.4 does not compile _replace."""
        return Noise(self.key, self.sample_ids, self.stream, levels)


# The fields of a Noise as a public op is given them, which nobody has checked: a plain tuple takes a fifth of the time.
GivenNoise = tuple[Any, Tensor | None, int, tuple[int, ...]]

MAX_LEVELS = 32  # as in csrc/cpu/plan.h


# Which row of the tables serves each sample: int64 [B]; the one row for all; None for the tables' own order.
Rows = Tensor | int | None


class Tables(NamedTuple):
    """An op's coefficients, float64 for float64 and float32 for the rest, each [R, K] or [R]: reference.py.

    sigma is [R], or [R, L] with a column for each of the noise's levels.
    """

    coefs: Tensor
    sigma: Tensor | None = None
    to_x0: Tensor | None = None
    weight: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Tables:
        """f of every table."""
        return Tables(*[None if x is None else f(x) for x in self])  # type: ignore[arg-type]

    def own(self, rows: Rows, batch: int) -> Tables:
        """With a row of its own for each sample: [batch] or [batch, K]."""
        return self.map(lambda x: pick(x, rows, batch))

    def only_present(self, present: Tensor, first: int) -> Tables:
        """With the columns from `first` on, one a modality, cleared where `present` [B or 1, N] is."""
        last = first + present.shape[1]

        def clear(table: Tensor) -> Tensor:
            return torch.cat((table[:, :first], table[:, first:last] * present.to(table.dtype), table[:, last:]), 1)

        to_x0 = None if self.to_x0 is None else clear(self.to_x0)
        return Tables(clear(self.coefs), self.sigma, to_x0, self.weight)


class KeptTables(Tables):
    """Tables that the package keeps: plain tensors without a gradient, which csrc/call.h need not look at."""

    __slots__ = ()


class Call(NamedTuple):
    """One call of the primitive, or of an op made of it.

    terms: tensors that broadcast to shape = [B, ...], or `Block`s of its channels; all are of `dtype` and of one rank.
    """

    terms: Sequence[Term]
    tables: Tables
    rows: Rows
    noise: Noise | None
    shape: Sequence[int]
    dtype: torch.dtype

    def one_row(self) -> Call:
        """With rows that are no int, for a backend that takes none: the tables cut to that row."""
        if not isinstance(self.rows, int):
            return self
        row = slice(self.rows, self.rows + 1)
        return self._replace(tables=self.tables.map(lambda x: x[row]), rows=None)


class Bounds(NamedTuple):
    """Where a step holds x0 and which channels it has: `channels` of them from `start` on, all where start is -1."""

    low: float
    high: float
    start: int = -1
    channels: int = 0


def tensor_of(term: Term) -> Tensor:
    """The tensor of a term."""
    return term.tensor if isinstance(term, Block) else term


def pick(table: Tensor, rows: Rows, batch: int) -> Tensor:
    """The row of each sample: table[rows], or table itself, its one row serving every sample: [batch, ...]."""
    if isinstance(rows, int):
        table, rows = table[rows : rows + 1], None
    return table.expand(batch, *table.shape[1:]) if rows is None else table.index_select(0, rows)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The type that a result of `dtype` is computed in: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32
