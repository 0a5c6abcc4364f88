"""Compute the coefficients of every op from its formula (mmfast.process) and a schedule.

A formula turns a jump t -> s into the columns of an op's tables. If s is the step before t, the tables of all steps are
computed once, in float64, and cached with the schedule. A call then only selects a row for each sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mmfast import process
from mmfast.errors import MmfastError
from mmfast.ops import around
from mmfast.ops.call import Block, Bounds, GivenNoise, KeptTables, Rows, Tables, Term, tensor_of
from mmfast.process import TARGETS, Jump, Time, posterior_mean_eps, reverse_step
from mmfast.schedule import Schedule, as_int

Made = TypeVar("Made")


class Formula(Protocol):
    """Maps a jump, with the weights of the N modalities given to an op, to the op's coefficients in float64."""

    first: int  # the smallest t that it is valid for

    def __call__(self, j: Jump) -> Tables: ...


@functools.lru_cache(256)
def _once(make: Callable[..., Made], *args: Any) -> Made:
    return make(*args)


def made_once(make: Callable[..., Made], *args: Any) -> Made:
    """make(*args), cached: equal arguments give the same object, a possible key. No caching under a compiler."""
    if is_compiling():
        return make(*args)
    try:
        return _once(make, *args)
    except TypeError:  # an unhashable argument; `make` raises the right error
        return make(*args)


def columns(*parts: Tensor) -> Tensor:
    """Concatenate columns, each [R] or [R, n], into [R, K]."""
    return torch.cat([x[:, None] if x.dim() == 1 else x for x in parts], 1)


@dataclass(eq=False)
class Marginal:
    """z_t = sqrt(abar_t) z_0 + sum_i W_t^(i) E_i + sqrt(1 - abar_t) eps; eps is generated, or is the last term."""

    noise_given: bool
    first = 0

    def __call__(self, j: Jump) -> Tables:
        of_z0, of_eps = j.alpha_bar_t.sqrt(), (1 - j.alpha_bar_t).sqrt()
        if self.noise_given:
            return Tables(columns(of_z0, j.W_t, of_eps))
        return Tables(columns(of_z0, j.W_t), of_eps)


@dataclass(eq=False)
class PosteriorMean:
    """The posterior's mean from z_t, eps and the encodings; if noisy, a sample."""

    noisy: bool
    first = 1

    def __call__(self, j: Jump) -> Tables:
        sigma = process.posterior_variance(j).sqrt() if self.noisy else None
        return Tables(columns(*posterior_mean_eps(j)), sigma)


@dataclass(eq=False)
class Step:
    """The step from z_t and the prediction via z0hat, with guidance if there are two predictions.

    prediction = unconditional + guidance_scale (conditional - unconditional); z0hat = cy' y_t + cp prediction with
    y_t = z_t - m_t; z_s = c0 z0hat + cy y_t + m_s + sigma eps'. Terms: z_t, the predictions, the encodings.
    """

    target: str
    eta: float
    guidance_scale: float | None = None
    first = 1

    def __call__(self, j: Jump) -> Tables:
        of_z0, of_y, sigma = reverse_step(j, self.eta)
        y_to_x0, prediction_to_x0 = TARGETS[self.target].x0(j.alpha_bar_t)
        scale = self.guidance_scale
        predictions = [1.0] if scale is None else [scale, 1 - scale]
        none = torch.zeros_like(of_y)
        return Tables(
            columns(of_y, *[none] * len(predictions), j.W_s - of_y[:, None] * j.W_t, of_z0),
            sigma if self.eta else None,
            columns(y_to_x0, *[p * prediction_to_x0 for p in predictions], -y_to_x0[:, None] * j.W_t),
        )


@dataclass(eq=False)
class Error:
    """prediction - target, with target = ca z_0 + cb eps, and the weight of the step. eps is generated, or is last."""

    target: str
    min_snr_gamma: float | None
    noise_given: bool
    first = 0

    def __call__(self, j: Jump) -> Tables:
        kind, x = TARGETS[self.target], j.alpha_bar_t
        of_z0, of_eps = kind.target(x)
        gamma = self.min_snr_gamma
        weight = torch.ones_like(x) if gamma is None else kind.min_snr(x / (1 - x), gamma)
        one = torch.ones_like(x)
        if self.noise_given:
            return Tables(columns(one, -of_z0, -of_eps), weight=weight)
        return Tables(columns(one, -of_z0), -of_eps, weight=weight)


def find(
    formula: Formula,
    sched: Schedule,
    names: tuple[str, ...],
    times: tuple[Time, Time | None],
    dtype: torch.dtype,
    batch: int,
) -> tuple[Tables, Rows]:
    """The tables of an op on these modalities for the times t and s (None: the step before t), and each sample's row.

    The tables are in `dtype`. Raises MmfastError for times outside the schedule, except for a tensor t without s: the
    kernel checks that and raises ValueError (the reference IndexError), and the op then calls process.check_time.
    """
    t, s = map(as_int, times)
    process.check_kind("t", t, formula.first, sched.T)
    if is_compiling() or isinstance(s, Tensor) or (s is not None and isinstance(t, Tensor)):
        return formula(_jump(formula, sched, names, t, s)).map(lambda x: x.to(dtype)), None
    if s is not None:  # both are ints
        process.check_kind("s", s, 0, t - 1)
        key: tuple[Any, ...] = (formula, names, dtype, t, s)
        return sched.derived.get(key) or _keep(sched, key, lambda: _jump(formula, sched, names, t, s)), None
    if not batch and isinstance(t, Tensor) and not t.dim():  # no sample, so no kernel checks t
        process.check_time("t", t, formula.first, sched.T)
    key = (formula, names, dtype)
    tables = sched.derived.get(key) or _keep(sched, key, lambda: _all_jumps(formula, sched, names))
    return tables, _rows(t, sched, batch)


