"""The definition of every op, in plain torch: slow, readable, and right on any device.

The fast backends are tested against this file, and it runs where none of them can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

name = "reference"
devices = ("cpu", "cuda")

MASK32 = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def unavailable() -> str | None:
    """One line on why this backend cannot run here, or None when it can."""
    return None


def describe() -> str:
    return f"plain torch {torch.__version__}"


def philox4x32(counter: Tensor, key: Tensor, rounds: int = 10) -> Tensor:
    """Philox4x32-10, the counter-based generator of Salmon et al., SC 2011.

    counter: int64 [..., 4] and key: int64 [..., 2], each holding 32-bit words. Returns int64 [..., 4]
    with words in 0 .. 2^32 - 1.
    """
    c0, c1, c2, c3 = (counter & MASK32).unbind(-1)
    k0, k1 = (key & MASK32).unbind(-1)
    for _ in range(rounds):
        # The products wrap in int64; masking after the shift leaves the 64 bits of the unsigned product.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK32) ^ c1 ^ k0,
            p1 & MASK32,
            ((p0 >> 32) & MASK32) ^ c3 ^ k1,
            p0 & MASK32,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


def random_words(key: Tensor, sample_ids: Tensor, stream: int, blocks: int) -> Tensor:
    """The 32-bit words of each sample: int64 [B, blocks, 4].

    key: int64 [2] = (seed, draw); sample_ids: int64 [B]. Philox's key is the 64-bit seed; its counter is
    (block, draw, id bits 0-31, id bits 32-47 with the stream in the top 16).
    """
    seed, draw = key.unbind(-1)
    ids = sample_ids[:, None]
    block = torch.arange(blocks, device=ids.device)[None, :]
    high = ((ids >> 32) & 0xFFFF) | (stream << 16)
    counter = torch.stack(torch.broadcast_tensors(block, draw, ids & MASK32, high), -1)
    return philox4x32(counter, torch.stack((seed & MASK32, (seed >> 32) & MASK32), -1))


def box_muller(words: Tensor) -> Tensor:
    """Standard normals (float32) from 32-bit words, in pairs: int64 [..., 2n] -> float32 [..., 2n].

    u = (x_0 + 1/2) / 2^32 rounded as float32 arithmetic rounds it, never 0; theta = 2 pi x_1 / 2^32;
    (sqrt(-2 ln u) cos theta, sqrt(-2 ln u) sin theta). The smallest u gives 6.76 sigma.
    """
    x = words.unflatten(-1, (-1, 2))
    u = (x[..., 0].float().double() * 2.0**-32 + 2.0**-33).float().double()
    radius = torch.sqrt(-2.0 * torch.log(u))
    theta = x[..., 1].double() * (2.0 * math.pi / 2.0**32)
    return torch.stack((radius * torch.cos(theta), radius * torch.sin(theta)), -1).float().flatten(-2)


def noise(key: Tensor, sample_ids: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """eps of every sample, float32 of `shape` = [B, ...], a pure function of each sample's identity."""
    elements = math.prod(shape[1:])
    words = random_words(key, sample_ids, stream, -(-elements // 4))
    return box_muller(words.flatten(1))[:, :elements].reshape(tuple(shape))


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The type that a result of `dtype` is computed in: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_sample(values: Tensor, ndim: int) -> Tensor:
    """[B] -> [B, 1, ..., 1] with `ndim` dimensions."""
    return values.reshape(-1, *[1] * (ndim - 1))


def sum_samples(x: Tensor) -> Tensor:
    """[B, ...] -> [B], for samples of any shape, a single number too."""
    return x.reshape(len(x), math.prod(x.shape[1:])).sum(1)


def in_space(term: Tensor, start: int, shape: Sequence[int]) -> Tensor:
    """The part of `shape` that a term covers: all of it, or channels start .. start + term.size(1)."""
    if start < 0:
        return term.expand(tuple(shape))
    covered = term.expand(shape[0], -1, *shape[2:])
    after = shape[1] - start - term.size(1)
    return torch.nn.functional.pad(covered, [0, 0] * (len(shape) - 2) + [start, after])


def combine(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    key: Tensor | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    return_noise: bool,
) -> tuple[Tensor, Tensor]:
    """The primitive: out[b] = sum_k coefs[b, k] term_k[b] + sigma[b] eps[b], and eps itself if wanted.

    terms: K tensors of `dtype` that broadcast to shape = [B, ...], or, where starts[k] >= 0, cover the
    channels from starts[k] on and nothing else; coefs: [B, K]; sigma: [B] or None for no noise; key: int64
    (seed, draw); sample_ids: int64 [B]. A term with a coefficient of zero counts as missing for that
    sample, whatever it holds. Returns out of `shape` and eps of `shape` (of size 0 if not wanted).
    """
    out = coefs.new_zeros(tuple(shape))
    for k, (term, start) in enumerate(zip(terms, starts, strict=True)):
        coef = per_sample(coefs[:, k], len(shape))
        out = out + torch.where(coef == 0, 0.0, coef * in_space(term, start, shape).to(coefs.dtype))
    eps = out.new_empty(0)
    if key is not None and sample_ids is not None and (sigma is not None or return_noise):
        eps = noise(key, sample_ids, stream, shape).to(coefs.dtype)
        if sigma is not None:
            out = out + per_sample(sigma, len(shape)) * eps
    return out.to(dtype), eps.to(dtype) if return_noise else out.new_empty(0, dtype=dtype)


def combine_backward(
    grad: Tensor,
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    key: Tensor | None,
    sample_ids: Tensor | None,
    stream: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `combine` for the terms, coefs and sigma that `needs` (K + 2 flags) asks for, in order.

    d/d term_k = coefs[b, k] grad, summed over what the term was broadcast along; d/d coefs[b, k] =
    <grad[b], term_k[b]>; d/d sigma[b] = <grad[b], eps[b]> with eps made again from its identity.
    """
    g = grad.contiguous().to(coefs.dtype)
    *needs_terms, needs_coefs, needs_sigma = needs
    result = []
    for k, term in enumerate(terms):
        if needs_terms[k]:
            gk = g if starts[k] < 0 else g.narrow(1, starts[k], term.size(1)).contiguous()
            gk = per_sample(coefs[:, k], g.dim()) * gk
            result.append(gk.sum_to_size(term.shape).to(term.dtype))
    if needs_coefs:
        inner = [sum_samples(g * in_space(x, s, g.shape)) for x, s in zip(terms, starts, strict=True)]
        result.append(torch.stack(inner, 1) if inner else torch.zeros_like(coefs))
    if needs_sigma and sigma is not None and key is not None and sample_ids is not None:
        eps = noise(key, sample_ids, stream, g.shape).to(g.dtype)
        result.append(sum_samples(g * eps))
    return result
