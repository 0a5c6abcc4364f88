"""The C++ kernels for the CPU (csrc/), behind the signatures of reference.py.

The extension takes addresses, sizes and strides. It reads most broadcasts and channel blocks where they
lie; for a layout that it cannot read it names the terms, which are then made contiguous here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.errors import BackendError

_cpu: Any = None
_missing = ""
try:
    _cpu = importlib.import_module("mmfast._cpu")
except ImportError as error:
    _missing = str(error)

name = "cpu"
devices = ("cpu",)

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # plan.h
_TITLES = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "baseline": "baseline"}


def unavailable() -> str | None:
    """One line on why this backend cannot run here, or None when it can."""
    return f"the C++ extension is not built ({_missing}); `pip install .` builds it" if _cpu is None else None


def describe() -> str:
    threads = torch.get_num_threads()
    parallel = f"OpenMP, {threads} thread{'s' * (threads != 1)}" if _cpu.has_openmp() else "no OpenMP, 1 thread"
    return f"{_TITLES[_cpu.isa()]}, {parallel}"


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


def _on_terms(
    function: Callable[..., list[int]],
    type: int,
    shape: Sequence[int],
    terms: Sequence[Tensor],
    starts: Sequence[int],
    *rest: int,
) -> None:
    """Call the extension, making contiguous the terms that it says it cannot read as they are."""
    terms = list(terms)
    for _ in range(2):
        addresses, strides = [t.data_ptr() for t in terms], [t.stride() for t in terms]
        misfits = function(type, shape, addresses, [t.shape for t in terms], strides, starts, *rest)
        if not misfits:
            return
        for k in misfits:
            channels = shape[1:2] if starts[k] < 0 else terms[k].shape[1:2]
            terms[k] = terms[k].expand(shape[0], *channels, *shape[2:]).contiguous()
    raise AssertionError("contiguous terms always have a layout")


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


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
    """out[b] = sum_k coefs[b, k] term_k[b] + sigma[b] eps[b], and eps itself if wanted: see reference.py.

    float32 arithmetic (float64 for float64), one fused multiply-add a term in the order of the terms.
    """
    out = torch.empty(shape, dtype=dtype)
    noise = torch.empty(shape if return_noise else 0, dtype=dtype)
    if out.numel() == 0:
        return out, noise
    if sigma is None and not return_noise:
        key = sample_ids = None
    # Named, so that the memory behind the addresses lives through the call.
    coefs, sigma, key, sample_ids = (
        coefs.contiguous(),
        _contiguous(sigma),
        _contiguous(key),
        _contiguous(sample_ids),
    )
    _on_terms(
        _cpu.combine, _TYPES[dtype], shape, terms, starts,
        coefs.data_ptr(), _address(sigma), _address(key), _address(sample_ids), stream,
        out.data_ptr(), noise.data_ptr() if return_noise else 0, torch.get_num_threads(),
    )  # fmt: skip
    return out, noise


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

    Sums are taken in float64, in an order that does not depend on the threads. Where a coefficient is
    zero its term was not read and its gradient is zero; the coefficient's own gradient is the true one.
    """
    *needs_terms, needs_coefs, needs_sigma = needs
    needs_sigma = needs_sigma and sigma is not None and key is not None
    grad = grad.contiguous()
    result = [
        _term_gradient(grad if start < 0 else grad.narrow(1, start, term.size(1)), term.shape, coefs[:, k])
        for k, (term, start, needed) in enumerate(zip(terms, starts, needs_terms, strict=True))
        if needed
    ]
    if needs_coefs or needs_sigma:
        used = (terms, starts) if needs_coefs else ([], [])
        dots = _dots(grad, *used, key if needs_sigma else None, sample_ids, stream).to(coefs.dtype)
        result += [dots[:, :-1].contiguous()] * needs_coefs + [dots[:, -1].contiguous()] * needs_sigma
    return result


def _dots(
    grad: Tensor,
    terms: Sequence[Tensor],
    starts: Sequence[int],
    key: Tensor | None,
    sample_ids: Tensor | None,
    stream: int,
) -> Tensor:
    """<grad[b], term_k[b]> for every term and then <grad[b], eps[b]>: float64 [B, K + 1]."""
    sums = torch.zeros(grad.size(0), len(terms) + 1, dtype=torch.float64)
    if grad.numel() > 0:
        key, sample_ids = _contiguous(key), _contiguous(sample_ids)
        _on_terms(
            _cpu.dots, _TYPES[grad.dtype], list(grad.shape), terms, starts,
            grad.data_ptr(), _address(key), _address(sample_ids), stream, sums.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    return sums


def _scale(x: Tensor, coef: Tensor) -> Tensor:
    """coef[b] x[b], zero where the coefficient is."""
    return combine([x], [-1], coef[:, None], None, None, None, 0, list(x.shape), x.dtype, False)[0]


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
    rows = grad.permute(kept + summed).contiguous()
    sums = torch.zeros(shape, dtype=torch.float64)
    if sums.numel() > 0 and rows.numel() > 0:
        count, threads = sums.numel(), torch.get_num_threads()
        _cpu.row_sums(_TYPES[rows.dtype], rows.data_ptr(), count, rows.numel() // count, sums.data_ptr(), threads)
    if 0 in kept:
        coef = coef.double().reshape(-1, *[1] * (len(shape) - 1))
        sums = torch.where(coef == 0, 0.0, coef * sums)
    return sums.to(dtype)
