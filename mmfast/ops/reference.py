"""The definition of every op in plain torch: slow, readable, and correct on any device.

The fast backends are tested against this file, and it is the fallback where none of them can run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmfast.ops.call import Block, Bounds, Call, Noise, Rows, Term, pick

name = "reference"
devices = ("cpu", "cuda")
max_terms = math.inf

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


def random_words(noise: Noise, batch: int, count: int, device: torch.device) -> Tensor:
    """The first `count` 32-bit words of each sample: int64 [batch, count].

    The Philox key is the 64-bit seed. The counter is (block of four words, draw, id bits 0-31, id bits 32-47 with the
    stream in the top 16 bits).
    """
    seed, draw = torch.as_tensor(noise.key, device=device).unbind(-1)
    ids = torch.arange(batch, device=device) if noise.sample_ids is None else noise.sample_ids
    ids = ids[:, None]
    block = torch.arange(-(-count // 4), device=device)[None, :]
    high = ((ids >> 32) & 0xFFFF) | (noise.stream << 16)
    counter = torch.stack(torch.broadcast_tensors(block, draw, ids & MASK32, high), -1)
    key = torch.stack((seed & MASK32, (seed >> 32) & MASK32), -1)
    return philox4x32(counter, key).flatten(1)[:, :count].contiguous()


def box_muller(words: Tensor) -> Tensor:
    """Turn 32-bit words into standard normals, in pairs: int64 [..., 2n] -> float32 [..., 2n].

    u = (x_0 + 1/2) / 2^32, rounded as in float32 arithmetic and never 0; theta = 2 pi x_1 / 2^32; the pair is
    (sqrt(-2 ln u) cos theta, sqrt(-2 ln u) sin theta). The smallest u gives 6.76 sigma.
    """
    x = words.unflatten(-1, (-1, 2))
    u = (x[..., 0].float().double() * 2.0**-32 + 2.0**-33).float().double()
    radius = torch.sqrt(-2.0 * torch.log(u))
    theta = x[..., 1].double() * (2.0 * math.pi / 2.0**32)
    return torch.stack((radius * torch.cos(theta), radius * torch.sin(theta)), -1).float().flatten(-2)


def normals(noise: Noise, shape: Sequence[int], device: torch.device) -> Tensor:
    """eps of every sample, float32 of `shape` = [B, ...], a pure function of each sample's identity."""
    elements = math.prod(shape[1:])
    words = random_words(noise, shape[0], -(-elements // 4) * 4, device)
    return box_muller(words)[:, :elements].reshape(tuple(shape))


def per_sample(values: Tensor, ndim: int) -> Tensor:
    """[B] -> [B, 1, ..., 1] with `ndim` dimensions."""
    return values.reshape(-1, *[1] * (ndim - 1))


def sum_samples(x: Tensor) -> Tensor:
    """[B, ...] -> [B], for samples of any shape, including scalars."""
    return x.reshape(len(x), math.prod(x.shape[1:])).sum(1)


def in_space(term: Term, shape: Sequence[int]) -> Tensor:
    """Expand a term to `shape`: broadcast it, or fill the channels outside a Block with zeros."""
    if not isinstance(term, Block):
        return term.expand(tuple(shape))
    covered = term.tensor.expand(shape[0], -1, *shape[2:])
    if 0 in shape[2:]:  # empty; torch 2.4 does not pad empty tensors
        return covered[:, :1].expand(tuple(shape))
    after = shape[1] - term.start - covered.size(1)
    return torch.nn.functional.pad(covered, [0, 0] * (len(shape) - 2) + [term.start, after])


def _sum(terms: Sequence[Term], coefs: Tensor, call: Call) -> Tensor:
    """sum_k coefs[b, k] term_k[b], in the type of the coefficients; a term with a zero coefficient does not count."""
    shape = _shape(call)
    coefs = pick(coefs, call.rows, shape[0])
    out = coefs.new_zeros(tuple(shape))
    for k, term in enumerate(terms):
        coef = per_sample(coefs[:, k], len(shape))
        out = out + torch.where(coef == 0, 0.0, coef * in_space(term, shape).to(coefs.dtype))
    return out


def per_channel(values: Tensor, levels: Sequence[int], shape: Sequence[int]) -> Tensor:
    """[B, L], with a column per level -> [B, C, 1, ..., 1], or [B] for a one-dimensional shape."""
    if len(shape) == 1:
        return values[:, 0]
    ends = [*levels[1:], shape[1]]
    runs = [x.expand(-1, end - first) for x, first, end in zip(values.split(1, 1), levels, ends, strict=True)]
    return torch.cat(runs, 1).reshape(len(values), shape[1], *[1] * (len(shape) - 2))


def _with_noise(out: Tensor, call: Call) -> Tensor:
    """out + sigma[b] eps[b], with sigma[b, l] in the channels of level l; out itself without a sigma or an identity."""
    sigma = call.tables.sigma
    if sigma is None or call.noise is None:
        return out
    eps = normals(call.noise, out.shape, out.device).to(out.dtype)
    own, levels = pick(sigma, call.rows, len(out)), call.noise.levels
    return out + (per_channel(own, levels, out.shape) if levels else per_sample(own, out.dim())) * eps


def _shape(call: Call) -> Sequence[int]:
    return call.shape


def combine(call: Call, return_noise: bool) -> tuple[Tensor, Tensor | None]:
    """The primitive: out[b] = sum_k coefs[b, k] term_k[b] + sigma[b] eps[b], and eps itself if requested.

    coefs: [R, K] and sigma: [R] (None for no noise) are tables. Sample b uses row rows[b], or row `rows` if it is an
    int. If rows is None, R is B, or 1 for a row that all samples share. A term with a coefficient of zero counts as
    missing for that sample, whatever it holds. If the noise has levels, sigma is [R, L], and sigma[b, l] scales the
    noise of the channels from levels[l] up to the next level. Returns out and eps, of the call's shape and type.
    """
    out = _with_noise(_sum(call.terms, call.tables.coefs, call), call)
    eps = None
    if return_noise and call.noise is not None:
        eps = normals(call.noise, out.shape, out.device).to(call.dtype)
    return out.to(call.dtype), eps


def step(call: Call, bounds: Bounds, return_x0: bool) -> tuple[Tensor, Tensor | None]:
    """The sampler's step, two linear combinations around a clamp.

    x0[b] = clamp(sum_k to_x0[b, k] term_k[b], low, high), in its channels, and
    out[b] = sum_k coefs[b, k] term_k[b] + coefs[b, K] x0[b] + sigma[b] eps[b].

    to_x0: [R, K], coefs: [R, K + 1], sigma: [R] or None; the rest is as for `combine`. A coefficient of zero excludes
    its term from that sum only. x0 is not rounded before it enters the second sum. Returns out, of the call's shape,
    and x0, of its channels, if requested.
    """
    to_x0 = call.tables.to_x0
    assert to_x0 is not None  # a step's tables have one
    x0 = _sum(call.terms, to_x0, call).clamp(bounds.low, bounds.high)
    last: Term = x0
    if bounds.start >= 0:
        x0 = x0.narrow(1, bounds.start, bounds.channels)
        last = Block(x0, bounds.start, _shape(call)[1])
    out = _with_noise(_sum([*call.terms, last], call.tables.coefs, call), call)
    return out.to(call.dtype), x0.to(call.dtype).contiguous() if return_x0 else None


def squared_error(call: Call, scale: float, return_grad: bool) -> tuple[Tensor, Tensor | None]:
    """The weighted squared norm of a combination, and its gradient for term 0.

    r[b] = sum_k coefs[b, k] term_k[b] + sigma[b] eps[b]; loss[b] = scale weight[b] |r[b]|^2;
    grad[b] = d loss[b] / d term_0[b] = 2 scale weight[b] coefs[b, 0] r[b].

    weight: [R]; the rest is as for `combine`. Term 0 has the full shape. Returns loss [B] in the type of the
    coefficients (summed in float64) and grad, of the call's shape and type, if requested.
    """
    weight = call.tables.weight
    assert weight is not None  # a squared error's tables have one
    r = _with_noise(_sum(call.terms, call.tables.coefs, call), call)
    weight = scale * pick(weight, call.rows, len(r))
    loss = weight * sum_samples(r.double().square()).to(r.dtype)
    if not return_grad:
        return loss, None
    first = 2 * weight * pick(call.tables.coefs, call.rows, len(r))[:, 0]
    return loss, (per_sample(first, r.dim()) * r).to(call.dtype)


ALL = (1 << 63) - 1  # above every rank: hides every block


def thresholds(words: Tensor, hidden: int | Tensor) -> Tensor:
    """The rank of the first visible block when the `hidden` lowest ranks are hidden: int64 [B].

    words: int64 [B, blocks]; hidden: int64 [B], or an int for all. A block's rank is word * 2^31 + its number, so no
    two ranks in a sample are equal.
    """
    B, blocks = words.shape
    ranks = (words << 31) + torch.arange(blocks, device=words.device)
    every = torch.cat((ranks.sort(1).values, ranks.new_full((B, 1), ALL)), 1)
    return every[:, hidden] if isinstance(hidden, int) else every.gather(1, hidden.expand(B)[:, None])[:, 0]


def threshold_of(
    x: Tensor, hidden: int | Tensor, block: Sequence[int], exact: bool, words: Callable[..., Tensor]
) -> Tensor:
    """The rank below which a sample's blocks are hidden: int64 [B]. words(B, count, device) returns random_words."""
    B, _, H, W = x.shape
    if exact:
        return thresholds(words(B, -(-H // block[0]) * -(-W // block[1]), x.device), hidden).contiguous()
    if isinstance(hidden, Tensor):
        return hidden.contiguous()
    return torch.full((B,), hidden, dtype=torch.int64, device=x.device)


def block_mask(
    x: Tensor, hidden: int | Tensor, noise: Noise, block: Sequence[int], exact: bool
) -> tuple[Tensor, Tensor]:
    """Hide some blocks of x. Returns x * mask and the mask.

    x: [B, C, H, W]; block: (height, width). Blocks are numbered row by row and cut off at the lower and right edges. A
    block's rank is random_words[b, block] * 2^31 + block. If exact, the `hidden` (int64 [B], or an int for all) blocks
    of lowest rank are hidden; otherwise those with a rank below `hidden`. Returns x * mask (0 where hidden, whatever x
    holds) and mask [B, 1, H, W] in x's type, 1 where visible.
    """
    B, _, H, W = x.shape
    down, across = -(-H // block[0]), -(-W // block[1])
    threshold = threshold_of(x, hidden, block, exact, lambda *size: random_words(noise, *size))
    words = random_words(noise, B, down * across, x.device)
    ranks = ((words << 31) + torch.arange(down * across, device=x.device)).reshape(B, 1, down, across)
    visible = ranks >= threshold.reshape(B, 1, 1, 1)
    visible = visible.repeat_interleave(block[0], 2)[:, :, :H].repeat_interleave(block[1], 3)[..., :W]
    return torch.where(visible, x, torch.zeros_like(x)).contiguous(), visible.to(x.dtype)


# The building blocks of the backward passes (autograd.py). Here they can all be differentiated again.


def scale(x: Tensor, coefs: Tensor, rows: Rows, columns: Sequence[int]) -> list[Tensor]:
    """coefs[b, k] x[b] for each k in `columns`, each [B, ...] in the type of x.

    The other backends return zero where the coefficient is zero, whatever x holds.
    """
    own = pick(coefs, rows, len(x))
    return [(per_sample(own[:, k], x.dim()) * x.to(own.dtype)).to(x.dtype) for k in columns]


def dots(call: Call, grad: Tensor) -> Tensor:
    """<grad[b], term_k[b]> for every term, then <grad[b], eps[b]> (0 without noise): float64 [B, K + 1]."""
    wide = grad.double()
    parts = [sum_samples(wide * in_space(x, grad.shape).double()) for x in call.terms]
    if call.noise is None:
        parts.append(wide.new_zeros(len(grad)))
    else:
        parts.append(sum_samples(wide * normals(call.noise, grad.shape, grad.device)))
    return torch.stack(parts, 1)


def row_sums(x: Tensor) -> Tensor:
    """The sums of x [n, inner] over inner: float64 [n]."""
    return x.double().sum(1)
