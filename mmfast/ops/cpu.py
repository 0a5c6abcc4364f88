"""The C++ kernels for the CPU (csrc/), behind the signatures of reference.py.

The extension takes tensors. It reads most broadcasts and channel blocks where they lie; for a layout that it
cannot read it names the terms, which are then made contiguous here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from mmfast.errors import BackendError
from mmfast.ops import extensions
from mmfast.ops.reference import Key, Rows, pick

_cpu, _missing = extensions.load("_mmfast_cpu")

name = "cpu"
devices = ("cpu",)

_TITLES = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "baseline": "baseline"}


def unavailable() -> str | None:
    """One line on why this backend cannot run here, or None when it can."""
    return _missing or None


def describe() -> str:
    threads = torch.get_num_threads()
    parallel = f"OpenMP, {threads} thread{'s' * (threads != 1)}" if _cpu.has_openmp() else "no OpenMP, 1 thread"
    return f"{_TITLES[_cpu.isa()]}, {parallel}, {_cpu.__file__}"


def isas() -> list[str]:
    """The instruction sets that this build and this CPU can run, best first."""
    return list(_cpu.isas())


def set_isa(name: str | None) -> None:
    """Use this instruction set from now on; None for the best. All give the same bits."""
    _cpu.set_isa(name or "")


if _cpu is not None and os.environ.get("MMFAST_ISA"):
    try:
        set_isa(os.environ["MMFAST_ISA"])
    except ValueError as error:
        raise BackendError(f"MMFAST_ISA: {error}; it can be {', '.join(isas())}, or unset") from None


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _contiguous_terms(
    terms: Sequence[Tensor], starts: Sequence[int], misfits: list[int], shape: Sequence[int]
) -> list[Tensor]:
    """The terms with those contiguous that the extension says it cannot read as they are."""
    terms = list(terms)
    for k in misfits:
        channels = shape[1:2] if starts[k] < 0 else terms[k].shape[1:2]
        terms[k] = terms[k].expand(shape[0], *channels, *shape[2:]).contiguous()
    return terms


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
    """out[b] = sum_k coefs[b, k] term_k[b] + sigma[b] eps[b], and eps itself if wanted: see reference.py.

    float32 arithmetic (float64 for float64), one fused multiply-add a term in the order of the terms.
    """
    out = torch.empty(shape, dtype=dtype, device="cpu")
    noise = torch.empty(shape, dtype=dtype, device="cpu") if return_noise else None
    rest = (coefs, sigma, rows, key, sample_ids, stream, torch.get_num_threads())
    misfits = _cpu.combine(out, noise, terms, starts, *rest)
    if misfits:
        _cpu.combine(out, noise, _contiguous_terms(terms, starts, misfits, shape), starts, *rest)
    return out, torch.empty(0, dtype=dtype, device="cpu") if noise is None else noise


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
    """Two combinations around a clamp, in one pass: see reference.py."""
    out = torch.empty(shape, dtype=dtype, device="cpu")
    x0 = None
    if return_x0:
        x0 = torch.empty(shape if x0_start < 0 else (shape[0], x0_channels, *shape[2:]), dtype=dtype, device="cpu")
    rest = (
        to_x0,
        coefs,
        sigma,
        rows,
        low,
        high,
        x0_start,
        x0_channels,
        key,
        sample_ids,
        stream,
        torch.get_num_threads(),
    )
    misfits = _cpu.step(out, x0, terms, starts, *rest)
    if misfits:
        _cpu.step(out, x0, _contiguous_terms(terms, starts, misfits, shape), starts, *rest)
    return out, torch.empty(0, dtype=dtype, device="cpu") if x0 is None else x0


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
    """The weighted squared norm of a combination and its gradient, in one pass: see reference.py.

    Squares are summed in float64, in an order that does not depend on the threads.
    """
    like = torch.empty(shape, dtype=dtype, device="cpu") if return_grad else terms[0].expand(shape).contiguous()
    sums = torch.zeros(shape[0], dtype=torch.float64, device="cpu")
    grad = like if return_grad else None
    rest = (coefs, sigma, weight, rows, key, sample_ids, stream, scale, sums, torch.get_num_threads())
    misfits = _cpu.squared_error(like, grad, terms, starts, *rest)
    if misfits:
        _cpu.squared_error(like, grad, _contiguous_terms(terms, starts, misfits, shape), starts, *rest)
    weights = scale * pick(weight, rows, shape[0])
    return weights * sums.to(weights.dtype), like if return_grad else torch.empty(0, dtype=dtype, device="cpu")


def block_ranks(
    key: Key, sample_ids: Tensor | None, stream: int, batch: int, blocks: int, device: torch.device
) -> Tensor:
    """The rank of every block of every sample, int64 [batch, blocks]: see reference.py."""
    ranks = torch.empty(batch, blocks, dtype=torch.int64, device="cpu")
    _cpu.block_ranks(ranks, key, sample_ids, stream, torch.get_num_threads())
    return ranks


def block_mask(
    x: Tensor, threshold: Tensor, key: Key, sample_ids: Tensor | None, stream: int, block: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """x with its blocks of a rank below the sample's threshold hidden, and the mask: see reference.py."""
    x = x.contiguous()
    out, mask = torch.empty_like(x), x.new_empty(len(x), 1, *x.shape[2:])
    _cpu.block_mask(out, mask, x, threshold.contiguous(), key, sample_ids, stream, *block, torch.get_num_threads())
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

    Sums are taken in float64, in an order that does not depend on the threads. Where a coefficient is
    zero its term was not read and its gradient is zero; the coefficient's own gradient is the true one.
    """
    *needs_terms, needs_coefs, needs_sigma = needs
    needs_sigma = needs_sigma and sigma is not None and key is not None
    grad = grad.contiguous()
    # The terms of the whole shape get theirs in one pass over grad.
    full = [k for k, x in enumerate(terms) if needs_terms[k] and starts[k] < 0 and x.shape == grad.shape]
    found = dict(zip(full, _scaled(grad, coefs if len(full) == len(terms) else coefs[:, full]), strict=True))
    for k, (term, start) in enumerate(zip(terms, starts, strict=True)):
        if needs_terms[k] and k not in found:
            part = grad if start < 0 else grad.narrow(1, start, term.size(1)).contiguous()
            found[k] = _term_gradient(part, term.shape, coefs[:, k])
    result = [found[k] for k in sorted(found)]
    if needs_coefs or needs_sigma:
        used = (terms, starts) if needs_coefs else ([], [])
        dots = _dots(grad, *used, key if needs_sigma else None, sample_ids, stream).to(coefs.dtype)
        result += [dots[:, :-1].contiguous()] * needs_coefs + [dots[:, -1].contiguous()] * needs_sigma
    return result


def _dots(
    grad: Tensor,
    terms: Sequence[Tensor],
    starts: Sequence[int],
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
) -> Tensor:
    """<grad[b], term_k[b]> for every term and then <grad[b], eps[b]>: float64 [B, K + 1]."""
    sums = torch.zeros(grad.size(0), len(terms) + 1, dtype=torch.float64, device="cpu")
    rest = (key, sample_ids, stream, sums, torch.get_num_threads())
    misfits = _cpu.dots(grad, terms, starts, *rest)
    if misfits:
        _cpu.dots(grad, _contiguous_terms(terms, starts, misfits, grad.shape), starts, *rest)
    return sums


def _scaled(grad: Tensor, coefs: Tensor) -> list[Tensor]:
    """coefs[b, k] grad[b] for every k, zero where the coefficient is; grad contiguous, coefs [B, K]."""
    outs = [torch.empty_like(grad) for _ in range(coefs.shape[1])]
    if outs:
        _cpu.scale(grad, outs, [-1] * len(outs), coefs, torch.get_num_threads())
    return outs


def _term_gradient(grad: Tensor, shape: torch.Size, coef: Tensor) -> Tensor:
    """sum of coef[b] grad[b] over the dimensions that a term of `shape` is broadcast along."""
    dims = range(grad.dim())
    kept = [d for d in dims if shape[d] == grad.size(d)]
    summed = [d for d in dims if shape[d] != grad.size(d)]
    if not summed:
        return _scaled(grad, coef[:, None])[0]
    dtype = grad.dtype
    if 0 in summed:  # the coefficient must go in before the sum over samples; nothing is rounded to half
        grad = _scaled(grad.to(coef.dtype), coef[:, None])[0]
    rows = grad.permute(kept + summed).contiguous()
    sums = torch.zeros(shape, dtype=torch.float64, device="cpu")
    if sums.numel() > 0 and rows.numel() > 0:
        _cpu.row_sums(rows, sums, torch.get_num_threads())
    if 0 in kept:
        coef = coef.double().reshape(-1, *[1] * (len(shape) - 1))
        sums = torch.where(coef == 0, 0.0, coef * sums)
    return sums.to(dtype)
