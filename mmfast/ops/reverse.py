"""The reverse process: the posterior's mean and samples, and the sampler's step, each in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmfast import process
from mmfast.errors import MmfastError, unknown
from mmfast.ops import backends, primitives
from mmfast.ops.arguments import (
    Block,
    Encodings,
    Seed,
    Term,
    check_batch,
    check_device,
    check_present,
    gather,
    noise_identity,
    select,
)
from mmfast.ops.coefficients import Formula, PosteriorMean, Step, find, formula, range_of
from mmfast.ops.glance import LONG_WAY
from mmfast.ops.reference import arithmetic
from mmfast.process import TARGETS, Time
from mmfast.schedule import Schedule

_MEAN, _SAMPLE = PosteriorMean(noisy=False), PosteriorMean(noisy=True)
_CLAMPED = Step("eps", eta=1.0)


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
    """
    return _apply(_MEAN, z_t, [eps], "z_t, eps, encodings", encodings, t, sched, s, present=present)[0]


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
    identity is as for `randn`. Returns z_s [B, ...].
    """
    kind = _SAMPLE if clamp is None else _CLAMPED
    identity = (seed, draw, sample_ids, stream)
    terms = "z_t, eps, encodings"
    return _apply(kind, z_t, [eps], terms, encodings, t, sched, s, identity, range_of(clamp), present=present)[0]


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
        target: what is predicted, "eps", "x0" or "v".
        clamp: c for -c .. c, or a pair; None for no bounds.
        seed, sample_ids, stream, draw: the identity of the noise, as for `randn`; unused for eta = 0.

    Returns z_s [B, ...] and z0hat, of the prediction's channels.
    """
    if not isinstance(target, str) or target not in TARGETS:
        raise unknown("target", target, TARGETS)
    for name, value in (("eta", eta), ("guidance_scale", guidance_scale)):
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            given = value if isinstance(value, float) else f"a {type(value).__name__}"
            raise MmfastError(f"{name} is {given}; it should be a finite number")
    if not 0 <= eta <= 1:
        raise MmfastError(f"eta is {eta}; it should lie in 0 .. 1")
    predictions, what = [prediction], "z_t, prediction, encodings"
    if unconditional is not None:
        predictions, what = [prediction, unconditional], "z_t, prediction, unconditional, encodings"
        if _channels(prediction) != _channels(unconditional):
            raise MmfastError("unconditional covers other channels than prediction; it should cover the same")
    elif guidance_scale != 1:
        raise MmfastError(f"guidance_scale is {guidance_scale}, but unconditional is None; guidance needs both")
    kind = formula(Step, target, float(eta), None if unconditional is None else float(guidance_scale))
    identity = (seed, draw, sample_ids, stream)
    bounds, channels = range_of(clamp), _channels(prediction)
    return _apply(kind, z_t, predictions, what, encodings, t, sched, s, identity, bounds, channels, present)


def _channels(prediction: Term) -> tuple[int, int]:
    """The first channel that a prediction covers and their number; (-1, 0) for all."""
    if not isinstance(prediction, Block) or not isinstance(prediction.tensor, Tensor) or prediction.tensor.dim() < 2:
        return -1, 0  # of the whole space, or refused by `gather`
    return prediction.start, prediction.tensor.shape[1]


def _apply(
    kind: Formula,
    z_t: Term,
    predictions: list[Term],
    what: str,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    s: Time | None,
    identity: tuple[Seed, int | Tensor, Tensor | None, int] | None = None,
    bounds: tuple[float, float] = (-torch.inf, torch.inf),
    channels: tuple[int, int] = (-1, 0),
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A formula of the reverse process on its terms; the result and, where the formula goes through it, z0hat."""
    usual = present is None and s is None and channels[0] < 0 and not torch.compiler.is_compiling()
    if usual and type(encodings) is dict and type(sched) is Schedule:
        known = sched.derived.get((kind, tuple(encodings), torch.float32))
        if known is not None:
            second = known.to_x0 is not None and kind is not _CLAMPED
            terms = [z_t, *predictions, *encodings.values()]
            done = primitives.by_express(terms, known, t, identity or (0, 0, None, 0), second, *bounds)
            if done is not None:
                return done
    names, encoded = select(encodings, sched)
    tensors, starts, shape, dtype, seen = gather([z_t, *predictions, *encoded], like_first=True, what=what)
    batch = shape or [1]
    if not shape:
        tensors = [x.reshape(1) for x in tensors]
    check_batch("t", t, batch[0])
    check_batch("s", s, batch[0])
    found, rows = find(kind, sched, names, t, s, arithmetic(dtype), batch[0])
    if present is not None:
        check_present(present, batch[0], len(names))
        process.check_time("t", t, 1, sched.T)
        found, rows = found.own(rows, batch[0]).only_present(present, 1 + len(predictions)), None
        seen = LONG_WAY
    key = ids = None
    stream = 0
    if identity is not None and found.sigma is not None:
        seed, draw, ids, stream = identity
        key, ids = noise_identity(seed, draw, ids, stream, batch[0], tensors[0].device)
    if seen == LONG_WAY or not found.coefs.is_cpu:
        check_device(found.coefs.device, tensors, None)
    if not torch.compiler.is_compiling() and backends.choose(found.coefs.device.type).name == "reference":
        process.check_time("t", t, 1, sched.T)  # it takes a row of NaN for one like the others
    run = primitives.way(seen)
    try:
        if found.to_x0 is None:
            out, x0 = run.combine(
                tensors, starts, found.coefs, found.sigma, rows, key, ids, stream, batch, dtype, False
            )
        else:
            out, x0 = run.step(
                tensors, starts, found.to_x0, found.coefs, found.sigma, rows, *bounds, *channels, key, ids, stream,
                batch, dtype, kind is not _CLAMPED,
            )  # fmt: skip
    except (ValueError, IndexError):  # of a row of the tables
        process.check_time("t", t, 1, sched.T)
        raise
    return (out, x0) if shape else (out.reshape(()), x0.reshape(()) if x0.numel() else x0)
