"""The public linear op `combine` and its special cases: the multimodal mean, the noise alone, and the noise's words.

All public ops are differentiable in every floating-point tensor argument, accept float64, float32, bfloat16 and
float16 with any strides, compute in float32 (float64 for float64), and never wait for a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mmfast.errors import MmfastError
from mmfast.keywords import shows
from mmfast.ops import dispatch
from mmfast.ops.around import in_memory, outside, watched
from mmfast.ops.call import Call, GivenNoise, KeptTables, Rows, Tables, Term, arithmetic
from mmfast.ops.checks import (
    FLOATS,
    Encodings,
    check_count,
    check_device,
    check_row_values,
    check_tables,
    device_of,
    flag,
    gather,
    is_whole,
)
from mmfast.ops.identity import IDENTITY, Identity, noise_of
from mmfast.ops.noise_checks import check_levels, check_noise, within_channels

if TYPE_CHECKING:
    from typing_extensions import Unpack


# fmt: off
@overload
def combine(terms: Sequence[Term], coefs: Tensor, sigma: Tensor | None = None, *, rows: Rows = ...,
            levels: Sequence[int] | None = ..., return_noise: Literal[False] = ...,
            **identity: Unpack[Identity]) -> Tensor: ...
@overload
def combine(terms: Sequence[Term], coefs: Tensor, sigma: Tensor | None = None, *, rows: Rows = ...,
            levels: Sequence[int] | None = ..., return_noise: Literal[True],
            **identity: Unpack[Identity]) -> tuple[Tensor, Tensor]: ...
# fmt: on
@shows(Identity, IDENTITY)
def combine(
    terms: Sequence[Term],
    coefs: Tensor,
    sigma: Tensor | None = None,
    *,
    rows: Rows = None,
    levels: Sequence[int] | None = None,
    return_noise: bool = False,
    **identity: Unpack[Identity],
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute a linear combination per sample: `out[b] = sum_k coefs[b, k] terms[k][b] + sigma[b] eps[b]`.

    Args:
        terms: K tensors that broadcast together to [B, ...], or `Block`s of its channels. A term is not read for a
            sample whose coefficient is zero. Dtypes promote as in torch.
        coefs: [B, K] or [1, K]; with rows, a table [R, K].
        sigma: [B] or [1], the scale of the noise; None for no noise. With rows, [R].
        rows: the row of the tables for each sample, int64 [B], or an int for all; None if row b is sample b's.
        seed, sample_ids, stream, draw: the identity of the noise, as for `randn`.
        levels: the first channels (dimension 1) of adjacent blocks, increasing from 0. sigma is then [B, L] (with rows,
            [R, L]), a scale for each block. eps does not depend on the levels.
        return_noise: whether to return (out, eps).

    Returns out [B, ...], and eps of the same shape and dtype if requested.
    Raises MmfastError (a ValueError) naming the argument at fault.
    """
    if type(return_noise) is not bool:
        return_noise = flag("return_noise", return_noise)
    noise: GivenNoise | None = None
    made = noise_of("combine", identity)
    if sigma is not None or return_noise or levels is not None:
        noise = (*made[:3], check_levels(levels, sigma)) if levels is not None else made
    found: Any = None
    if not is_compiling():
        found = dispatch.at_once("combine", terms, Tables(coefs, sigma), rows, noise, return_noise, False)
    if found is None:
        tensors, shape, dtype = gather(terms)
        if not tensors:
            raise MmfastError("terms is empty; combine needs at least one, which gives the shape (or use randn)")
        if rows is None:
            shape = _of_batch(shape, coefs)
        found = _combine(Call(tensors, Tables(coefs, sigma), rows, None, shape, dtype), noise, return_noise)
    out, eps = found
    return (out, eps) if return_noise else out


def _of_batch(shape: Sequence[int], coefs: Tensor) -> list[int]:
    """The shape of the result, which is batched if the terms hold one sample for a batch of coefficients."""
    batched = bool(shape) and shape[0] == 1 and isinstance(coefs, Tensor) and coefs.dim() == 2
    return [coefs.shape[0], *shape[1:]] if batched else list(shape)


def _combine(
    call: Call, given: GivenNoise | None, return_noise: bool, name: str = "coefs"
) -> tuple[Tensor, Tensor | None]:
    """Check the tables and the noise of a call of known shape and type, and dispatch it."""
    terms, (coefs, sigma, *_), rows, _, shape, dtype = call
    # The first dimension counts the samples; a zero-dimensional tensor is one sample of one element.
    batch = list(shape) or [1]
    if not shape:
        terms = [x.reshape(1) for x in terms]  # type: ignore[union-attr]
    levels = () if given is None else given[3]
    within_channels(levels, batch)
    of_noise = [] if sigma is None else [("sigma", sigma, (len(levels),) if levels else ())]
    check_tables([(name, coefs, (len(terms),)), *of_noise], rows, batch[0])
    noise = None if given is None else check_noise(given, batch[0], coefs.device)
    if sigma is not None:
        if sigma.shape[0] != coefs.shape[0]:  # give both tables the same number of rows
            coefs, sigma = coefs.expand(batch[0], -1), sigma.expand(batch[0], *sigma.shape[1:])
        sigma = in_memory(sigma.to(arithmetic(dtype)))
    check_device(coefs.device, terms, sigma)
    tables = Tables(in_memory(coefs.to(arithmetic(dtype))), sigma)
    call = Call(terms, tables, rows, noise, batch, dtype)
    try:
        out, eps = dispatch.of_call(call).combine(call, return_noise)
    except (ValueError, IndexError):
        check_row_values(rows, tables)
        raise
    return (out, eps) if shape else (out.reshape(()), eps.reshape(()) if return_noise and eps is not None else eps)


