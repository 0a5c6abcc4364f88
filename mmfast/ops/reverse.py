"""The reverse process: the posterior's mean and samples, and the sampler's step, each in one pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor
from torch.compiler import is_compiling

from mmfast import process
from mmfast.errors import MmfastError, unknown
from mmfast.keywords import filled, shows
from mmfast.ops import dispatch, reference
from mmfast.ops.block_times import by_block
from mmfast.ops.block_times import reverse as block_jumps
from mmfast.ops.call import Block, Bounds, GivenNoise, Term
from mmfast.ops.checks import Encodings, check_device
from mmfast.ops.identity import IDENTITY, Identity, noise_from
from mmfast.ops.reverse_call import ReverseCall
from mmfast.ops.tables import Formula, PosteriorMean, Step, covered, kept, made_once, range_of
from mmfast.process import TARGETS, Time
from mmfast.schedule import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

_MEAN, _SAMPLE = PosteriorMean(noisy=False), PosteriorMean(noisy=True)
_CLAMPED = Step("eps", eta=1.0)
# The noise, the bounds that x0 is clamped to, and whether to return x0.
How = tuple[GivenNoise | None, Bounds, bool]
_PLAIN: How = (None, Bounds(-math.inf, math.inf), False)


def posterior_mean(
    z_t: Term, eps: Term, encodings: Encodings, t: Time, sched: Schedule, s: Time | None = None,
    *, present: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute the mean of q(z_s | z_t, eps, X) for the jump t -> s (s defaults to t - 1), in one pass.

    It is 1/sqrt(a) (z_t - (1 - a)/sqrt(1 - abar_t) eps) - sum_i w^(i) E_i(x_i), with a = abar_t/abar_s and
    w = W_t/sqrt(a) - W_s. z_t, eps: [B, ...]; t in 1 .. T and s in 0 .. t - 1, ints or int64 [B]; encodings and
    present are as for q_sample.

    Or t and s are int64 [B, 1 + M], with a time for each block as for q_sample. Block i (of z_t and eps too) goes from
    t_i to s_i, which defaults to t_i - 1, or 0 for t_i = 0. z0's block has the channels that the encodings' blocks
    leave. A block with s_i = t_i stays unchanged.

    Raises MmfastError naming the argument at fault.
    """
    return _compute(_MEAN, "z_t, eps, encodings", encodings, (t, s), sched, present, [z_t, eps])[0]


class PosteriorOptions(Identity, total=False):
    """The keywords of `posterior_sample`; see there."""

    present: Tensor | None


class StepOptions(PosteriorOptions, total=False):
    """The keywords of `step`; see there."""

    target: str
    eta: float
    clamp: float | tuple[float, float] | None
    unconditional: Term | None
    guidance_scale: float


POSTERIOR: PosteriorOptions = {**IDENTITY, "present": None}
STEP: StepOptions = {
    **POSTERIOR, "target": "eps", "eta": 1.0, "clamp": None, "unconditional": None, "guidance_scale": 1.0,
}  # fmt: skip


@shows(PosteriorOptions, POSTERIOR)
def posterior_sample(
    z_t: Term, eps: Term, encodings: Encodings, t: Time, sched: Schedule, s: Time | None = None,
    clamp: float | tuple[float, float] | None = None, **options: Unpack[PosteriorOptions],
) -> Tensor:  # fmt: skip
    """Sample z_s ~ q(z_s | z_t, eps, X), the ancestral step of the jump t -> s (s defaults to t - 1), in one pass.

    The mean is that of posterior_mean, and the variance is (1 - a)(1 - abar_s)/(1 - abar_t), which is 0 for s = 0. With
    clamp (c for -c .. c, or a pair), the predicted z_0 is clamped and the mean is computed in its x_0 form. With a time
    for each block (see posterior_mean), z_0 is clamped in its own block and is zero elsewhere. The noise's identity is
    as for `randn`. Returns z_s [B, ...]. Raises MmfastError naming the argument at fault.
    """
    kind, chosen = _SAMPLE if clamp is None else _CLAMPED, filled("posterior_sample", POSTERIOR, options)
    how = noise_from(chosen), range_of(clamp), False
    return _compute(kind, "z_t, eps, encodings", encodings, (t, s), sched, chosen["present"], [z_t, eps], how)[0]


