"""The linear op as users call it: `combine`, and what is only it: the noise alone, and the multimodal mean.

All public ops are differentiable in every floating tensor argument, take float64, float32, bfloat16 and float16 of
any strides, compute in float32 (float64 for float64), and never wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmfast.errors import MmfastError
from mmfast.ops import primitives
from mmfast.ops.arguments import FLOATS, Encodings, Seed, Term, check_coefs, check_device, gather, noise_identity
from mmfast.ops.glance import in_memory
from mmfast.ops.reference import arithmetic


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
    tensors, starts, shape, dtype, _ = gather(terms)
    if not tensors:
        raise MmfastError("terms is empty; combine needs at least one, which gives the shape (or use randn)")
    shape = _of_batch(shape, coefs)
    out, eps = _combine(tensors, starts, coefs, sigma, shape, dtype, seed, sample_ids, stream, draw, return_noise)
    return (out, eps) if return_noise else out


def _of_batch(shape: Sequence[int], coefs: Tensor) -> Sequence[int]:
    """The shape of the result where the terms hold one sample for a batch of coefficients."""
    batched = bool(shape) and shape[0] == 1 and isinstance(coefs, Tensor) and coefs.dim() == 2
    return [coefs.shape[0], *shape[1:]] if batched else shape


def _combine(
    tensors: list[Tensor],
    starts: list[int],
    coefs: Tensor,
    sigma: Tensor | None,
    shape: Sequence[int],
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
    key = None
    if sigma is not None or return_noise:
        key, sample_ids = noise_identity(seed, draw, sample_ids, stream, batch[0], coefs.device)
    if sigma is not None:
        check_coefs("sigma", sigma, (batch[0],))
        if sigma.shape[0] != coefs.shape[0]:  # one table of both, row by row
            coefs, sigma = coefs.expand(batch[0], -1), sigma.expand(batch[0])
        sigma = in_memory(sigma.to(compute))
    check_device(coefs.device, tensors, sigma)
    out, eps = primitives.combine(
        tensors,
        starts,
        in_memory(coefs.to(compute)),
        sigma,
        None,
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


def random_words(
    shape: Sequence[int],
    *,
    seed: Seed = None,
    sample_ids: Tensor | None = None,
    stream: int = 0,
    draw: int | Tensor = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random 32-bit words by identity: int64 [B, count], each in 0 .. 2^32 - 1.

    shape: [B, count]; the rest as for `randn`, whose noise is made of the same words.
    """
    if not isinstance(shape, Sequence) or len(shape) != 2 or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise MmfastError(f"shape is {shape!r}; it should be [B, count], neither of them negative")
    device, (batch, count) = torch.device(device), shape
    key, ids = noise_identity(seed, draw, sample_ids, stream, batch, device)
    # A rank is the word, then 31 bits of the block's number; the op is one kernel where the words are many.
    return primitives.block_ranks(key, ids, stream, batch, count, device) >> 31


def multimodal_mean(encodings: Encodings, weights: Tensor) -> Tensor:
    """m = sum_i weights[:, i] E_i(x_i), the weighted multimodal mean.

    encodings: by name or in order, broadcasting together to [B, ...]; weights: [B, N] or [1, N].
    """
    terms = list(encodings.values()) if isinstance(encodings, Mapping) else encodings
    if isinstance(terms, Sequence) and not terms:
        raise MmfastError("encodings is empty; multimodal_mean needs at least one, which gives the shape")
    tensors, starts, shape, dtype, _ = gather(terms, what="encodings")
    check_coefs("weights", weights, ((_of_batch(shape, weights) or [1])[0], len(terms)))
    return _combine(tensors, starts, weights, None, _of_batch(shape, weights), dtype)[0]
