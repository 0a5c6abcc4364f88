"""The CUDA C++ kernels (csrc/cuda/), behind the signatures of reference.py.

The extension takes addresses, sizes and strides, and queues kernels on the current stream: nothing here waits for
the device, so all of it can be captured in a CUDA graph, after a first call that loads the kernels. Most broadcasts
and channel blocks are read where they lie; for a layout that cannot be, the extension names the terms, which are then
made contiguous here. The tests run the kernels on the host too, where there is no GPU.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mmfast.ops import extensions, reference
from mmfast.ops.reference import Key, Rows, one_row

_cuda, _missing = extensions.load("_mmfast_cuda")

name = "cuda"
devices = ("cuda",)

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # cpu/plan.h
_ONES = {torch.float32: 0x3F800000, torch.float64: 0x3FF << 52, torch.bfloat16: 0x3F80, torch.float16: 0x3C00}


def unavailable() -> str | None:
    """One line on why this backend cannot run here, or None when it can.

    It does not start CUDA, which a process that forks must not do; so a GPU that the extension has no code for shows
    only in the first call, as a RuntimeError.
    """
    if _cuda is None:
        return f"{_missing} where there is nvcc"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def describe() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, {_cuda.__file__}"


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[tuple[int, int]]:
    """The device's number and its current stream, with the device made current. Tests put their own in its place."""
    with torch.cuda.device(device):
        yield torch.cuda.current_device(), torch.cuda.current_stream(device).cuda_stream


class _Held(list[Tensor]):
    """The tensors behind the addresses of a call, so that their memory lives until its kernels are queued."""

    def at(self, x: Tensor | None) -> int:
        """The address of x made contiguous, 0 for None."""
        if x is None:
            return 0
        self.append(x.contiguous())
        return self[-1].data_ptr()

    def identity(self, key: Key | None, sample_ids: Tensor | None, stream: int) -> tuple[int, int, int, int, int, bool]:
        """Which noise, as bindings.cpp takes it; none where the key is None."""
        if key is None:
            return 0, 0, 0, 0, stream, False
        if isinstance(key, Tensor):
            return self.at(key), 0, 0, self.at(sample_ids), stream, True
        return 0, int(key[0]), int(key[1]), self.at(sample_ids), stream, True


