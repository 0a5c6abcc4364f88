"""The reverse process: the posterior's mean and samples, and the sampler's step, each in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.compiler import is_compiling

from mmfast import process
from mmfast.errors import MmfastError, unknown
from mmfast.ops import dispatch, reference
from mmfast.ops.around import in_memory
from mmfast.ops.block_times import by_block
from mmfast.ops.block_times import reverse as block_jumps
from mmfast.ops.call import Bounds, Call, Noise, Rows, Tables, Term, arithmetic
from mmfast.ops.checks import (
    Encodings,
    Seed,
    check_batch,
    check_device,
    check_levels,
    check_noise,
    check_present,
    check_row_values,
    check_tables,
    gather,
    select,
    within_channels,
)
from mmfast.ops.tables import Formula, PosteriorMean, Step, covered, find, formula, kept, range_of
from mmfast.process import TARGETS, Time
from mmfast.schedule import Schedule

_MEAN, _SAMPLE = PosteriorMean(noisy=False), PosteriorMean(noisy=True)
_CLAMPED = Step("eps", eta=1.0)
# The noise, where x0 is held, and whether it is wanted.
How = tuple[Noise | None, Bounds, bool]
_PLAIN: How = (None, Bounds(-math.inf, math.inf), False)


def posterior_mean(
    z_t: Term,
    eps: Term,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    s: Time | None = None,
    *,
    present: Tensor | None = None,
) -> Tensor:
    """The mean of q(z_s | z_t, eps, X) for the jump t -> s (s defaults to t - 1), in one pass.

    1/sqrt(a) (z_t - (1 - a)/sqrt(1 - abar_t) eps) - sum_i w^(i) E_i(x_i), a = abar_t/abar_s,
    w = W_t/sqrt(a) - W_s. z_t, eps: [B, ...]; t in 1 .. T and s in 0 .. t - 1, ints or int64 [B]; encodings and
    present as for q_sample.

    Or t and s are int64 [B, 1 + M], with a time for each block as for q_sample: block i, of z_t and eps too, goes from
    its t_i to its s_i (default t_i - 1, but 0 stays). The encodings' blocks leave z0's; one with s_i = t_i stays.
    """
    return Reverse(_MEAN, "z_t, eps, encodings", encodings, (t, s), sched, present).of([z_t, eps])[0]


def posterior_sample(
    z_t: Term,
    eps: Term,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    s: Time | None = None,
    clamp: float | tuple[float, float] | None = None,
    *,
    seed: Seed = None,
    sample_ids: Tensor | None = None,
    stream: int = 0,
    draw: int | Tensor = 0,
    present: Tensor | None = None,
) -> Tensor:
    """z_s ~ q(z_s | z_t, eps, X), the ancestral step of the jump t -> s (s defaults to t - 1), in one pass.

    The mean is posterior_mean's; the variance (1 - a)(1 - abar_s)/(1 - abar_t), so none for s = 0. With clamp
    (c for -c .. c, or a pair) the predicted z_0 is held within it and the mean taken in its x_0 form. The noise's
    identity is as for `randn`. With a time for each block (posterior_mean) z_0 is held in its own block, where alone it
    is not zero. Returns z_s [B, ...].
    """
    kind = _SAMPLE if clamp is None else _CLAMPED
    how = Noise((seed, draw), sample_ids, stream), range_of(clamp), False
    return Reverse(kind, "z_t, eps, encodings", encodings, (t, s), sched, present).of([z_t, eps], how)[0]


def step(
    z_t: Term,
    prediction: Term,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    s: Time | None = None,
    *,
    target: str = "eps",
    eta: float = 1.0,
    clamp: float | tuple[float, float] | None = None,
    unconditional: Term | None = None,
    guidance_scale: float = 1.0,
    seed: Seed = None,
    sample_ids: Tensor | None = None,
    stream: int = 0,
    draw: int | Tensor = 0,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of the sampler from t to s (the step before t if None), from the network's prediction, in one pass.

    prediction = unconditional + guidance_scale (prediction - unconditional), where there is an unconditional one;
    z0hat from it and y_t = z_t - m_t, held within `clamp`; z_s = c0 z0hat + cy y_t + m_s + sigma eps' of DDIM (Song et
    al., 2021) with eta: 1 is DDPM's ancestral step, 0 is deterministic.

    Args:
        z_t: [B, ...]; prediction, unconditional: of the whole space, or a `Block` of it: z0hat is zero elsewhere.
        encodings: E_i(xhat_i) or the truth where it is given, as for `q_sample`; so is present.
        t, s: as for posterior_mean. With a time for each block the predictions are of all channels or `Block`s of
            z0's, and z0hat is of z0's block.
        target: what is predicted, "eps", "x0" or "v".
        clamp: c for -c .. c, or a pair; None for no bounds.
        seed, sample_ids, stream, draw: the identity of the noise, as for `randn`; unused for eta = 0.

    Returns z_s [B, ...] and z0hat, of the prediction's channels.
    """
    predictions, what, scale = [prediction], "z_t, prediction, encodings", None
    if unconditional is not None:
        predictions, what = [prediction, unconditional], "z_t, prediction, unconditional, encodings"
        scale = guidance_scale
        if covered(prediction) != covered(unconditional):
            raise MmfastError("unconditional covers other channels than prediction; it should cover the same")
    elif guidance_scale != 1:
        _finite("guidance_scale", guidance_scale)
        raise MmfastError(f"guidance_scale is {guidance_scale}, but unconditional is None; guidance needs both")
    kind = formula(_step, target, eta, scale)
    how = Noise((seed, draw), sample_ids, stream), range_of(clamp, prediction), True
    return Reverse(kind, what, encodings, (t, s), sched, present).of([z_t, *predictions], how)