@shows(StepOptions, STEP)
def step(
    z_t: Term,
    prediction: Term,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    s: Time | None = None,
    **options: Unpack[StepOptions],
) -> tuple[Tensor, Tensor]:
    """Take one step of the sampler from t to s (t - 1 if None), from the network's prediction, in one pass.

    With guidance, prediction = unconditional + guidance_scale (prediction - unconditional). z0hat follows from the
    prediction and y_t = z_t - m_t, and is clamped. Then z_s = c0 z0hat + cy y_t + m_s + sigma eps', the step of DDIM
    (Song et al., 2021).

    Args:
        z_t: [B, ...].
        prediction: of the whole space, or a `Block` of it; z0hat is then zero elsewhere.
        encodings: E_i(xhat_i), or E_i of the true value where it is given; in the form that `q_sample` takes.
        t, s: as for posterior_mean. With a time for each block, the predictions have all channels or are `Block`s of
            z0's channels, and z0hat has z0's channels.
        target: what the network predicts, "eps" (the default), "x0" or "v".
        eta: 1 (the default) is DDPM's ancestral step, and 0 is deterministic.
        clamp: c for -c .. c, or a pair; None for no bounds.
        unconditional: the network's prediction without the condition, of the prediction's channels; None for no
            guidance.
        guidance_scale: the scale of the guidance, which needs `unconditional`.
        seed, sample_ids, stream, draw: the identity of the noise, as for `randn`; unused if eta is 0.
        present: as for `q_sample`.

    Returns z_s [B, ...], and z0hat, of the prediction's channels. Raises MmfastError naming the argument at fault.
    """
    chosen = filled("step", STEP, options)
    unconditional, guidance_scale = chosen["unconditional"], chosen["guidance_scale"]
    predictions, what, scale = [prediction], "z_t, prediction, encodings", None
    if unconditional is not None:
        predictions, what = [prediction, unconditional], "z_t, prediction, unconditional, encodings"
        scale = guidance_scale
        if scale is None:  # below, None means no guidance
            _finite("guidance_scale", scale)
        if covered(prediction) != covered(unconditional):
            raise MmfastError("unconditional covers other channels than prediction; it should cover the same")
    elif guidance_scale != 1:
        _finite("guidance_scale", guidance_scale)
        raise MmfastError(f"guidance_scale is {guidance_scale}, but unconditional is None; guidance needs both")
    kind, bounds = made_once(_asked, chosen["target"], chosen["eta"], scale, chosen["clamp"])
    if isinstance(prediction, Block):
        bounds = Bounds(*bounds[:2], *covered(prediction))
    how = noise_from(chosen), bounds, True
    return _compute(kind, what, encodings, (t, s), sched, chosen["present"], [z_t, *predictions], how)


def _asked(
    target: str, eta: float, guidance_scale: float | None, clamp: float | tuple[float, float] | None
) -> tuple[Step, Bounds]:
    """The step's formula and the bounds of x0, from unchecked options."""
    return made_once(_step, target, eta, guidance_scale), range_of(clamp)


def _step(target: str, eta: float, guidance_scale: float | None) -> Step:
    """The step's formula, after checking the options."""
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


def _compute(
    formula: Formula, what: str, encodings: Encodings, times: tuple[Time, Time | None], sched: Schedule,
    present: Tensor | None, first: list[Term], how: How = _PLAIN,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Apply the formula to z_t, the predictions and the encodings: z_s, and z0hat if the formula computes it."""
    t, s = times
    known = kept(formula, tuple(encodings), sched) if type(encodings) is dict else None
    # t < 1 must not get here: its row is NaN, and the values of a table on a GPU are not checked.
    if known is None or s is not None or present is not None or (type(t) is int and t < 1):
        return _checked(ReverseCall(formula, what, encodings, times, sched, present), first, how)
    terms, noise = [*first, *encodings.values()], None if known.sigma is None else how[0]  # type: ignore[union-attr]
    if known.to_x0 is None:
        found = dispatch.at_once("combine", terms, known, t, noise, False, False)
    else:
        found = dispatch.at_once("step", terms, known, t, noise, how[1], how[2])
    return found or _checked(ReverseCall(formula, what, encodings, times, sched, present), first, how)


def _checked(asked: ReverseCall, first: list[Term], how: How) -> tuple[Tensor, Tensor]:
    noise, bounds, return_x0 = how
    t, s = asked.times
    own_times = by_block(t) or by_block(s)
    if own_times:
        call, bounds = block_jumps(asked, first, noise, bounds)
        scalar = False
    else:
        call, scalar = asked.checked(first, noise)
    sched, device = asked.sched, call.tables.coefs.device
    serving = dispatch.of_call(call)
    if serving is reference and not is_compiling() and not own_times:
        process.check_time("t", t, 1, sched.T)  # the reference accepts a row of NaN
    check_device(device, call.terms)
    try:
        if call.tables.to_x0 is None:
            out, x0 = serving.combine(call, False)
        else:
            out, x0 = serving.step(call, bounds, return_x0)
    except (ValueError, IndexError):  # from a row of the tables
        if not own_times:
            process.check_time("t", t, 1, sched.T)
        raise
    if scalar:
        out, x0 = out.reshape(()), None if x0 is None else x0.reshape(())
    return out, x0
