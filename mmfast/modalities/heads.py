"""Heads: predict a modality's parameters from the backbone's features."""

from __future__ import annotations

from torch import nn

from mmfast.options import option

READS = ("encoder", "decoder")


def reads_option(default: str = "encoder") -> str:
    """The option `reads`, of a modality that can be predicted from averages over the image."""
    return option(default, "what the head reads: the encoder, or the decoder's last features", choices=READS)


def one_head(reads: str, features: int, outputs: int) -> nn.Module:
    """The head of a modality that is one value per image: what it `reads` -> [B, outputs]."""
    return Pooled(features, outputs) if reads == "decoder" else Reader(features, outputs)


class Reader(nn.Sequential):
    """The head that reads the encoder: [B, F] -> [B, outputs]."""

    def __init__(self, features: int, outputs: int, width: int = 128) -> None:
        super().__init__(nn.LayerNorm(features), nn.Linear(features, width), nn.SiLU(), nn.Linear(width, outputs))


class Pooled(nn.Sequential):
    """The head that reads the last features: [B, F, H, W] -> [B, outputs].

    Features are pooled to a grid of 4 x 4, so that positions can count, and normalised only then: normalising each
    channel over the pixels first would remove the very means that the head reads.
    """

    def __init__(self, features: int, outputs: int, width: int = 128, grid: int = 4) -> None:
        cells = features * grid * grid
        super().__init__(
            nn.AdaptiveAvgPool2d(grid),
            nn.Flatten(),
            nn.LayerNorm(cells),
            nn.Linear(cells, width),
            nn.SiLU(),
            nn.Linear(width, outputs),
        )


def head_norm(features: int, pixels: int = 2) -> nn.Sequential:
    """The normalisation that every head for pictures begins with.

    Groups have at least four channels: a channel that is normalised alone cannot express how bright an image is. With
    one pixel all channels are one group, which keeps most of the information.
    """
    groups = next((g for g in (32, 16, 8, 4, 2) if features % g == 0 and features >= 4 * g and pixels > 1), 1)
    return nn.Sequential(nn.GroupNorm(groups, features), nn.SiLU())
