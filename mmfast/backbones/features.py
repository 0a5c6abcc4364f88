"""The result of a backbone, and what backbones share: embeddings, attention, the grid that heads read."""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

GRID = 2  # of the cells that `before` averages over


class Features(NamedTuple):
    """pixels: [B, features, H, W], after the decoder; before: [B, reads], from the encoder, before `told` enters.

    levels: the backbone's input and what `before` averages, the finest first, [B, C, rows, columns] each; empty if the
    backbone has no grid. `pixels` is None after a pass without the decoder.
    """

    pixels: Tensor | None
    before: Tensor
    levels: tuple[Tensor, ...] = ()


def timestep_embedding(t: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Sinusoids of t at geometrically spaced frequencies (Vaswani et al., 2017): [B] -> float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(longest) / half))
    angle = t[:, None].float() * frequencies
    return F.pad(torch.cat((torch.cos(angle), torch.sin(angle)), 1), (0, width - 2 * half))


def plus(embedding: Tensor, more: Tensor | None) -> Tensor:
    """The embedding plus `more`, unless that is None."""
    return embedding if more is None else embedding + more.to(embedding.dtype)


def kernels(device: torch.device, tokens: int) -> contextlib.AbstractContextManager[None]:
    """A context in which torch's attention over so many tokens uses the kernel that is fast on this device."""
    # Fused attention is faster, but its backward pass on CPUs is four times as slow as the plain products.
    slow = device.type == "cpu" and tokens <= 1024 and torch.is_grad_enabled()
    return sdpa_kernel(SDPBackend.MATH) if slow else contextlib.nullcontext()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, [B, heads, N, C] each."""
    with kernels(q.device, q.shape[-2]):
        return F.scaled_dot_product_attention(q, k, v)


def averaged(h: Tensor) -> Tensor:
    """Average over a grid of 2 x 2, so that a head can tell positions: [B, C, H, W] -> [B, 4 C]."""
    return F.adaptive_avg_pool2d(h.contiguous(), GRID).flatten(1)
