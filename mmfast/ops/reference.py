"""The definition of every op, in plain torch: slow, readable, and right on any device.

The fast backends are tested against this file, and it runs where none of them can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

name = "reference"
devices = ("cpu", "cuda")

MASK32 = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

# (seed, draw): int64 [2], or two ints that fit int64, which need no tensor to be made.
Key = Tensor | tuple[int, int]
# Which row of a table serves each sample: int64 [B]; the one row for all; None for the table's own order.
Rows = Tensor | int | None


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


def identities(sample_ids: Tensor | None, shape: Sequence[int], device: torch.device) -> Tensor:
    """The samples' ids: int64 [B], 0 .. B - 1 where none are given."""
    return torch.arange(shape[0], device=device) if sample_ids is None else sample_ids


def random_words(key: Key, sample_ids: Tensor, stream: int, blocks: int) -> Tensor:
    """The 32-bit words of each sample: int64 [B, blocks, 4].

    key: (seed, draw), int64 [2] or two ints; sample_ids: int64 [B]. Philox's key is the 64-bit seed; its counter is
    (block, draw, id bits 0-31, id bits 32-47 with the stream in the top 16).
    """
    seed, draw = torch.as_tensor(key, device=sample_ids.device).unbind(-1)
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


def noise(key: Key, sample_ids: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
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


def one_row(rows: Rows, *tables: Tensor | None) -> tuple[Any, ...]:
    """(rows, *tables) for a backend that takes no number for `rows`: the tables cut to that row, and None."""
    if not isinstance(rows, int):
        return rows, *tables
    return None, *(None if x is None else x[rows : rows + 1] for x in tables)


def pick(table: Tensor, rows: Rows, batch: int) -> Tensor:
    """The row of each sample: table[rows], or table itself, its one row serving every sample: [batch, ...]."""
    if isinstance(rows, int):
        table, rows = table[rows : rows + 1], None
    return table.expand(batch, *table.shape[1:]) if rows is None else table.index_select(0, rows)


def combine(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    rows: Rows,
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    return_noise: bool,
) -> tuple[Tensor, Tensor]:
    """The primitive: out[b] = sum_k coefs[b, k] term_k[b] + sigma[b] eps[b], and eps itself if wanted.

    terms: K tensors of `dtype` that broadcast to shape = [B, ...], or, where starts[k] >= 0, cover the
    channels from starts[k] on and nothing else; coefs: [R, K] and sigma: [R] (None for no noise), tables of which
    sample b uses row rows[b] (row `rows`, if an int); with rows None, R is B, or 1: one row for every sample. key:
    (seed, draw), as int64 [2] or as two ints, None for no noise; sample_ids: int64 [B], None for 0 .. B - 1. A term
    with a coefficient of zero counts as missing for that sample, whatever it holds. Returns out of `shape` and eps
    of `shape` (of size 0 if not wanted).
    """
    out, eps = _combined(terms, starts, coefs, sigma, rows, key, sample_ids, stream, shape, return_noise)
    return out.to(dtype), eps.to(dtype)


def _combined(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    rows: Rows,
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    return_noise: bool = False,
) -> tuple[Tensor, Tensor]:
    """`combine` in the arithmetic of the coefficients, not yet rounded to the terms' type."""
    coefs = pick(coefs, rows, shape[0])
    out = coefs.new_zeros(tuple(shape))
    for k, (term, start) in enumerate(zip(terms, starts, strict=True)):
        coef = per_sample(coefs[:, k], len(shape))
        out = out + torch.where(coef == 0, 0.0, coef * in_space(term, start, shape).to(coefs.dtype))
    eps = out.new_empty(0)
    if key is not None and (sigma is not None or return_noise):
        eps = noise(key, identities(sample_ids, shape, coefs.device), stream, shape).to(coefs.dtype)
        if sigma is not None:
            out = out + per_sample(pick(sigma, rows, shape[0]), len(shape)) * eps
    return out, eps if return_noise else out.new_empty(0)


def step(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    to_x0: Tensor,
    coefs: Tensor,
    sigma: Tensor | None,
    rows: Rows,
    low: float,
    high: float,
    x0_start: int,
    x0_channels: int,
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    return_x0: bool,
) -> tuple[Tensor, Tensor]:
    """The sampler's step, two linear combinations around a clamp:

    x0[b] = clamp(sum_k to_x0[b, k] term_k[b], low, high), in its channels (x0_channels of them from x0_start on; all
    where x0_start is -1), and out[b] = sum_k coefs[b, k] term_k[b] + coefs[b, K] x0[b] + sigma[b] eps[b].

    to_x0: [R, K], coefs: [R, K + 1], sigma: [R] or None; the rest as for `combine`. A coefficient of zero keeps its
    term out of its own sum alone. Nothing is rounded between the two. Returns out of `shape` and x0 of its channels
    (of size 0 if not wanted).
    """
    x0 = _combined(terms, starts, to_x0, None, rows, None, None, stream, shape)[0].clamp(low, high)
    if x0_start >= 0:
        x0 = x0.narrow(1, x0_start, x0_channels)
    every, at = [*terms, x0], [*starts, x0_start]
    out, _ = _combined(every, at, coefs, sigma, rows, key, sample_ids, stream, shape)
    return out.to(dtype), x0.to(dtype).contiguous() if return_x0 else out.new_empty(0, dtype=dtype)


def squared_error(
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    weight: Tensor,
    rows: Rows,
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    scale: float,
    return_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The weighted squared norm of a combination, and its gradient for term 0, together.

    r[b] = sum_k coefs[b, k] term_k[b] + sigma[b] eps[b]; loss[b] = scale weight[b] |r[b]|^2;
    grad[b] = d loss[b] / d term_0[b] = 2 scale weight[b] coefs[b, 0] r[b].

    weight: [R]; the rest as for `combine`. Term 0 has the whole `shape`. Returns loss [B] in the type of the
    coefficients (a sum taken in float64) and grad of `shape` and `dtype` (of size 0 if not wanted).
    """
    r, _ = _combined(terms, starts, coefs, sigma, rows, key, sample_ids, stream, shape)
    weight = scale * pick(weight, rows, shape[0])
    loss = weight * sum_samples(r.double().square()).to(r.dtype)
    if not return_grad:
        return loss, r.new_empty(0, dtype=dtype)
    first = 2 * weight * pick(coefs, rows, shape[0])[:, 0]
    return loss, (per_sample(first, len(shape)) * r).to(dtype)


def block_ranks(
    key: Key, sample_ids: Tensor | None, stream: int, batch: int, blocks: int, device: torch.device
) -> Tensor:
    """The rank of every block of every sample: int64 [batch, blocks], word_j * 2^31 + j with word_j the generator's.

    word_j is word j % 4 of Philox block j // 4 of the sample. All ranks of a sample differ.
    """
    ids = identities(sample_ids, (batch,), device)
    words = random_words(key, ids, stream, -(-blocks // 4)).flatten(1)[:, :blocks]
    return (words << 31) + torch.arange(blocks, device=device)


def block_mask(
    x: Tensor, threshold: Tensor, key: Key, sample_ids: Tensor | None, stream: int, block: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """x with some of its blocks hidden: 0 where the block's rank is below the sample's threshold.

    x: [B, C, H, W]; threshold: int64 [B]; block: (height, width), numbered row by row, those at the lower and right
    edge cut. Returns x * mask (0 where hidden, whatever x holds) and mask [B, 1, H, W] in x's type: 1 where visible.
    """
    B, _, H, W = x.shape
    down, across = -(-H // block[0]), -(-W // block[1])
    ranks = block_ranks(key, sample_ids, stream, B, down * across, x.device).reshape(B, 1, down, across)
    visible = ranks >= threshold.reshape(B, 1, 1, 1)
    visible = visible.repeat_interleave(block[0], 2)[:, :, :H].repeat_interleave(block[1], 3)[..., :W]
    return torch.where(visible, x, torch.zeros_like(x)).contiguous(), visible.to(x.dtype)


def combine_backward(
    grad: Tensor,
    terms: Sequence[Tensor],
    starts: Sequence[int],
    coefs: Tensor,
    sigma: Tensor | None,
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `combine` for the terms, coefs and sigma that `needs` (K + 2 flags) asks for, in order.

    coefs: [B, K] and sigma: [B], each sample's own row. d/d term_k = coefs[b, k] grad, summed over what the term was
    broadcast along; d/d coefs[b, k] = <grad[b], term_k[b]>; d/d sigma[b] = <grad[b], eps[b]> with eps made again from
    its identity.
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
    if needs_sigma and sigma is not None and key is not None:
        eps = noise(key, identities(sample_ids, g.shape, g.device), stream, g.shape).to(g.dtype)
        result.append(sum_samples(g * eps))
    return result
