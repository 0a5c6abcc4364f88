"""The public ops: each is the primitive with the coefficients of its formula (mmfast.process).

All are differentiable in every floating tensor argument, take float64, float32, bfloat16 and float16 of any
strides, compute in float32 (float64 for float64), and never wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mmfast import process
from mmfast.errors import MmfastError
from mmfast.ops import library
from mmfast.ops.arguments import (
    FLOATS,
    Encodings,
    Gathered,
    Seed,
    Term,
    check_batch,
    check_coefs,
    check_device,
    check_noise,
    check_present,
    columns,
    gather,
    noise_identity,
    select,
)
from mmfast.ops.reference import arithmetic
from mmfast.process import Time
from mmfast.schedule import Schedule


def combine(
    terms: Sequence[Term],
    coefs: Tensor,
    sigma: Tensor | None = None,
    *,
    seed: Seed = None,
    sample_ids: Tensor | None = None,
    stream: int = 0,
    draw: int | Tensor = 0,
    return_noise: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Per-sample linear combination: out[b] = sum_k coefs[b, k] terms[k][b] + sigma[b] eps[b].

    Args:
        terms: K tensors that broadcast together to [B, ...], or `Block`s of its channels; a term whose
            coefficient is zero is not read for that sample. Types promote as torch's do.
        coefs: [B, K] or [1, K].
        sigma: [B] or [1], the scale of the noise; None for none.
        seed, sample_ids, stream, draw: the identity of the noise, as for `randn`.
        return_noise: return (out, eps).

    Returns out [B, ...], and eps of the same shape and type if asked for.
    Raises MmfastError (a ValueError or TypeError by its kind) naming the argument at fault.
    """
    tensors, starts, shape, dtype = gather(terms)
    if not tensors:
        raise MmfastError("terms is empty; combine needs at least one, which gives the shape (or use randn)")
    shape = _of_batch(shape, coefs)
    out, eps = _combine(tensors, starts, coefs, sigma, shape, dtype, seed, sample_ids, stream, draw, return_noise)
    return (out, eps) if return_noise else out


def _of_batch(shape: list[int], coefs: Tensor) -> list[int]:
    """The shape of the result where the terms hold one sample for a batch of coefficients."""
    batched = bool(shape) and shape[0] == 1 and isinstance(coefs, Tensor) and coefs.dim() == 2
    return [coefs.shape[0], *shape[1:]] if batched else shape


