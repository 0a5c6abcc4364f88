"""A time for each block of channels: how the ops handle t and s of int64 [B, 1 + M].

In own channels the space is a direct sum of blocks: one for z0 and one for each of the M encodings. Each block may have
its own time: block_0 = sqrt(abar(t_0)) z_0 + sqrt(1 - abar(t_0)) eps_0 and block_i = W_i(t_i) E_i +
sqrt(1 - abar(t_i)) eps_i. Column 0 of the times belongs to z0, and column 1 + i to encoding i.

A single block is an ordinary process with at most one modality. The formulas therefore apply unchanged, with a row for
each sample and block, and their results become the columns of one call: one kernel pass in which each block is a level
of the noise.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mmfast import process
from mmfast.errors import MmfastError
from mmfast.ops import around
from mmfast.ops.call import MAX_LEVELS, Block, Bounds, Call, GivenNoise, Tables, Term, arithmetic, tensor_of
from mmfast.ops.checks import check_present, gather, select
from mmfast.ops.noise_checks import check_noise
from mmfast.ops.reverse_call import ReverseCall
from mmfast.ops.tables import Formula, find, made_once
from mmfast.process import Time
from mmfast.schedule import Schedule


def by_block(t: object) -> bool:
    """Whether t has a time for each block."""
    return isinstance(t, Tensor) and t.dim() == 2


class Blocks(NamedTuple):
    """The position of z0's block and then of each encoding's, as (first channel, number of channels)."""

    spans: tuple[tuple[int, int], ...]
    order: tuple[int, ...]  # the blocks sorted by channel
    levels: tuple[int, ...]  # the first channel of each, in that order

    def sorted(self, values: Tensor) -> Tensor:
        """Reorder [B, 1 + M], one column per block, by channel."""
        if self.order == tuple(range(len(self.order))):
            return values
        if is_compiling():  # the compiler must not see cached tensors
            return torch.stack([values[:, i] for i in self.order], 1)
        return values.index_select(1, _index(self.order, values.device))

    def of(self, x: Tensor) -> list[Term]:
        """Split a tensor of the whole space into its blocks, without a copy."""
        if x.shape[1] == 1:
            x = x.expand(-1, sum(number for _, number in self.spans), *x.shape[2:])
        return [Block(x.narrow(1, *span), span[0], x.shape[1]) for span in self.spans]


@functools.lru_cache(256)
def _index(order: tuple[int, ...], device: torch.device) -> Tensor:
    with around.outside():
        return torch.tensor(order, device=device)


def _whole(spans: Sequence[tuple[int, int]], channels: int) -> Blocks | None:
    """These blocks, if they are adjacent and together cover all channels; otherwise None."""
    return made_once(_blocks, tuple(spans), channels)


def _blocks(spans: tuple[tuple[int, int], ...], channels: int) -> Blocks | None:
    order, at = sorted(range(len(spans)), key=spans.__getitem__), 0
    for i in order:
        first, number = spans[i]
        if first != at or number < 1:
            return None
        at += number
    if at != channels or len(order) > MAX_LEVELS:
        return None
    return Blocks(spans, tuple(order), tuple([spans[i][0] for i in order]))


def _spans(terms: Sequence[Term], names: Sequence[str], t: Tensor) -> list[tuple[int, int]]:
    """The spans of the terms. Raises MmfastError for a term that is not a Block, and for too many terms."""
    for name, x in zip(names, terms, strict=True):
        if not isinstance(x, Block):
            raise MmfastError(
                f"t is {list(t.shape)}, a time for each block, but {name} is a tensor of all channels; it should be a "
                "Block of its own"
            )
    encodings = len([name for name in names if name != "z0"])  # torch 2.4 cannot compile list.count
    if encodings >= MAX_LEVELS:
        raise MmfastError(
            f"encodings has {encodings} blocks; there are times of their own for {MAX_LEVELS - 1} at most"
        )
    return [(x.start, x.tensor.shape[1]) for x in terms]  # type: ignore[union-attr]


def _titles(names: Sequence[str]) -> list[str]:
    return [f"encodings[{name!r}]" for name in names]


def _cover(names: Sequence[str], spans: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{name} {first} .. {first + n - 1}" for name, (first, n) in zip(names, spans, strict=True))


def check_times(name: str, t: object, batch: int, blocks: int, sched: Schedule) -> Tensor:
    """The times as int64 [B, 1 + M]. Raises MmfastError for any other t, and on the host for values outside 0 .. T."""
    if not isinstance(t, Tensor) or t.dtype not in (torch.int64, torch.int32) or t.shape != (batch, blocks):
        given = f"{t.dtype} {list(t.shape)}" if isinstance(t, Tensor) else f"{t!r}"
        raise MmfastError(
            f"{name} is {given}; with a time for each block it should be int64 [{batch}, {blocks}]: that of z0, and "
            "then one for each encoding"
        )
    if t.device != sched.alpha_bar.device:
        raise MmfastError(f"{name} is on {t.device}; it should be on {sched.alpha_bar.device} with the schedule")
    process.check_time(name, t.reshape(-1), 0, sched.T)
    return t.long()


# --- forward ------------------------------------------------------------------------------------------------


def kept_rows(terms: Sequence[Any], noise: GivenNoise | None) -> GivenNoise | None:
    """q_sample's noise by level, unchecked, if the times may serve directly as rows of the tables of all steps.

    None if they cannot. The extension checks that the blocks are adjacent. terms: z0 and the encodings.
    """
    if noise is None:
        return None
    try:
        return (*noise[:3], tuple([x.start for x in terms]))
    except AttributeError:
        return None  # the checks will report it


def kept_marginal(
    known: Tables, terms: Sequence[Any], t: Tensor, noise: GivenNoise | None, present: Tensor | None
) -> tuple[Tables, None, GivenNoise] | None:
    """q_sample's tables, taken from those of all steps, and its noise by level, unchecked. None in an unusual case.

    terms: z0 and the encodings.
    """
    if noise is None:  # given as a tensor, which `marginal` splits into blocks
        return None
    try:
        z0 = terms[0]
        blocks = _whole([(x.start, x.tensor.shape[1]) for x in terms], z0.channels)
        if blocks is None or t.shape != (z0.tensor.shape[0], len(terms)):
            return None
        # Element (b, k) is column k of row t[b, k]. gather raises for a time outside the tables; take may not.
        tables = Tables(known.coefs.gather(0, t), blocks.sorted(known.sigma.take(t)))  # type: ignore[union-attr]
        if present is not None:
            if type(present) is not Tensor or present.shape != (len(t), len(terms) - 1):
                return None
            tables = tables.only_present(present, 1)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None  # the checks will report it
    return tables, None, (*noise[:3], blocks.levels)


def marginal(
    formula: Formula, sched: Schedule, names: tuple[str, ...], t: Time, terms: Sequence[Term], shape: Sequence[int]
) -> tuple[Tables, Blocks]:
    """The coefficients of z0, of the encodings and of each block's noise.

    The noise's are further columns if the noise is given as a tensor, and sigma if it is generated. terms: z0 and the
    encodings, gathered, of this shape.

    Raises MmfastError for invalid times, and unless the terms are Blocks that cover every channel exactly once.
    """
    t = check_times("t", t, shape[0], len(terms), sched)
    channels = shape[1] if len(shape) > 1 else 1
    spans = _spans(terms, ["z0", *_titles(names)], t)
    blocks = _whole(spans, channels)
    if blocks is None:
        raise MmfastError(
            f"z0, encodings cover the channels {_cover(('z0', *names), spans)} of {channels}; with a time for each "
            "block they should not overlap, and together cover all"
        )
    dtype = arithmetic(tensor_of(terms[0]).dtype)
    if is_compiling():  # the compiler must not see cached tensors
        made = formula(process.block_jumps(sched, sched.index(names), t, t)).map(lambda x: x.to(dtype))
        coefs, sigma = made.coefs.unflatten(0, t.shape), made.sigma
        of_x = torch.cat((coefs[:, :1, 0], coefs[:, 1:, 1]), 1)
        of_noise = coefs[:, :, 2] if sigma is None else sigma.unflatten(0, t.shape)
    else:
        (every, sigma, *_), _ = find(formula, sched, names, (0, None), dtype, 1)
        of_x = every[:, : len(terms)].gather(0, t)
        of_noise = (every[:, -1] if sigma is None else sigma).take(t)
    if sigma is None:
        return Tables(torch.cat((of_x, of_noise), 1)), blocks
    return Tables(of_x, blocks.sorted(of_noise)), blocks


# --- reverse ------------------------------------------------------------------------------------------------


def reverse(asked: ReverseCall, first: Sequence[Term], given: GivenNoise | None, bounds: Bounds) -> tuple[Call, Bounds]:
    """The checked call of a formula for the jumps t_i -> s_i, and the bounds of z0hat, which has z0's block only.

    first: z_t and the predictions, which cover the whole space or (for a step) z0's block; z0's block has the channels
    that the encodings leave. In other blocks z0hat is not clamped and is folded into the coefficients. A block with
    s_i == t_i stays unchanged.
    """
    formula, what, encodings, times, sched, present = asked
    names, encoded = select(encodings, sched)
    gathered, shape, dtype = gather([*first, *encoded], like_first=True, what=what)
    if isinstance(gathered[0], Block) or len(shape) < 2:
        raise MmfastError(f"z_t is of shape {shape}; with a time for each block it should be a tensor [B, C, ...]")
    t = check_times("t", times[0], shape[0], 1 + len(names), sched)
    s = (t - 1).clamp(min=0) if times[1] is None else check_times("s", times[1], shape[0], 1 + len(names), sched)
    if process.readable(t, s) and bool((s > t).any()):
        raise MmfastError("s is after t somewhere; a block goes from its t to an earlier s, or stays where s is t")
    z_t, predictions, own = gathered[0], gathered[1 : len(first)], gathered[len(first) :]
    blocks = _beside(own, names, t, shape[1])
    alone = [x for x in predictions if isinstance(x, Block)]
    for title, x in zip(what.split(", ")[1 : len(first)], predictions, strict=True):
        if isinstance(x, Block) and (x.start, x.tensor.shape[1]) != blocks.spans[0]:
            raise MmfastError(
                f"{title} is a Block of {_cover(('channels',), [(x.start, x.tensor.shape[1])])}; with a time for each "
                f"block it should be of all channels, or of z0's, {_cover(('channels',), blocks.spans[:1])}"
            )
    tables = _columns(
        formula(process.block_jumps(sched, sched.index(names), t, s)), t == s, len(predictions), len(alone) > 0
    ).map(lambda x: x.to(arithmetic(dtype)))
    terms: list[Term] = blocks.of(z_t)
    for x in predictions:
        terms += [x] if isinstance(x, Block) else blocks.of(x)
    if present is not None:
        check_present(present, shape[0], len(names), tables.coefs.device)
        tables = tables.only_present(present, len(terms))
    noise = None
    if tables.sigma is not None:
        tables = Tables(tables.coefs, blocks.sorted(tables.sigma), *tables[2:])
        if given is not None:
            noise = check_noise((*given[:3], blocks.levels), shape[0], tables.coefs.device)
    start, channels = blocks.spans[0]
    return Call([*terms, *own], tables, None, noise, shape, dtype), Bounds(bounds.low, bounds.high, start, channels)


def _beside(encoded: Sequence[Term], names: Sequence[str], t: Tensor, channels: int) -> Blocks:
    """The encodings' blocks, and z0's: the channels that they leave. Raises MmfastError if those are not one run."""
    spans = _spans(encoded, _titles(names), t)
    ends = [0, *(first + number for first, number in spans)]
    starts = [first for first, _ in spans]
    free = [(end, min([x for x in starts if x >= end], default=channels) - end) for end in sorted(ends)]
    for gap in free:
        blocks = _whole([gap, *spans], channels)
        if blocks is not None:
            return blocks
    raise MmfastError(
        f"encodings cover the channels {_cover(names, spans)} of {channels}; with a time for each block they should "
        "not overlap, and leave one run of channels, z0's"
    )


def _columns(made: Tables, stays: Tensor, predictions: int, alone: bool) -> Tables:
    """Turn a formula's tables, with a row for each sample and block, into the call's, with a row for each sample.

    made: coefs [B (1 + M), 1 + P + 1 (+ 1)] for a block's z_t, the predictions, its encoding (and z0hat). The call's
    columns: the blocks of z_t, those of each prediction (only z0's if `alone`), the encodings (and z0hat).
    """
    coefs, to_x0 = (None if x is None else x.unflatten(0, stays.shape) for x in (made.coefs, made.to_x0))
    assert coefs is not None
    kinds = 1 + predictions + 1
    if to_x0 is not None:
        linear = coefs[..., :kinds] if alone else coefs[..., :kinds] + coefs[..., kinds:] * to_x0
        own = torch.cat((coefs[:, :1, :kinds], linear[:, 1:]), 1)
        coefs = torch.cat((own, coefs[..., kinds:]), 2)
    of_z_t = torch.arange(coefs.shape[2], device=coefs.device) == 0
    coefs = torch.where(stays[..., None], of_z_t.to(coefs.dtype), coefs)  # a formula gives NaN for t = s = 0
    sigma = None if made.sigma is None else torch.where(stays, 0.0, made.sigma.unflatten(0, stays.shape))

    def spread(x: Tensor) -> list[Tensor]:
        of_predictions = [x[:, : 1 if alone else None, 1 + p] for p in range(predictions)]
        return [x[:, :, 0], *of_predictions, x[:, 1:, kinds - 1]]

    if to_x0 is None:
        return Tables(torch.cat(spread(coefs), 1), sigma)
    return Tables(torch.cat((*spread(coefs), coefs[:, :1, kinds]), 1), sigma, torch.cat(spread(to_x0), 1))
