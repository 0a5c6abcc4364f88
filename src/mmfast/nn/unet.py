"""A U-Net in the manner of ADM (Dhariwal and Nichol, 2021) that returns features, for the heads to read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.errors import MmfastError
from mmfast.options import option


@dataclass
class Spec:
    kind: str = "unet"
    channels: int = option(128, "channels of the finest level", min=1)
    multipliers: list[int] = option([1, 2, 3, 4], "channels of each level, in multiples; each halves the grid", min=1)
    blocks: int = option(3, "residual blocks a level", min=1)
    attention: list[int] = option([32, 16, 8], "resolutions (in pixels) with self-attention")
    head_channels: int = option(64, "channels of an attention head", min=1)
    dropout: float = option(0.0, "dropout in the residual blocks", min=0, max=1)


def timestep_embedding(t: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Sinusoids of t at geometrically spaced frequencies (Vaswani et al., 2017): [B] -> float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(longest) / half))
    angle = t[:, None].float() * frequencies
    return F.pad(torch.cat((torch.cos(angle), torch.sin(angle)), 1), (0, width - 2 * half))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0), channels)


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that adds nothing at first, so that every residual block begins as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """norm, SiLU, (resample,) conv, norm scaled and shifted by the time, SiLU, conv; plus the input."""

    def __init__(self, inputs: int, outputs: int, time: int, dropout: float, resample: float = 1.0) -> None:
        super().__init__()
        self.resample = resample
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, 2 * outputs)
        self.norm2, self.conv2 = norm(outputs), zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def _resize(self, x: Tensor) -> Tensor:
        if self.resample == 0.5:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == 2.0 else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # x [B, C, H, W], emb [B, time]
        h = self.conv1(self._resize(F.silu(self.norm1(x))))
        scale, shift = self.time(emb)[:, :, None, None].chunk(2, 1)
        h = self.conv2(self.dropout(F.silu(self.norm2(h) * (1 + scale) + shift)))
        return self.skip(self._resize(x)) + h


class Attention(nn.Module):
    """Self-attention over the pixels, as a residual."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        most = max(1, channels // head_channels)
        self.heads = next(n for n in range(most, 0, -1) if channels % n == 0)
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each [B, heads, H W, C / heads]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(B, C, H, W))


class Level(nn.ModuleList):
    """Residual blocks and attentions in a row, all told the time."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb)
        return x


class Backbone(nn.Module):
    """[B, in_channels, size, size] and t [B] -> features [B, channels, size, size]."""

    def __init__(self, spec: Spec, in_channels: int, size: int) -> None:
        super().__init__()
        if not spec.multipliers:
            raise MmfastError("backbone.multipliers is empty; it should have a number for each level, as [1, 2]")
        halvings = len(spec.multipliers) - 1
        if size % (1 << halvings):
            raise MmfastError(
                f"backbone.multipliers has {halvings + 1} levels; {size} pixels do not halve {halvings} times"
            )
        self.features = width = spec.channels
        self.time_width, time = width, 4 * width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))

        def level(inputs: int, outputs: int, resolution: int) -> Level:
            layers: list[nn.Module] = [Residual(inputs, outputs, time, spec.dropout)]
            if resolution in spec.attention:
                layers.append(Attention(outputs, spec.head_channels))
            return Level(layers)

        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, channels, resolution = [width], width, size
        for depth, multiplier in enumerate(spec.multipliers):
            for _ in range(spec.blocks):
                self.down.append(level(channels, multiplier * width, resolution))
                channels = multiplier * width
                kept.append(channels)
            if depth < halvings:
                self.down.append(Level([Residual(channels, channels, time, spec.dropout, resample=0.5)]))
                kept.append(channels)
                resolution //= 2
        self.middle = Level(
            [
                Residual(channels, channels, time, spec.dropout),
                Attention(channels, spec.head_channels),
                Residual(channels, channels, time, spec.dropout),
            ]
        )
        for depth, multiplier in reversed(list(enumerate(spec.multipliers))):
            for i in range(spec.blocks + 1):
                block = level(channels + kept.pop(), multiplier * width, resolution)
                channels = multiplier * width
                if depth and i == spec.blocks:
                    block.append(Residual(channels, channels, time, spec.dropout, resample=2.0))
                    resolution *= 2
                self.up.append(block)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = F.silu(self.time(timestep_embedding(t, self.time_width).to(x.dtype)))
        h = self.first(x)
        kept = [h]
        for block in self.down:
            h = block(h, emb)
            kept.append(h)
        h = self.middle(h, emb)
        for block in self.up:
            h = block(torch.cat((h, kept.pop()), 1), emb)
        return h