def _combine(
    tensors: list[Tensor],
    starts: list[int],
    coefs: Tensor,
    sigma: Tensor | None,
    shape: list[int],
    dtype: torch.dtype,
    seed: Seed = None,
    sample_ids: Tensor | None = None,
    stream: int = 0,
    draw: int | Tensor = 0,
    return_noise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Bring coefficients, sigma and identity to what the primitive takes, and call it."""
    compute = arithmetic(dtype)
    # A sample is the first dimension: a zero-dimensional tensor is one sample of one element.
    batch = shape or [1]
    if not shape:
        tensors = [x.reshape(1) for x in tensors]
    check_coefs("coefs", coefs, (batch[0], len(tensors)))
    if coefs.dtype != compute or coefs.shape[0] != batch[0]:
        coefs = coefs.to(compute).expand(batch[0], -1)
    key = None
    if sigma is not None or return_noise:
        key, sample_ids = noise_identity(seed, draw, sample_ids, stream, batch[0], coefs.device)
    if sigma is not None:
        check_coefs("sigma", sigma, (batch[0],))
        if sigma.dtype != compute or sigma.shape[0] != batch[0]:
            sigma = sigma.to(compute).expand(batch[0])
    check_device(coefs.device, tensors, sigma)
    out, eps = library.combine(
        tensors,
        starts,
        coefs,
        sigma,
        key,
        sample_ids if key is not None else None,
        stream,
        batch,
        dtype,
        return_noise,
    )
    if not shape:
        out, eps = out.reshape(()), eps.reshape(()) if return_noise else eps
    return out, eps


def randn(
    shape: Sequence[int],
    *,
    seed: Seed = None,
    sample_ids: Tensor | None = None,
    stream: int = 0,
    draw: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise [B, ...] in which each sample depends on its identity alone.

    Element e of a sample is a pure function of (seed, stream, sample id, draw, e): the same bits whatever the
    batch, its order, the number of threads or the instruction set (Philox4x32-10 and Box-Muller).

    Args:
        shape: [B, ...].
        seed: int or int64 tensor of 64 bits; None takes a fresh one from torch's default generator, so that
            torch.manual_seed repeats it.
        sample_ids: int64 [B] in 0 .. 2^48 - 1; None for 0 .. B - 1.
        stream: 0 .. 65535, for noise of different purposes.
        draw: 0 .. 2^32 - 1, for repeated draws of one purpose; an int or an int64 tensor.
    """
    if not isinstance(shape, Sequence) or not all(isinstance(n, (int, torch.SymInt)) and n >= 0 for n in shape):
        raise MmfastError(f"shape is {shape!r}; it should be the sizes [B, ...], none of them negative")
    if dtype not in FLOATS:
        raise MmfastError(f"dtype is {dtype}; it should be float32, float64, bfloat16 or float16")
    shape = list(shape)
    none = torch.zeros(shape[0] if shape else 1, 0, device=device)
    _, eps = _combine([], [], none, None, shape, dtype, seed, sample_ids, stream, draw, return_noise=True)
    return eps


def multimodal_mean(encodings: Encodings, weights: Tensor) -> Tensor:
    """m = sum_i weights[:, i] E_i(x_i), the weighted multimodal mean.

    encodings: by name or in order, broadcasting together to [B, ...]; weights: [B, N] or [1, N].
    """
    terms = list(encodings.values()) if isinstance(encodings, Mapping) else encodings
    if isinstance(terms, Sequence) and not terms:
        raise MmfastError("encodings is empty; multimodal_mean needs at least one, which gives the shape")
    tensors, starts, shape, dtype = gather(terms, what="encodings")
    check_coefs("weights", weights, (_batch(_of_batch(shape, weights)), len(terms)))
    return _combine(tensors, starts, weights, None, _of_batch(shape, weights), dtype)[0]


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
) -> tuple[Tensor, Tensor]:
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

    Returns z_t and the eps that made it (the tensor handed in, if it is of z_t's type: copying it would cost as much
    as the op).
    """
    names, terms = select(encodings, sched)
    tensors, starts, shape, dtype = gather([z0, *terms], like_first=True, what="z0, encodings")
    check_batch("t", t, _batch(shape))
    process.check_kind("t", t, 0, sched.T)
    row = process.rows(sched.marginal[arithmetic(dtype)], t)
    if names != sched.names:
        row = row[:, [0, *(1 + i for i in sched.index(names)), -1]]
    if present is not None:
        check_present(present, _batch(shape), len(names))
        row = columns(_batch(shape), row[:, 0], row[:, 1:-1] * present, row[:, -1])
    if noise is not None:
        check_noise(noise, shape)
        noise = noise.to(dtype)
        z, _ = _combine([*tensors, noise], [*starts, -1], row, None, shape, dtype)
        return z, noise
    identity = (seed, sample_ids, stream, draw)
    return _combine(tensors, starts, row[:, :-1], row[:, -1], shape, dtype, *identity, return_noise=True)


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
    terms, j, W = _step(z_t, eps, encodings, t, sched, s, present)
    of_z, of_eps, of_E = process.posterior_mean_eps(j)
    tensors, starts, shape, dtype = terms
    return _combine(tensors, starts, columns(_batch(shape), of_z, of_eps, W(of_E)), None, shape, dtype)[0]


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
    """z_s ~ q(z_s | z_t, eps, X), the ancestral step of the jump t -> s (s defaults to t - 1).

    The mean is posterior_mean's; the variance (1 - a)(1 - abar_s)/(1 - abar_t), so none for s = 0. With clamp
    (c for -c .. c, or a pair) the predicted z_0 is held within it and the mean taken in its x_0 form. The noise's
    identity is as for `randn`. Returns z_s [B, ...].
    """
    terms, j, W = _step(z_t, eps, encodings, t, sched, s, present)
    tensors, starts, shape, dtype = terms
    batch = _batch(shape)
    sigma = process.posterior_variance(j).sqrt()
    identity = (seed, sample_ids, stream, draw)
    if clamp is None:
        of_z, of_eps, of_E = process.posterior_mean_eps(j)
        return _combine(tensors, starts, columns(batch, of_z, of_eps, W(of_E)), sigma, shape, dtype, *identity)[0]
    low, high = _range(clamp)
    of_y, of_eps = process.TARGETS["eps"].x0(j.alpha_bar_t)
    coefs = columns(batch, of_y, of_eps, W(-of_y[:, None] * j.W_t))
    # Predicted and clamped at the arithmetic's precision: half precision may hold neither z_0 nor the bounds.
    wide = arithmetic(dtype)
    tensors = [x.to(wide) for x in tensors]
    z0 = _combine(tensors, starts, coefs, None, shape, wide)[0].clamp(low, high)
    of_z0, of_z, of_E = process.posterior_mean_x0(j)
    coefs = columns(batch, of_z0, of_z, W(of_E))
    tensors, starts = [z0.reshape(shape), tensors[0], *tensors[2:]], [-1, starts[0], *starts[2:]]
    return _combine(tensors, starts, coefs, sigma, shape, wide, *identity)[0].to(dtype)


def _batch(shape: list[int]) -> int:
    return shape[0] if shape else 1


def _step(
    z_t: Term,
    eps: Term,
    encodings: Encodings,
    t: Time,
    sched: Schedule,
    s: Time | None,
    present: Tensor | None,
) -> tuple[Gathered, process.Jump, Callable[[Tensor], Tensor]]:
    """The terms of a reverse step, its jump, and how a column per modality of the schedule becomes the terms'."""
    names, encoded = select(encodings, sched)
    terms = gather([z_t, eps, *encoded], like_first=True, what="z_t, eps, encodings")
    batch = _batch(terms[2])
    check_batch("t", t, batch)
    check_batch("s", s, batch)
    if present is not None:
        check_present(present, batch, len(names))
    index = None if names == sched.names else sched.index(names)

    def of_terms(weights: Tensor) -> Tensor:
        weights = weights if index is None else weights[:, index]
        return weights if present is None else weights * present

    return terms, process.jump(sched, t, s), of_terms


def _range(clamp: float | tuple[float, float]) -> tuple[float, float]:
    pair = tuple(clamp) if isinstance(clamp, (tuple, list)) else (clamp,)
    numbers = len(pair) <= 2 and all(isinstance(x, (int, float)) for x in pair)
    low, high = (-pair[0], pair[0]) if numbers and len(pair) == 1 else pair if numbers else (0.0, 0.0)
    if not low < high:
        raise MmfastError(f"clamp is {clamp!r}; it should be a positive number or a pair (low, high)")
    return low, high
