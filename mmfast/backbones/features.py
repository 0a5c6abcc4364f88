"""What a backbone returns, and the embedding of a timestep."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Features(NamedTuple):
    """pixels: [B, features, H, W], after the decoder; before: [B, reads], of the encoder, before `told` enters."""

    pixels: Tensor
    before: Tensor


def timestep_embedding(t: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Sinusoids of t at geometrically spaced frequencies (Vaswani et al., 2017): [B] -> float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(longest) / half))
    angle = t[:, None].float() * frequencies
    return F.pad(torch.cat((torch.cos(angle), torch.sin(angle)), 1), (0, width - 2 * half))


def plus(embedding: Tensor, more: Tensor | None) -> Tensor:
    """The embedding with `more` added, where there is any."""
    return embedding if more is None else embedding + more.to(embedding.dtype)