def kept(formula: Formula, names: tuple[str, ...], sched: Schedule) -> Tables | None:
    """The float32 tables of all steps for these modalities, if they are cached.

    None under a compiler, which must not see cached tensors.
    """
    if is_compiling() or type(sched) is not Schedule:
        return None
    return sched.derived.get((formula, names, torch.float32))


def own_rows(tables: Tables, t: object, batch: int) -> bool:
    """Whether t can select a row of the tables for each sample, as far as can be told without reading a tensor."""
    if isinstance(t, Tensor):
        return t.dtype == torch.int64 and t.shape == (batch,)
    return type(t) is int and 0 <= t < len(tables.coefs)


def kept_present(
    tables: Tables, terms: Sequence[Any], t: Time, noise: GivenNoise | None, present: Tensor
) -> tuple[Tables, None, GivenNoise | None] | None:
    """A marginal's tables with a row for each sample, zero where a modality is missing, and the noise.

    None if the arguments do not match, which the op's checks will report. terms: z0 and the encodings.
    """
    z0 = tensor_of(terms[0])
    if type(present) is not Tensor or present.dim() != 2 or present.shape[1] != len(terms) - 1:
        return None
    if not isinstance(z0, Tensor) or z0.dim() == 0:
        return None
    batch = len(z0)
    if len(present) not in (1, batch) or not own_rows(tables, t, batch):
        return None
    try:
        return tables.own(t, batch).only_present(present, 1), None, noise
    except (IndexError, RuntimeError, TypeError):
        return None


def _rows(t: Time, sched: Schedule, batch: int) -> Rows:
    """The row of the tables for each sample."""
    if not isinstance(t, Tensor):
        return t
    if t.device != sched.alpha_bar.device:
        raise MmfastError(f"t is on {t.device}; it should be on {sched.alpha_bar.device} with the schedule")
    if t.dtype == torch.int64 and t.dim() == 1 and t.is_contiguous():
        return t
    return t.long().expand(batch).contiguous()


# Single jumps are cached for loops over a grid of times, and whole tables for each kind of step. No single loop needs
# this many of either.
_MOST_JUMPS, _MOST_TABLES = 4096, 64


def _keep(sched: Schedule, key: tuple[Any, ...], jumps: Callable[[], Jump]) -> Tables:
    formula, _, dtype = key[:3]
    alike = [kept for kept in list(sched.derived) if len(kept) == len(key)]  # a copy: another thread may add one
    if len(alike) >= (_MOST_TABLES if len(key) == 3 else _MOST_JUMPS):
        for kept in alike:  # too many jumps do not evict tables, which a captured graph may read in place
            sched.derived.pop(kept, None)
    # Cached tables outlive the mode of this call: no inference tensors, wrappers or fakes.
    with around.outside():
        made = formula(jumps()).map(lambda x: x.to(dtype))
    if all(type(x) is Tensor and not x.requires_grad for x in made if x is not None):
        made = KeptTables(*made)
    # While a CUDA graph is captured, the tables are not computed yet, and their memory belongs to the graph.
    if not (sched.alpha_bar.is_cuda and torch.cuda.is_current_stream_capturing()):
        sched.derived[key] = made
    return made


def _jump(formula: Formula, sched: Schedule, names: tuple[str, ...], t: Time, s: Time | None) -> Jump:
    if formula.first == 0:  # q(z_t | z_0) and the loss do not use s
        alpha_bar, W = process.rows(sched.alpha_bar, t), process.rows(sched.W, t)
        j = Jump(alpha_bar, alpha_bar, W, W)
    else:
        j = process.jump(sched, t, s)
    return j if names == sched.names else j.of(sched.index(names))


def _all_jumps(formula: Formula, sched: Schedule, names: tuple[str, ...]) -> Jump:
    """The jumps t -> t - 1 for t = 0 .. T. The row of t = 0 is NaN if the formula is not valid there."""
    x, W = sched.alpha_bar, sched.W[:, sched.index(names)]
    if formula.first == 0:
        return Jump(x, x, W, W)
    nan = torch.full_like(x[:1], torch.nan)
    return Jump(torch.cat((nan, x[1:])), torch.cat((nan, x[:-1])), W, torch.cat((W[:1], W[:-1])))


def range_of(clamp: float | tuple[float, float] | None) -> Bounds:
    """The bounds that `clamp` specifies: c means -c .. c, None no bounds. Raises MmfastError for other values."""
    return made_once(_bounds, clamp)


# A larger bound has no effect on float32, and torch does not accept one there.
LARGEST = torch.finfo(torch.float32).max


def _bounds(clamp: float | tuple[float, float] | None) -> Bounds:
    if clamp is None:
        return Bounds(-torch.inf, torch.inf)
    pair = tuple(clamp) if isinstance(clamp, (tuple, list)) else (clamp,)
    numbers = len(pair) in (1, 2) and all(isinstance(x, (int, float)) for x in pair)
    low, high = (-pair[0], pair[0]) if numbers and len(pair) == 1 else pair if numbers else (0.0, 0.0)
    if not low < high:
        raise MmfastError(f"clamp is {clamp!r}; it should be a positive number or a pair (low, high)")
    return Bounds(-math.inf if low < -LARGEST else float(low), math.inf if high > LARGEST else float(high))


def covered(prediction: Term | None) -> tuple[int, int]:
    """The first channel that a prediction covers and the number of channels; (-1, 0) for all."""
    if not isinstance(prediction, Block) or not isinstance(prediction.tensor, Tensor) or prediction.tensor.dim() < 2:
        return -1, 0  # the whole space, or something that `gather` rejects
    return prediction.start, prediction.tensor.shape[1]
