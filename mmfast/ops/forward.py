"""The forward process and the loss on its noise: `q_sample` and `diffusion_loss`, each in one pass."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from mmfast import process
from mmfast.errors import MmfastError, unknown
from mmfast.ops import primitives
from mmfast.ops.arguments import (
    Encodings,
    Seed,
    Term,
    check_batch,
    check_coefs,
    check_device,
    check_noise,
    check_present,
    gather,
    noise_identity,
    select,
)
from mmfast.ops.coefficients import Error, Marginal, find, formula
from mmfast.ops.glance import LONG_WAY, glance
from mmfast.ops.reference import arithmetic, pick
from mmfast.process import TARGETS, Time
from mmfast.schedule import Schedule

_MARGINAL, _MARGINAL_GIVEN = Marginal(noise_given=False), Marginal(noise_given=True)


@overload
def q_sample(
    z0: Term,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    *,
    seed: Seed = ...,
    sample_ids: Tensor | None = ...,
    stream: int = ...,
    draw: int | Tensor = ...,
    noise: Tensor | None = ...,
    present: Tensor | None = ...,
    return_noise: Literal[True] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def q_sample(
    z0: Term,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    *,
    seed: Seed = ...,
    sample_ids: Tensor | None = ...,
    stream: int = ...,
    draw: int | Tensor = ...,
    noise: Tensor | None = ...,
    present: Tensor | None = ...,
    return_noise: Literal[False],
) -> Tensor: ...
def q_sample(
    z0: Term,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    *,
    seed: Seed = None,
    sample_ids: Tensor | None = None,
    stream: int = 0,
    draw: int | Tensor = 0,
    noise: Tensor | None = None,
    present: Tensor | None = None,
    return_noise: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """z_t ~ q(z_t | z_0, X) = N(sqrt(abar_t) z_0 + sum_i W_t^(i) E_i(x_i), (1 - abar_t) I), in one pass.

    Args:
        z0: the anchor in the diffusion space, [B, ...] (or a `Block` of it, zero elsewhere).
        encodings: by modality name (or in the order of sched.names), each broadcasting to z0 or a `Block`; a
            modality that is left out counts as missing.
        t: int or int64 [B], in 0 .. T.
        seed, sample_ids, stream, draw: the identity of the noise (see `randn`).
        noise: eps itself, instead of an identity.
        present: bool or float [B, N], in the order of `encodings`: zero where a sample lacks a modality, whose
            encoding is then not read.
        return_noise: whether to return eps too; without, it is never written to memory, and the identity makes it
            again (`diffusion_loss`, `randn`).

    Returns z_t, and the eps that made it (the tensor handed in, if it is of z_t's type: copying it would cost as much
    as the op).
    """
    # What was asked for before, in one call, if nothing about it is unusual. A compiler must not see the tables kept.
    if present is None and not torch.compiler.is_compiling() and type(encodings) is dict and type(sched) is Schedule:
        known = sched.derived.get((_MARGINAL if noise is None else _MARGINAL_GIVEN, tuple(encodings), torch.float32))
        if known is not None:
            terms = [z0, *encodings.values()] if noise is None else [z0, *encodings.values(), noise]
            identity, second = (seed, draw, sample_ids, stream), return_noise and noise is None
            done = primitives.by_express(terms, known, t, identity, second, -torch.inf, torch.inf)
            if done is not None:
                z, eps = done
                return z if not return_noise else (z, eps if noise is None else noise)
    names, terms = select(encodings, sched)
    tensors, starts, shape, dtype, seen = gather([z0, *terms], like_first=True, what="z0, encodings")
    batch = shape or [1]
    if not shape:
        tensors = [x.reshape(1) for x in tensors]
    check_batch("t", t, batch[0])
    marginal = _MARGINAL if noise is None else _MARGINAL_GIVEN
    found, rows = find(marginal, sched, names, t, None, arithmetic(dtype), batch[0])
    if present is not None:
        check_present(present, batch[0], len(names))
        process.check_time("t", t, 0, sched.T)  # torch picks the rows here, and looks at no NaN
        found, rows, seen = found.own(rows, batch[0]).only_present(present, 1), None, LONG_WAY
    key = None
    if noise is None:
        key, sample_ids = noise_identity(seed, draw, sample_ids, stream, batch[0], tensors[0].device)
    else:
        check_noise(noise, shape)
        noise, sample_ids = noise.to(dtype), None
        tensors, starts = [*tensors, noise.reshape(batch)], [*starts, -1]
        seen = glance(tensors) if seen != LONG_WAY else LONG_WAY
    if seen == LONG_WAY or not found.coefs.is_cpu:
        check_device(found.coefs.device, tensors, None)
    try:
        z, eps = primitives.way(seen).combine(
            tensors,
            starts,
            found.coefs,
            found.sigma,
            rows,
            key,
            sample_ids,
            stream,
            batch,
            dtype,
            return_noise and noise is None,
        )
    except (ValueError, IndexError):  # of a row of the tables
        process.check_time("t", t, 0, sched.T)
        raise
    if not shape:
        z, eps = z.reshape(()), eps.reshape(()) if noise is None and return_noise else eps
    if not return_noise:
        return z
    return z, eps if noise is None else noise


def diffusion_loss(
    prediction: Tensor,
    z0: Tensor,
    t: Time,
    sched: Schedule,
    *,
    noise: Tensor | None = None,
    seed: Seed = None,
    sample_ids: Tensor | None = None,
    stream: int = 0,
    draw: int | Tensor = 0,
    target: str = "eps",
    min_snr_gamma: float | None = None,
    sample_weight: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    fused: bool = True,
) -> Tensor:
    """The simple loss weight_t |prediction - target|^2, a mean over each sample's elements, in one pass.

    The target is eps, x0 or v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0, formed inside. The gradient for the
    prediction is made in the same pass as the loss, by a sum that does not depend on the threads; nothing else is
    kept for it. For other gradients, or second ones, the loss is taken apart into differentiable ops (fused=False).

    Args:
        prediction, z0: [B, ...] of one shape.
        t: int or int64 [B], in 0 .. T.
        noise: the eps that made z_t; or, to have it made again rather than kept, its identity in
        seed, sample_ids, stream, draw: as they were given to `q_sample` (z0 the first channels of its space).
        min_snr_gamma: weights the steps as min-SNR-gamma does (Hang et al., 2023); None for 1.
        sample_weight: [B], for instance zero where a sample is not to count.
        reduction: "mean" over the batch, a scalar; or "none", [B].

    Raises MmfastError naming the argument at fault.
    """
    if not isinstance(target, str) or target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if not isinstance(sched, Schedule):
        raise MmfastError(f"sched is a {type(sched).__name__}; it should be a mmfast.Schedule")
    gamma = min_snr_gamma
    if gamma is not None and (not isinstance(gamma, (int, float)) or not gamma > 0):
        raise MmfastError(f"min_snr_gamma is {gamma!r}; it should be a positive number or None")
    if reduction not in ("mean", "none"):
        raise unknown("reduction", reduction, ("mean", "none"))
    if noise is None and seed is None:
        raise MmfastError("noise and seed are both None; diffusion_loss needs the noise of z_t, or its seed and ids")
    given = [prediction, z0] if noise is None else [prediction, z0, noise]
    what = "prediction, z0, noise"
    tensors, starts, shape, dtype, _ = gather(given, like_first=True, what=what)
    for name, x in zip(what.split(", "), given, strict=False):
        if not isinstance(x, Tensor) or list(x.shape) != list(shape) or not shape:
            kind = f"of shape {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise MmfastError(f"{name} is {kind}; it should be a tensor of prediction's shape, [B, ...]")
    batch = shape[0]
    check_batch("t", t, batch)
    error = formula(Error, target, min_snr_gamma, noise is not None)
    found, rows = find(error, sched, sched.names, t, None, arithmetic(dtype), batch)
    weight = found.weight
    assert weight is not None  # an Error has one
    key = None
    if noise is None:
        key, sample_ids = noise_identity(seed, draw, sample_ids, stream, batch, tensors[0].device)
    if sample_weight is not None:
        check_coefs("sample_weight", sample_weight, (batch,))
        check_device(found.coefs.device, tensors, sample_weight)
        process.check_time("t", t, 0, sched.T)  # torch picks the rows here, and looks at no NaN
        weight = (pick(weight, rows, batch) * sample_weight).to(weight.dtype)
        found, rows = found.own(rows, batch), None
    check_device(found.coefs.device, tensors, None)
    scale = 1 / max(1, math.prod(shape[1:]))
    if reduction == "mean":
        scale /= max(1, batch)
    try:
        loss = primitives.squared_error(
            tensors,
            starts,
            found.coefs,
            found.sigma,
            weight,
            rows,
            key,
            sample_ids if key is not None else None,
            stream,
            shape,
            dtype,
            scale,
            fused,
        )
    except (ValueError, IndexError):
        process.check_time("t", t, 0, sched.T)
        raise
    return loss.sum() if reduction == "mean" else loss
