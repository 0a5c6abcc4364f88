"""Check the identity and the levels of an op's noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.errors import MmfastError
from mmfast.ops.around import fresh_seed, transformed, watched
from mmfast.ops.call import MAX_LEVELS, GivenNoise, Noise
from mmfast.ops.checks import is_whole
from mmfast.schedule import as_int


def check_noise(given: GivenNoise, batch: int, device: torch.device) -> Noise:
    """The checked identity of the noise, with a fresh seed for None."""
    (seed, draw), sample_ids, stream, levels = given
    seed, draw, stream = as_int(seed), as_int(draw), as_int(stream)
    if not is_whole(stream) or not 0 <= stream < 1 << 16:
        raise MmfastError(f"stream is {stream!r}; it should be an int in 0 .. 65535")
    if isinstance(draw, Tensor):
        if draw.numel() != 1 or draw.dtype != torch.int64:
            raise MmfastError(f"draw is a {draw.dtype} tensor of {draw.numel()} values; it should be one int64")
    elif not is_whole(draw, symbolic=True) or not 0 <= draw < 1 << 32:
        raise MmfastError(f"draw is {draw!r}; it should be an int in 0 .. 2^32 - 1, or an int64 tensor")
    if sample_ids is not None:
        sample_ids = _ids(sample_ids, batch, device)
    if seed is None:
        # From the default CPU generator, so that torch.manual_seed makes it reproducible on every device.
        watching = watched() or transformed()
        seed = (
            torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64, device="cpu") if watching else fresh_seed()
        )
    if type(seed) is int and type(draw) is int and -(1 << 63) <= seed < 1 << 63:
        return Noise((seed, draw), sample_ids, stream, levels)
    return Noise(_key(seed, draw, device), sample_ids, stream, levels)


def check_levels(levels: object, sigma: object) -> tuple[int, ...]:
    """The checked noise levels of a public op, () for None. `within_channels` checks them against the channels."""
    if levels is None:
        return ()
    if sigma is None:
        raise MmfastError(f"levels is {levels!r}, but there is no sigma; give one with a column for each level")
    numbers = tuple(levels) if isinstance(levels, Sequence) and not isinstance(levels, str) else ()
    first = all(is_whole(x) for x in numbers) and numbers[:1] == (0,)
    rising = zip(numbers[:-1], numbers[1:], strict=True)  # noqa: RUF007 (torch 2.4 does not compile pairwise)
    if not first or len(numbers) > MAX_LEVELS or any(a >= b for a, b in rising):
        raise MmfastError(
            f"levels is {levels!r}; it should be the first channels of 1 to {MAX_LEVELS} blocks, rising from 0"
        )
    return numbers


def within_channels(levels: tuple[int, ...], shape: Sequence[int]) -> None:
    """Raise MmfastError unless every level starts within the channels of the shape."""
    channels = shape[1] if len(shape) > 1 else 1
    if len(levels) > 1 and levels[-1] >= channels:
        raise MmfastError(f"levels is {list(levels)}; each should lie within the {channels} channels of the terms")


def _ids(sample_ids: object, batch: int, device: torch.device) -> Tensor:
    if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64 or sample_ids.shape != (batch,):
        of = isinstance(sample_ids, Tensor)
        kind = f"{sample_ids.dtype} {list(sample_ids.shape)}" if of else type(sample_ids).__name__  # type: ignore[attr-defined]
        raise MmfastError(f"sample_ids is {kind}; it should be an int64 tensor [{batch}], one per sample")
    if sample_ids.device != device:
        raise MmfastError(f"sample_ids is on {sample_ids.device}; it should be on {device} with the rest")
    return sample_ids.contiguous()


def _key(seed: int | Tensor, draw: int | Tensor, device: torch.device) -> Any:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise MmfastError(f"seed is a {seed.dtype} tensor of {seed.numel()} values; it should be one int64")
        high = seed.reshape(())
        low = draw.reshape(()) if isinstance(draw, Tensor) else torch.full_like(high, draw)
        return torch.stack((high.to(device), low.to(device)))
    if not is_whole(seed, symbolic=True):
        raise MmfastError(f"seed is {seed!r}; it should be an int, an int64 tensor or None")
    if not -(1 << 63) <= seed < 1 << 64:
        raise MmfastError(f"seed is {seed}; it should fit 64 bits")
    seed = seed - (1 << 64) if seed >= 1 << 63 else seed
    if isinstance(draw, Tensor):
        low = draw.reshape(()).to(device)
        return torch.stack((torch.full_like(low, seed), low))
    return (seed, draw)