def _step(target: str, eta: float, guidance_scale: float | None) -> Step:
    """The step's formula, of checked options."""
    if not isinstance(target, str) or target not in TARGETS:
        raise unknown("target", target, TARGETS)
    _finite("eta", eta)
    if guidance_scale is not None:
        _finite("guidance_scale", guidance_scale)
    if not 0 <= eta <= 1:
        raise MmfastError(f"eta is {eta}; it should lie in 0 .. 1")
    return Step(target, float(eta), None if guidance_scale is None else float(guidance_scale))


def _finite(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        given = value if isinstance(value, float) else f"a {type(value).__name__}"
        raise MmfastError(f"{name} is {given}; it should be a finite number")


class Reverse(NamedTuple):
    """A formula of the reverse process for a jump t -> s, and what it is taken with."""

    formula: Formula
    what: str  # the terms' names, for errors
    encodings: Encodings
    times: tuple[Time, Time | None]
    sched: Schedule
    present: Tensor | None

    def of(self, first: list[Term], how: How = _PLAIN) -> tuple[Tensor, Tensor]:
        """The formula on z_t, the predictions and the encodings: z_s and, where it goes through it, z0hat."""
        formula, _, encodings, (t, s), sched, present = self
        known = kept(formula, tuple(encodings), sched) if type(encodings) is dict else None
        # A GPU's table is not looked at, and its row of t = 0 is NaN.
        if known is None or s is not None or present is not None or (type(t) is int and t < 1):
            return self._checked(first, how)
        terms, noise = [*first, *encodings.values()], None if known.sigma is None else how[0]  # type: ignore[union-attr]
        if known.to_x0 is None:
            found = dispatch.at_once("combine", terms, known, t, noise, False, False)
        else:
            found = dispatch.at_once("step", terms, known, t, noise, how[1], how[2])
        return found or self._checked(first, how)

    def _checked(self, first: list[Term], how: How) -> tuple[Tensor, Tensor]:
        noise, bounds, return_x0 = how
        t, s = self.times
        own_times = by_block(t) or by_block(s)
        if own_times:
            call, bounds = block_jumps(*self, first, noise, bounds)
            scalar = False
        else:
            call, scalar = self._complete(first, noise)
        sched, device = self.sched, call.tables.coefs.device
        serving = dispatch.of_call(call)
        if serving is reference and not is_compiling() and not own_times:
            process.check_time("t", t, 1, sched.T)  # it takes a row of NaN for one like the others
        check_device(device, call.terms)
        try:
            if call.tables.to_x0 is None:
                out, x0 = serving.combine(call, False)
            else:
                out, x0 = serving.step(call, bounds, return_x0)
        except (ValueError, IndexError):  # of a row of the tables
            if not own_times:
                process.check_time("t", t, 1, sched.T)
            raise
        if scalar:
            out, x0 = out.reshape(()), None if x0 is None else x0.reshape(())
        return out, x0

    def _complete(self, first: list[Term], noise: Noise | None) -> tuple[Call, bool]:
        """The checked call, and whether its terms are of no dimension."""
        (t, s), sched, present = self.times, self.sched, self.present
        names, encoded = select(self.encodings, sched)
        terms, shape, dtype = gather([*first, *encoded], like_first=True, what=self.what)
        batch = shape or [1]
        if not shape:
            terms = [x.reshape(1) for x in terms]  # type: ignore[union-attr]
        check_batch("t", t, batch[0])
        check_batch("s", s, batch[0])
        tables, rows = find(self.formula, sched, names, (t, s), arithmetic(dtype), batch[0])
        if present is not None:
            check_present(present, batch[0], len(names))
            process.check_time("t", t, 1, sched.T)
            tables, rows = tables.own(rows, batch[0]).only_present(present, len(first)), None
        if tables.sigma is None:
            noise = None
        if noise is not None:
            noise = check_noise(noise, batch[0], tables.coefs.device)
        return Call(terms, tables, rows, noise, batch, dtype), not shape


def step_by_table(
    terms: Sequence[Term],
    tables: Tables,
    row: Rows = None,
    *,
    clamp: float | tuple[float, float] | None = None,
    channels: tuple[int, int] | None = None,
    seed: Seed = None,
    sample_ids: Tensor | None = None,
    stream: int = 0,
    draw: int | Tensor = 0,
    levels: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """A sampler's step whose coefficients stand in tables, in one pass: of a loop's steps, each a row.

    x0 = clamp(sum_k to_x0[r, k] terms[k]), in its channels, and out = sum_k coefs[r, k] terms[k] + coefs[r, K] x0 +
    sigma[r] eps, r the row of each sample.

    Args:
        terms: K tensors or `Block`s; the first has the whole shape [B, ...].
        tables: `Tables` with to_x0 [R, K], coefs [R, K + 1] and sigma [R] (or None for no noise).
        row: the row of every sample, or int64 [B]; None for a row each (R is B, or 1).
        clamp: c for -c .. c, or a pair; None for no bounds.
        channels: (first, number) of those that x0 has, a pair of ints; None for all. It is zero elsewhere.
        seed, sample_ids, stream, draw: the identity of the noise, as for `randn`.
        levels: the first channels of blocks with a scale of the noise each, as for `combine`; sigma is then [R, L].

    Returns out [B, ...] and x0, of its channels. Raises MmfastError naming the argument at fault.
    """
    if not isinstance(tables, Tables) or tables.to_x0 is None:
        raise MmfastError("tables has no to_x0; it should be mmfast.ops.Tables(coefs, sigma, to_x0)")
    first = check_levels(levels, tables.sigma)
    noise = None if tables.sigma is None else Noise((seed, draw), sample_ids, stream, first)
    bounds = range_of(clamp)
    if channels is not None:
        bounds = Bounds(*bounds[:2], *_span(channels))
    if not is_compiling():
        found = dispatch.at_once("step", terms, tables, row, noise, bounds, True)
        if found is not None:
            return found
    tensors, shape, dtype = gather(terms, like_first=True)
    if not shape:
        raise MmfastError("terms are of no dimension, or empty; they should be [B, ...]")
    if bounds.start >= 0 and (len(shape) < 2 or bounds.start + bounds.channels > shape[1]):
        raise MmfastError(f"channels is {channels}; it should lie within the {shape[1:2]} of the terms")
    coefs, sigma, to_x0, _ = tables
    of_noise = [] if sigma is None else [("tables.sigma", sigma, (len(first),) if first else ())]
    of_terms = [("tables.to_x0", to_x0, (len(tensors),)), ("tables.coefs", coefs, (len(tensors) + 1,))]
    check_tables([*of_terms, *of_noise], row, shape[0])
    within_channels(first, shape)
    wide = arithmetic(dtype)
    tables = Tables(coefs, sigma, to_x0).map(lambda x: in_memory(x.to(wide)))
    if noise is not None:
        noise = check_noise(noise, shape[0], tables.coefs.device)
    check_device(tables.coefs.device, tensors, tables.to_x0, tables.sigma)
    call = Call(tensors, tables, row, noise, shape, dtype)
    try:
        return dispatch.of_call(call).step(call, bounds, True)
    except (ValueError, IndexError):
        check_row_values(row, tables)
        raise


def _span(channels: object) -> tuple[int, int]:
    """The pair (first, number) of channels."""
    whole = isinstance(channels, (tuple, list)) and len(channels) == 2
    if not whole or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in channels):  # type: ignore[attr-defined]
        raise MmfastError(
            f"channels is {channels!r}; it should be a pair (first, number) of ints, none negative, or None"
        )
    return channels[0], channels[1]  # type: ignore[index]
