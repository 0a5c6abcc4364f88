"""The types that all layers of the ops share: a `Call`, and the `Noise` that it requests.

A public op builds a Call from arguments that `checks` has validated, `dispatch` chooses an implementation, and a
backend reads the Call. The C++ backends read it directly (csrc/call.h, which depends on the order of the fields).
Unchecked calls exist only as their first four fields, which `dispatch.at_once` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """A term that covers some channels of the diffusion space and is zero elsewhere, without padding in memory.

    tensor: [B, c, ...]; every dimension except the second may be 1. It covers the channels start .. start + c - 1 of a
    space that has `channels` channels.
    """

    tensor: Tensor
    start: int
    channels: int


Term = Tensor | Block


class Noise(NamedTuple):
    """The identity of the noise: sample b's eps is a pure function of the identity and the element's index.

    key: (seed, draw), two ints that fit int64, or int64 [2]; sample_ids: int64 [B], None for 0 .. B - 1; stream: 0 ..
    65535.

    levels: the first channels of adjacent blocks of channels (dimension 1), starting from 0. Each block has its own
    noise scale, so sigma is [R, L]. () for a single scale and sigma [R]. eps itself does not depend on the levels.
    """

    key: Any
    sample_ids: Tensor | None = None
    stream: int = 0
    levels: tuple[int, ...] = ()

    def with_levels(self, levels: tuple[int, ...]) -> Noise:
        """A copy with other levels. It uses the constructor because torch 2.4 cannot compile _replace."""
        return Noise(self.key, self.sample_ids, self.stream, levels)


# The fields of a Noise as passed to a public op, unchecked. A plain tuple takes a fifth of the time.
GivenNoise = tuple[Any, Tensor | None, int, tuple[int, ...]]

MAX_LEVELS = 32  # as in csrc/cpu/plan.h


# The row of the tables for each sample, int64 [B]; one row for all; or None: row b is sample b's, or one serves all.
Rows = Tensor | int | None


class Tables(NamedTuple):
    """An op's coefficients, each [R, K] or [R]; reference.py defines them.

    They are float64 for float64 tensors and float32 for all others. sigma is [R], or [R, L] with a column for each of
    the noise's levels.
    """

    coefs: Tensor
    sigma: Tensor | None = None
    to_x0: Tensor | None = None
    weight: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Tables:
        """Apply f to every table."""
        return Tables(*[None if x is None else f(x) for x in self])  # type: ignore[arg-type]

    def own(self, rows: Rows, batch: int) -> Tables:
        """The tables with one row per sample: [batch] or [batch, K]."""
        return self.map(lambda x: pick(x, rows, batch))

    def only_present(self, present: Tensor, first: int) -> Tables:
        """The tables with column first + i multiplied by present[:, i], for `present` [B or 1, N]."""
        last = first + present.shape[1]

        def clear(table: Tensor) -> Tensor:
            return torch.cat((table[:, :first], table[:, first:last] * present.to(table.dtype), table[:, last:]), 1)

        to_x0 = None if self.to_x0 is None else clear(self.to_x0)
        return Tables(clear(self.coefs), self.sigma, to_x0, self.weight)


class KeptTables(Tables):
    """Tables that the package caches: plain tensors without a gradient, which csrc/call.h need not inspect."""

    __slots__ = ()


class Call(NamedTuple):
    """One call of the primitive, or of an op built on it.

    terms: tensors that broadcast to shape = [B, ...], or `Block`s of its channels, all of `dtype` and the same rank.
    """

    terms: Sequence[Term]
    tables: Tables
    rows: Rows
    noise: Noise | None
    shape: Sequence[int]
    dtype: torch.dtype

    def one_row(self) -> Call:
        """Replace int rows by tables cut to that row, for backends that do not accept an int."""
        if not isinstance(self.rows, int):
            return self
        row = slice(self.rows, self.rows + 1)
        return self._replace(tables=self.tables.map(lambda x: x[row]), rows=None)


class Bounds(NamedTuple):
    """The range that a step clamps x0 to, and x0's channels: `channels` from `start` on, or all if start is -1."""

    low: float
    high: float
    start: int = -1
    channels: int = 0


def tensor_of(term: Term) -> Tensor:
    """The tensor of a term."""
    return term.tensor if isinstance(term, Block) else term


def pick(table: Tensor, rows: Rows, batch: int) -> Tensor:
    """Each sample's row, [batch, ...]: table[rows], or without rows the table itself, a single row being shared."""
    if isinstance(rows, int):
        table, rows = table[rows : rows + 1], None
    return table.expand(batch, *table.shape[1:]) if rows is None else table.index_select(0, rows)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The type in which a result of `dtype` is computed: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32