def _on_terms(
    function: Callable[..., list[int]],
    device: torch.device,
    dtype: torch.dtype,
    shape: Sequence[int],
    terms: Sequence[Tensor],
    starts: Sequence[int],
    *rest: object,
) -> None:
    """Call the extension, making contiguous the terms that it says it cannot read as they are."""
    terms = list(terms)
    with _on(device) as place:
        for _ in range(2):
            described = [t.data_ptr() for t in terms], [t.shape for t in terms], [t.stride() for t in terms], starts
            misfits = function(place, _TYPES[dtype], list(shape), described, *rest)
            if not misfits:
                return
            for k in misfits:
                channels = shape[1:2] if starts[k] < 0 else terms[k].shape[1:2]
                terms[k] = terms[k].expand(shape[0], *channels, *shape[2:]).contiguous()
    raise AssertionError("contiguous terms always have a layout")


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
    index, coefs, sigma = one_row(rows, coefs, sigma)
    if len(terms) > _cuda.max_terms:
        return reference.combine(
            terms, starts, coefs, sigma, index, key, sample_ids, stream, shape, dtype, return_noise
        )  # fmt: skip
    out = coefs.new_empty(tuple(shape), dtype=dtype)
    noise = coefs.new_empty(tuple(shape) if return_noise and key is not None else 0, dtype=dtype)
    if out.numel() == 0:
        return out, noise
    held = _Held()
    used = key if sigma is not None or return_noise else None
    _on_terms(
        _cuda.combine, coefs.device, dtype, shape, terms, starts,
        held.identity(used, sample_ids, stream), (held.at(index), coefs.size(0)), held.at(coefs), held.at(sigma),
        out.data_ptr(), noise.data_ptr() if noise.numel() else 0,
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
    """The sampler's step, two linear combinations around a clamp, in one pass: see reference.py."""
    index, to_x0, coefs, sigma = one_row(rows, to_x0, coefs, sigma)
    if len(terms) > _cuda.max_terms:
        return reference.step(
            terms, starts, to_x0, coefs, sigma, index, low, high, x0_start, x0_channels, key, sample_ids, stream, shape,
            dtype, return_x0,
        )  # fmt: skip
    out = coefs.new_empty(tuple(shape), dtype=dtype)
    x0_shape = [shape[0], x0_channels, *shape[2:]] if x0_start >= 0 else shape
    x0 = coefs.new_empty(tuple(x0_shape) if return_x0 else 0, dtype=dtype)
    if out.numel() == 0:
        return out, x0
    held = _Held()
    used = key if sigma is not None else None
    _on_terms(
        _cuda.step, coefs.device, dtype, shape, terms, starts,
        held.identity(used, sample_ids, stream), (held.at(index), coefs.size(0)), held.at(to_x0), held.at(coefs),
        held.at(sigma), float(low), float(high), x0_start, x0_channels,
        out.data_ptr(), x0.data_ptr() if x0.numel() else 0,
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
    """The weighted squared norm of a combination, and its gradient for term 0, in one pass: see reference.py.

    The sum is taken in float64, in an order that is a function of the shape and the type alone.
    """
    index, coefs, sigma, weight = one_row(rows, coefs, sigma, weight)
    if len(terms) > _cuda.max_terms:
        return reference.squared_error(
            terms, starts, coefs, sigma, weight, index, key, sample_ids, stream, shape, dtype, scale, return_grad
        )  # fmt: skip
    loss = coefs.new_zeros(shape[0])
    grad = coefs.new_empty(tuple(shape) if return_grad else 0, dtype=dtype)
    elements = math.prod(shape[1:])
    if loss.numel() == 0 or elements == 0:
        return loss, grad
    held = _Held()
    parts = coefs.new_empty(shape[0] * _cuda.part_count(elements), dtype=torch.float64)
    used = key if sigma is not None else None
    _on_terms(
        _cuda.squared_error, coefs.device, dtype, shape, terms, starts,
        held.identity(used, sample_ids, stream), (held.at(index), coefs.size(0)), held.at(coefs), held.at(sigma),
        held.at(weight), float(scale), parts.data_ptr(), loss.data_ptr(), grad.data_ptr() if return_grad else 0,
    )  # fmt: skip
    return loss, grad


def block_ranks(
    key: Key, sample_ids: Tensor | None, stream: int, batch: int, blocks: int, device: torch.device
) -> Tensor:
    """The rank of every block of every sample: int64 [batch, blocks]. See reference.py."""
    out = torch.empty(batch, blocks, dtype=torch.int64, device=device)
    if out.numel() > 0:
        held = _Held()
        with _on(out.device) as place:
            _cuda.block_ranks(place, held.identity(key, sample_ids, stream), batch, blocks, out.data_ptr())
    return out


def block_mask(
    x: Tensor, threshold: Tensor, key: Key, sample_ids: Tensor | None, stream: int, block: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """x [B, C, H, W] with some of its blocks hidden, and the mask [B, 1, H, W]: see reference.py."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    mask = x.new_empty(x.size(0), 1, x.size(2), x.size(3))
    if mask.numel() > 0:
        held = _Held()
        with _on(x.device) as place:
            _cuda.block_mask(
                place, _TYPES[x.dtype], held.identity(key, sample_ids, stream), list(x.shape), block[0], block[1],
                _ONES[x.dtype], held.at(x), held.at(threshold), out.data_ptr(), mask.data_ptr(),
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

    Sums are taken in float64, in an order that is a function of the shapes and types alone. Where a coefficient is
    zero its term was not read and its gradient is zero; the coefficient's own gradient is the true one.
    """
    if len(terms) > _cuda.max_terms:
        return reference.combine_backward(grad, terms, starts, coefs, sigma, key, sample_ids, stream, needs)
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
    key: Key | None,
    sample_ids: Tensor | None,
    stream: int,
) -> Tensor:
    """<grad[b], term_k[b]> for every term and then <grad[b], eps[b]>: float64 [B, K + 1]."""
    sums = grad.new_zeros(grad.size(0), len(terms) + 1, dtype=torch.float64)
    if grad.numel() > 0:
        held = _Held()
        parts = grad.new_empty(sums.numel() * _cuda.part_count(math.prod(grad.shape[1:])), dtype=torch.float64)
        _on_terms(
            _cuda.dots, grad.device, grad.dtype, grad.shape, terms, starts,
            held.identity(key, sample_ids, stream), grad.data_ptr(), parts.data_ptr(), sums.data_ptr(),
        )  # fmt: skip
    return sums


def _scale(x: Tensor, coef: Tensor) -> Tensor:
    """coef[b] x[b], zero where the coefficient is."""
    return combine([x], [-1], coef[:, None], None, None, None, None, 0, x.shape, x.dtype, False)[0]


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
    if count == 0 or grad.numel() == 0:
        return grad.new_zeros(shape, dtype=dtype)
    rows = grad.permute(kept + summed).reshape(count, -1).contiguous()
    sums = _dots(rows, [rows.new_ones(1, 1)], [-1], None, None, 0)[:, 0].reshape(shape)
    if 0 in kept:
        coef = coef.double().reshape(-1, *[1] * (len(shape) - 1))
        sums = torch.where(coef == 0, 0.0, coef * sums)
    return sums.to(dtype)
