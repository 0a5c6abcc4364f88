"""The Triton kernels for GPUs (triton_kernels.py), behind the signatures of reference.py.

Run on one H100, by Triton 3.6 (tests/test_gpu.py).

The kernels were compiled ahead of time for sm_80, sm_90, sm_100 and sm_120 by Triton 3.8 (for sm_90 by 3.6 too), and
run by the interpreter of 3.8 on the CPU. With TRITON_INTERPRET=1, set before this is imported, it serves the CPU,
slowly.

float32 arithmetic (float64 for float64), one fused multiply-add a term in the order of the terms, then x0, then the
noise. Sums are in float64 and in a fixed order. Nothing waits for the GPU: a key that is a tensor is read there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmfast.ops import reference
from mmfast.ops import triton_launch as run
from mmfast.ops.reference import Key, Rows, one_row

name = "triton"
devices = ("cpu", "cuda") if run.interpreted else ("cuda",)

MAX_TERMS = 16  # more go through reference.py
DOTS_AT_ONCE = 4  # terms of one pass over a gradient: each needs registers for its lanes


def unavailable() -> str | None:
    """One line on why this backend cannot run here, or None when it can."""
    if run.kernels is None:
        return f"Triton is not installed ({run.missing}); `pip install triton` does it on Linux"
    if not run.interpreted and not torch.cuda.is_available():
        return "there is no GPU, and TRITON_INTERPRET=1 is not set"
    return None


def describe() -> str:
    where = "interpreted on the CPU, slowly" if run.interpreted else torch.cuda.get_device_name()
    return f"Triton {run.kernels.triton.__version__}, {where}"


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
    """out[b] = sum_k coefs[b, k] term_k[b] + sigma[b] eps[b], and eps itself if wanted: see reference.py."""
    index, coefs, sigma = one_row(rows, coefs, sigma)
    if len(terms) > MAX_TERMS:
        return reference.combine(
            terms, starts, coefs, sigma, index, key, sample_ids, stream, shape, dtype, return_noise
        )  # fmt: skip
    return_noise = return_noise and key is not None
    sigma = None if key is None or sigma is None else sigma.contiguous()
    out = torch.empty(tuple(shape), dtype=dtype, device=coefs.device)
    noise = torch.empty(tuple(shape) if return_noise else 0, dtype=dtype, device=coefs.device)
    if out.numel() > 0:
        tensors, layout, constants = run.place(terms, starts, shape, run.BLOCK)
        elements = layout.rows * layout.inner
        tiles = -(-elements // run.BLOCK)
        run.launch(
            run.kernels.combine, shape[0] * tiles, run.WARPS,
            out, noise if return_noise else None, tensors, layout.places, coefs.contiguous(), sigma,
            *run.table_of(index, coefs, sigma), *run.identity(key, sample_ids, stream), elements, layout.inner, tiles,
            **constants, NOISY=sigma is not None or return_noise, BLOCK=run.BLOCK,
        )  # fmt: skip
    return out, noise


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
    """The sampler's step, two linear combinations around a clamp: see reference.py."""
    index, to_x0, coefs, sigma = one_row(rows, to_x0, coefs, sigma)
    if len(terms) > MAX_TERMS:
        return reference.step(
            terms, starts, to_x0, coefs, sigma, index, low, high, x0_start, x0_channels,
            key, sample_ids, stream, shape, dtype, return_x0,
        )  # fmt: skip
    x0_shape = list(shape) if x0_start < 0 else [shape[0], x0_channels, *shape[2:]]
    sigma = None if key is None or sigma is None else sigma.contiguous()
    out = torch.empty(tuple(shape), dtype=dtype, device=coefs.device)
    x0 = torch.empty(x0_shape if return_x0 else 0, dtype=dtype, device=coefs.device)
    if out.numel() > 0:
        tensors, layout, constants = run.place(terms, starts, shape, run.BLOCK)
        elements = layout.rows * layout.inner
        tiles = -(-elements // run.BLOCK)
        begin = max(x0_start, 0) * math.prod(shape[2:])
        run.launch(
            run.kernels.step, shape[0] * tiles, run.WARPS,
            out, x0 if return_x0 else None, tensors, layout.places, to_x0.contiguous(), coefs.contiguous(), sigma,
            *run.table_of(index, to_x0, coefs, sigma), float(low), float(high), begin, begin + math.prod(x0_shape[1:]),
            *run.identity(key, sample_ids, stream), elements, layout.inner, tiles, **constants, BLOCK=run.BLOCK,
        )  # fmt: skip
    return out, x0


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
    """loss[b] = scale weight[b] |r[b]|^2 of the combination r, and its gradient for term 0: see reference.py."""
    index, coefs, sigma, weight = one_row(rows, coefs, sigma, weight)
    if len(terms) > MAX_TERMS:
        return reference.squared_error(
            terms, starts, coefs, sigma, weight, index, key, sample_ids, stream, shape, dtype, scale, return_grad
        )
    sigma = None if key is None or sigma is None else sigma.contiguous()
    grad = torch.empty(tuple(shape) if return_grad else 0, dtype=dtype, device=coefs.device)
    if math.prod(shape) == 0:
        return coefs.new_zeros(shape[0]), grad
    lanes = run.lanes_of(dtype)
    tensors, layout, constants = run.place(terms, starts, shape, lanes)
    elements, table, weight = layout.rows * layout.inner, run.table_of(index, coefs, sigma, weight), weight.contiguous()
    items = -(-elements // run.ITEM)
    partial = torch.empty(shape[0], items, dtype=torch.float64, device=coefs.device)
    run.launch(
        run.kernels.squared_error, shape[0] * items, run.SUM_WARPS,
        partial, grad if return_grad else None, tensors, layout.places, coefs.contiguous(), sigma, weight, *table,
        float(scale), *run.identity(key, sample_ids, stream), elements, layout.inner, items, **constants, LANES=lanes,
    )  # fmt: skip
    return _row_sums(partial, coefs.dtype, weight, *table, float(scale)), grad


def _row_sums(
    x: Tensor,
    dtype: torch.dtype = torch.float64,
    weight: Tensor | None = None,
    rows: Tensor | None = None,
    table_step: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """The sums of x [n, inner] over inner, times scale * weight[row] in the weight's type if there is one: [n]."""
    count, inner = x.shape
    items = max(1, -(-inner // run.ITEM))
    last = items == 1
    sums = torch.empty(count, items, dtype=dtype if last else torch.float64, device=x.device)
    # Lanes follow the length of the rows alone: so does the order of the sum.
    most = run.lanes_of(x.dtype)
    lanes = min(most, 1 << max(inner - 1, 1).bit_length())
    height = most // lanes
    if count > 0:
        table = (weight, rows, table_step) if last else (None, None, 0)
        run.launch(
            run.kernels.row_sums, -(-count // height) * items, run.SUM_WARPS,
            sums, x, *table, scale, count, inner, items, OFFSET=run.offset(x.shape), HEIGHT=height, LANES=lanes,
        )  # fmt: skip
    return sums[:, 0] if last else _row_sums(sums, dtype, weight, rows, table_step, scale)


def block_ranks(
    key: Key, sample_ids: Tensor | None, stream: int, batch: int, blocks: int, device: torch.device
) -> Tensor:
    """The rank of every block of every sample, word_j * 2^31 + j: int64 [batch, blocks]."""
    ranks = torch.empty(batch, blocks, dtype=torch.int64, device=device)
    if ranks.numel() > 0:
        tiles = -(-blocks // run.BLOCK)
        identity = run.identity(key, sample_ids, stream)
        run.launch(run.kernels.block_ranks, batch * tiles, run.WARPS, ranks, *identity, blocks, tiles, BLOCK=run.BLOCK)
    return ranks


def block_mask(
    x: Tensor, threshold: Tensor, key: Key, sample_ids: Tensor | None, stream: int, block: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """x [B, C, H, W] with some of its blocks hidden, and the mask [B, 1, H, W]: see reference.py."""
    x, (B, C, H, W) = x.contiguous(), x.shape
    out = torch.empty(B, C, H, W, dtype=x.dtype, device=x.device)
    mask = torch.empty(B, 1, H, W, dtype=x.dtype, device=x.device)
    if mask.numel() > 0:
        tiles, channels = -(-(H * W) // run.BLOCK), 4
        groups = max(1, -(-C // channels))
        run.launch(
            run.kernels.block_mask, B * tiles * groups, run.WARPS,
            out, mask, x, threshold.contiguous(), *run.identity(key, sample_ids, stream), C, H * W, W, *block,
            tiles, groups, CHANNELS=channels, BLOCK=run.BLOCK,
        )  # fmt: skip
    return out, mask


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

    Where a coefficient is zero its term was not read and its gradient is zero; the coefficient's own is the true one.
    """
    *needs_terms, needs_coefs, needs_sigma = needs
    needs_sigma = needs_sigma and sigma is not None and key is not None
    grad = grad.contiguous()
    result = [
        _term_gradient(grad if start < 0 else grad.narrow(1, start, term.size(1)), term.shape, coefs[:, k])
        for k, (term, start, needed) in enumerate(zip(terms, starts, needs_terms, strict=True))
        if needed
    ]
    if needs_coefs:
        parts = [
            _dots(grad, terms[k : k + DOTS_AT_ONCE], starts[k : k + DOTS_AT_ONCE], None, None, 0)
            for k in range(0, len(terms), DOTS_AT_ONCE)
        ]
        result.append(torch.cat(parts, 1).to(coefs.dtype) if parts else torch.zeros_like(coefs))
    if needs_sigma:
        result.append(_dots(grad, [], [], key, sample_ids, stream)[:, 0].to(coefs.dtype))
    return result


def _dots(
    grad: Tensor,
    terms: Sequence[Tensor],
    starts: Sequence[int],
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
) -> Tensor:
    """<grad[b], term_k[b]> for every term, and then <grad[b], eps[b]> if there is a key: float64 [B, K or K + 1]."""
    shape, columns = list(grad.shape), len(terms) + (key is not None)
    if grad.numel() == 0:
        return torch.zeros(shape[0], columns, dtype=torch.float64, device=grad.device)
    lanes = run.lanes_of(grad.dtype)
    tensors, layout, constants = run.place(terms, starts, shape, lanes)
    elements = layout.rows * layout.inner
    items = -(-elements // run.ITEM)
    partial = torch.empty(shape[0] * columns, items, dtype=torch.float64, device=grad.device)
    run.launch(
        run.kernels.dots, shape[0] * items, run.SUM_WARPS,
        partial, grad, tensors, layout.places, *run.identity(key, sample_ids, stream), elements, layout.inner, items,
        **constants, NOISY=key is not None, LANES=lanes,
    )  # fmt: skip
    return _row_sums(partial).reshape(shape[0], columns)


def _term_gradient(grad: Tensor, shape: torch.Size, coef: Tensor) -> Tensor:
    """sum of coef[b] grad[b] over the dimensions that a term of `shape` is broadcast along."""
    dims = range(grad.dim())
    kept = [d for d in dims if shape[d] == grad.size(d)]
    summed = [d for d in dims if shape[d] != grad.size(d)]
    if not summed:
        return _scale(grad, coef)
    dtype = grad.dtype
    if 0 in summed:  # the coefficient must go in before the sum over samples; nothing is rounded to half
        grad = _scale(grad.to(coef.dtype), coef)
    count = math.prod(shape)
    rows = grad.permute(kept + summed).contiguous()
    sums = _row_sums(rows.reshape(count, rows.numel() // max(count, 1))).reshape(shape)
    if 0 in kept:
        coef = coef.double().reshape(-1, *[1] * (len(shape) - 1))
        sums = torch.where(coef == 0, 0.0, coef * sums)
    return sums.to(dtype)


def _scale(x: Tensor, coef: Tensor) -> Tensor:
    """coef[b] x[b], zero where the coefficient is."""
    return combine([x], [-1], coef[:, None], None, None, None, None, 0, list(x.shape), x.dtype, False)[0]
