"""A residual MLP over all pixels at once, for very small images, on which it is many times faster than a U-Net."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.backbones.features import Features, plus, timestep_embedding
from mmfast.options import option
from mmfast.sizes import Size, height_width


@dataclass
class Spec:
    kind: str = "mlp"
    width: int = option(512, "width of the hidden layers", min=2)
    blocks: int = option(4, "residual blocks, the first half of them the encoder", min=1, max=1000)
    features: int = option(32, "feature channels of a pixel", min=1)
    dropout: float = option(0.0, "dropout in the residual blocks", min=0, max=1)


class Residual(nn.Module):
    """norm scaled and shifted by the time, linear, SiLU, dropout, linear; plus the input."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.time = nn.Linear(width, 2 * width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:  # both [B, width]
        scale, shift = self.time(emb).chunk(2, 1)
        return h + self.outer(self.dropout(F.silu(self.inner(self.norm(h) * (1 + scale) + shift))))


class Backbone(nn.Module):
    """[B, in_channels, H, W], t [B] -> `Features`: pixels [B, features, H, W], and `before` [B, width]."""

    def __init__(self, spec: Spec, in_channels: int, size: Size) -> None:
        super().__init__()
        height, width = self.grid = height_width(size)
        self.features, self.width = spec.features, spec.width
        self.reads = self.embedding_width = spec.width
        self.time = nn.Sequential(nn.Linear(spec.width, spec.width), nn.SiLU(), nn.Linear(spec.width, spec.width))
        self.first = nn.Linear(in_channels * height * width, spec.width)
        self.blocks = nn.ModuleList(Residual(spec.width, spec.dropout) for _ in range(spec.blocks))
        self.norm = nn.LayerNorm(spec.width)
        self.last = nn.Linear(spec.width, spec.features * height * width)
        # Each pixel's own input bypasses the bottleneck, since most of the noise in z_t need only be copied.
        self.past = nn.Conv2d(in_channels, spec.features, 1)

    def forward(
        self, x: Tensor, t: Tensor, beside: Tensor | None = None, told: Tensor | None = None, decode: bool = True
    ) -> Features:
        embedding = plus(self.time(timestep_embedding(t, self.width).to(x.dtype)), beside)
        emb, half = F.silu(embedding), len(self.blocks) // 2
        h = self.first(x.flatten(1))
        for block in self.blocks[:half]:
            h = block(h, emb)
        if not decode:
            return Features(None, h)
        before, emb = h, F.silu(plus(embedding, told))
        for block in self.blocks[half:]:
            h = block(h, emb)
        return Features(self.past(x) + self.last(self.norm(h)).unflatten(1, (self.features, *self.grid)), before)