@shows(Identity, IDENTITY)
def randn(
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **identity: Unpack[Identity],
) -> Tensor:
    """Generate standard normal noise [B, ...] in which each sample depends only on its identity.

    Element e of a sample is a pure function of (seed, stream, sample id, draw, e). It has the same bits whatever the
    batch, its order, the number of threads or the instruction set (Philox4x32-10 and Box-Muller).

    Args:
        shape: [B, ...].
        seed: a 64-bit int, or an int64 tensor of one element. None draws a fresh seed from torch's default generator,
            so torch.manual_seed makes it reproducible.
        sample_ids: int64 [B] in 0 .. 2^48 - 1; None for 0 .. B - 1.
        stream: 0 .. 65535, to separate noise for different purposes.
        draw: 0 .. 2^32 - 1, for repeated draws for the same purpose; an int or an int64 tensor of one element.

    Raises MmfastError naming the argument at fault.
    """
    if not isinstance(shape, Sequence) or not all(is_whole(n, symbolic=True) and n >= 0 for n in shape):
        raise MmfastError(f"shape is {shape!r}; it should be the sizes [B, ...], none of them negative")
    check_count(shape)
    if dtype not in FLOATS:
        raise MmfastError(f"dtype is {dtype}; it should be float32, float64, bfloat16 or float16")
    device, noise = device_of(device), noise_of("randn", identity)
    # Not while a CUDA graph is captured, since the cached tables would be in its memory, nor under a compiler.
    if shape and not watched() and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        # A term of one element, expanded and never read, carries the shape.
        like = torch.empty([1] * len(shape), dtype=dtype, device=device).expand(*shape)
        alone = _noise_alone(like.device, arithmetic(dtype))
        # On the CPU the sum equals the noise, to the sign of a zero; elsewhere the noise is requested as well.
        beside = like.device.type != "cpu"
        found = dispatch.at_once("combine", [like], alone, None, noise, beside, False)
        if found is not None:
            return found[beside]
    tables = Tables(torch.zeros(1, 0, device=device, dtype=arithmetic(dtype)))
    _, eps = _combine(Call([], tables, None, None, list(shape), dtype), noise, return_noise=True)
    assert eps is not None
    return eps


@functools.cache
def _noise_alone(device: torch.device, dtype: torch.dtype) -> Tables:
    """The tables for the noise alone: 0 x + 1 eps."""
    with outside():
        return KeptTables(torch.zeros(1, 1, device=device, dtype=dtype), torch.ones(1, device=device, dtype=dtype))


@shows(Identity, IDENTITY)
def random_words(shape: Sequence[int], *, device: torch.device | str = "cpu", **identity: Unpack[Identity]) -> Tensor:
    """Generate random 32-bit words from an identity: int64 [B, count], each in 0 .. 2^32 - 1.

    Word j of a sample is word j % 4 of its Philox block j // 4, a pure function of (seed, stream, sample id, draw, j).
    shape: [B, count]; the other arguments are as for `randn`. Raises MmfastError naming the argument at fault.
    """
    if not isinstance(shape, Sequence) or len(shape) != 2 or not all(is_whole(n) and n >= 0 for n in shape):
        raise MmfastError(f"shape is {shape!r}; it should be [B, count], neither of them negative")
    check_count(shape)
    device, (batch, count) = device_of(device), shape
    noise = check_noise(noise_of("random_words", identity), batch, device)
    return dispatch.choose([], device).random_words(noise, batch, count, device)


def multimodal_mean(encodings: Encodings, weights: Tensor) -> Tensor:
    """Compute the weighted multimodal mean m = sum_i weights[:, i] E_i(x_i).

    encodings: a dict by name, or a sequence, that broadcast together to [B, ...]; weights: [B, N] or [1, N], in the
    same order. Raises MmfastError naming the argument at fault.
    """
    # Test for a list first: testing for a Mapping takes longer.
    unnamed = type(encodings) is list or not isinstance(encodings, Mapping)
    terms: Any = encodings if unnamed else [*encodings.values()]  # type: ignore[union-attr]
    found = None if is_compiling() else dispatch.at_once("combine", terms, Tables(weights), None, None, False, False)
    if found is None:
        if isinstance(terms, Sequence) and not terms:
            raise MmfastError("encodings is empty; multimodal_mean needs at least one, which gives the shape")
        tensors, shape, dtype = gather(terms, what="encodings")
        call = Call(tensors, Tables(weights), None, None, _of_batch(shape, weights), dtype)
        found = _combine(call, None, False, "weights")
    return found[0]
