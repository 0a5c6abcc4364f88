"""The Triton kernels for GPUs (kernels.py), with the signatures of reference.py.

Tested on one H100 with Triton 3.6 at 2296999 (tests/ops/backends/test_gpu.py); later changes have not run on a GPU.

The kernels were compiled ahead of time for sm_80, sm_90, sm_100 and sm_120 with Triton 3.8 (for sm_90 also with 3.6),
and run on the CPU in the interpreter of 3.8. If TRITON_INTERPRET=1 is set before this module is imported, it serves the
CPU, slowly.

They use float32 arithmetic (float64 for float64), with one fused multiply-add per term in the order of the terms, then
x0, then the noise. Sums are in float64 and in a fixed order. Nothing waits for the GPU: the kernels read a key that is
a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmfast.ops import reference
from mmfast.ops.backends.triton import launch as run
from mmfast.ops.call import Bounds, Call, Noise, Rows, Tables

name = "triton"
devices = ("cpu", "cuda") if run.interpreted else ("cuda",)

max_terms = 16
DOTS_AT_ONCE = 4  # terms in one pass over a gradient; each needs registers for its lanes


def unavailable() -> str | None:
    """One line on why this backend cannot run here, or None if it can."""
    if run.kernels is None:
        return f"Triton is not installed ({run.missing}); `pip install triton` does it on Linux"
    if not run.interpreted and not torch.cuda.is_available():
        return "there is no GPU, and TRITON_INTERPRET=1 is not set"
    return None


def describe() -> str:
    where = "interpreted on the CPU, slowly" if run.interpreted else torch.cuda.get_device_name()
    return f"Triton {run.kernels.triton.__version__}, {where}"


def _tables(call: Call) -> tuple[Call, Tables, Noise | None]:
    """The call without int rows, its contiguous tables, and its noise if that enters the sum."""
    call = call.one_row()
    tables = call.tables.map(Tensor.contiguous)
    if call.noise is None or tables.sigma is None:
        return call, tables._replace(sigma=None), None
    return call, tables, call.noise


def _outputs(call: Call) -> tuple[torch.device, Sequence[int], torch.dtype]:
    return call.tables.coefs.device, call.shape, call.dtype


def combine(call: Call, return_noise: bool) -> tuple[Tensor, Tensor | None]:
    call, (coefs, sigma, *_), _ = _tables(call)
    device, shape, dtype = _outputs(call)
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    noise = torch.empty_like(out) if return_noise and call.noise is not None else None
    if out.numel() > 0:
        tensors, layout, constants = run.place(call, run.BLOCK)
        levels, count = run.levels_of(call)
        elements = layout.rows * layout.inner
        tiles = -(-elements // run.BLOCK)
        run.launch(
            run.kernels.combine, shape[0] * tiles, run.WARPS,
            out, noise, tensors, layout.places, coefs, sigma, levels, *run.table_of(call.rows, coefs, sigma),
            *run.identity(call.noise), elements, layout.inner, tiles,
            **constants, NOISY=sigma is not None or noise is not None, LEVELS=count, BLOCK=run.BLOCK,
        )  # fmt: skip
    return out, noise


def step(call: Call, bounds: Bounds, return_x0: bool) -> tuple[Tensor, Tensor | None]:
    call, (coefs, sigma, to_x0, _), noise = _tables(call)
    device, shape, dtype = _outputs(call)
    x0_shape = list(shape) if bounds.start < 0 else [shape[0], bounds.channels, *shape[2:]]
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    x0 = torch.empty(x0_shape, dtype=dtype, device=device) if return_x0 else None
    if out.numel() > 0:
        tensors, layout, constants = run.place(call, run.BLOCK)
        levels, count = run.levels_of(call)
        elements = layout.rows * layout.inner
        tiles = -(-elements // run.BLOCK)
        begin = max(bounds.start, 0) * math.prod(shape[2:])
        run.launch(
            run.kernels.step, shape[0] * tiles, run.WARPS,
            out, x0, tensors, layout.places, to_x0, coefs, sigma, levels,
            *run.table_of(call.rows, to_x0, coefs, sigma),
            float(bounds.low), float(bounds.high), begin, begin + math.prod(x0_shape[1:]),
            *run.identity(noise), elements, layout.inner, tiles, **constants, LEVELS=count,
            BLOCK=run.BLOCK,
        )  # fmt: skip
    return out, x0


def squared_error(call: Call, scale: float, return_grad: bool) -> tuple[Tensor, Tensor | None]:
    call, (coefs, sigma, _, weight), noise = _tables(call)
    assert weight is not None  # a squared error's tables have one
    device, shape, dtype = _outputs(call)
    grad = torch.empty(tuple(shape), dtype=dtype, device=device) if return_grad else None
    if math.prod(shape) == 0:
        return coefs.new_zeros(shape[0]), grad
    lanes = run.lanes_of(dtype)
    tensors, layout, constants = run.place(call, lanes)
    levels, count = run.levels_of(call)
    elements, table = layout.rows * layout.inner, run.table_of(call.rows, coefs, sigma, weight)
    items = -(-elements // run.ITEM)
    partial = torch.empty(shape[0], items, dtype=torch.float64, device=device)
    run.launch(
        run.kernels.squared_error, shape[0] * items, run.SUM_WARPS,
        partial, grad, tensors, layout.places, coefs, sigma, levels, weight, *table,
        float(scale), *run.identity(noise), elements, layout.inner, items, **constants, LEVELS=count,
        LANES=lanes,
    )  # fmt: skip
    return _sums(partial, coefs.dtype, (weight, *table), float(scale)), grad


def _sums(
    x: Tensor,
    dtype: torch.dtype = torch.float64,
    weights: tuple[Tensor | None, Tensor | None, int] = (None, None, 0),
    scale: float = 1.0,
) -> Tensor:
    """The sums of x [n, inner] over inner, times scale * weight[row] in the weight's type if there is a weight: [n].

    weights: the weight, the rows and the table_step (run.table_of).
    """
    count, inner = x.shape
    items = max(1, -(-inner // run.ITEM))
    last = items == 1
    sums = torch.empty(count, items, dtype=dtype if last else torch.float64, device=x.device)
    # The lanes, and so the order of the sum, depend only on the length of the rows.
    most = run.lanes_of(x.dtype)
    lanes = min(most, 1 << max(inner - 1, 1).bit_length())
    height = most // lanes
    if count > 0:
        table = weights if last else (None, None, 0)
        run.launch(
            run.kernels.row_sums, -(-count // height) * items, run.SUM_WARPS,
            sums, x, *table, scale, count, inner, items, OFFSET=run.offset(x.shape), HEIGHT=height, LANES=lanes,
        )  # fmt: skip
    return sums[:, 0] if last else _sums(sums, dtype, weights, scale)


def random_words(noise: Noise, batch: int, count: int, device: torch.device) -> Tensor:
    words = torch.empty(batch, count, dtype=torch.int64, device=device)
    if words.numel() > 0:
        tiles = -(-count // run.BLOCK)
        identity = run.identity(noise)
        run.launch(run.kernels.random_words, batch * tiles, run.WARPS, words, *identity, count, tiles, BLOCK=run.BLOCK)
    return words


def block_mask(
    x: Tensor, hidden: int | Tensor, noise: Noise, block: Sequence[int], exact: bool
) -> tuple[Tensor, Tensor]:
    threshold = reference.threshold_of(x, hidden, block, exact, lambda *size: random_words(noise, *size))
    x, (B, C, H, W) = x.contiguous(), x.shape
    out = torch.empty(B, C, H, W, dtype=x.dtype, device=x.device)
    mask = torch.empty(B, 1, H, W, dtype=x.dtype, device=x.device)
    if mask.numel() > 0:
        tiles, channels = -(-(H * W) // run.BLOCK), 4
        groups = max(1, -(-C // channels))
        run.launch(
            run.kernels.block_mask, B * tiles * groups, run.WARPS,
            out, mask, x, threshold, *run.identity(noise), C, H * W, W, *block,
            tiles, groups, CHANNELS=channels, BLOCK=run.BLOCK,
        )  # fmt: skip
    return out, mask


def scale(x: Tensor, coefs: Tensor, rows: Rows, columns: Sequence[int]) -> list[Tensor]:
    calls = [Call([x], Tables(coefs[:, k : k + 1]), rows, None, x.shape, x.dtype) for k in columns]
    return [combine(call, False)[0] for call in calls]


def dots(call: Call, grad: Tensor) -> Tensor:
    parts = [
        _dots(call._replace(terms=call.terms[k : k + DOTS_AT_ONCE], noise=None), grad)
        for k in range(0, len(call.terms), DOTS_AT_ONCE)
    ]
    if call.noise is None:
        parts.append(torch.zeros(len(grad), 1, dtype=torch.float64, device=grad.device))
    else:
        parts.append(_dots(call._replace(terms=[]), grad))
    return torch.cat(parts, 1)


def _dots(call: Call, grad: Tensor) -> Tensor:
    """<grad[b], term_k[b]> for every term, or <grad[b], eps[b]> if there is noise: float64 [B, K or 1]."""
    columns = len(call.terms) + (call.noise is not None)
    if grad.numel() == 0:
        return torch.zeros(len(grad), columns, dtype=torch.float64, device=grad.device)
    lanes = run.lanes_of(grad.dtype)
    tensors, layout, constants = run.place(call._replace(shape=grad.shape), lanes)
    elements = layout.rows * layout.inner
    items = -(-elements // run.ITEM)
    partial = torch.empty(len(grad) * columns, items, dtype=torch.float64, device=grad.device)
    run.launch(
        run.kernels.dots, len(grad) * items, run.SUM_WARPS,
        partial, grad, tensors, layout.places, *run.identity(call.noise), elements, layout.inner, items,
        **constants, NOISY=call.noise is not None, LANES=lanes,
    )  # fmt: skip
    return _sums(partial).reshape(len(grad), columns)


def row_sums(x: Tensor) -> Tensor:
    return _sums(x)
