"""Heads: predict a modality's parameters from the backbone's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.options import option

READS = ("encoder", "decoder")


def reads_option(default: str = "encoder") -> str:
    """The option `reads` of a kind, with its default."""
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


class Residual(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv; plus the input: [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        for parameter in last.parameters():
            nn.init.zeros_(parameter)  # at first the identity
        self.layers = nn.Sequential(head_norm(channels), first, head_norm(channels), last)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.layers(x)
        return found


class Pyramid(nn.Module):
    """The head of a picture that reads the encoder: its levels -> [B, outputs, H, W].

    A small decoder of its own, after the feature pyramids of Lin et al. (2017): from the coarsest level on, each is
    resized and added to the next finer one, the last to the backbone's input. levels: their channels, the input first.
    """

    def __init__(self, levels: Sequence[int], outputs: int, width: int = 64) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in levels[1:])
        self.blocks = nn.ModuleList(Residual(width) for _ in levels[1:])
        self.last = nn.Conv2d(width, width // 2, 3, padding=1)
        self.past = nn.Conv2d(levels[0], width // 2, 3, padding=1)
        self.out = nn.Sequential(head_norm(width // 2), nn.Conv2d(width // 2, outputs, 3, padding=1))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        image, *others = levels
        *finer, h = [lateral(level.contiguous()) for lateral, level in zip(self.lateral, others, strict=True)]
        *blocks, coarsest = self.blocks
        h = coarsest(h)
        for x, block in zip(reversed(finer), reversed(blocks), strict=True):
            h = block(x + F.interpolate(h, x.shape[-2:], mode="nearest"))
        said: Tensor = self.out(self.last(F.interpolate(h, image.shape[-2:], mode="nearest")) + self.past(image))
        return said


class PictureHead:
    """Mixed into a modality whose head predicts a picture: from the decoder's last features, or by a `Pyramid`."""

    reads: str

    def build_picture_head(self, features: Any, outputs: int) -> None:
        """features: the decoder's channels, or the channels of the encoder's levels, as the head `reads` them."""
        if self.reads == "encoder":
            self.out: nn.Module = Pyramid(features, outputs)
        else:
            self.norm = head_norm(features)
            self.out = nn.Conv2d(features, outputs, 3, padding=1)

    def head(self, features: Any) -> Tensor:
        found: Tensor = self.out(features if self.reads == "encoder" else self.norm(features))
        return found


def head_norm(features: int, pixels: int = 2) -> nn.Sequential:
    """The normalisation that every head for pictures begins with.

    Groups have at least four channels: a channel that is normalised alone cannot express how bright an image is. With
    one pixel all channels are one group, which keeps most of the information.
    """
    groups = next((g for g in (32, 16, 8, 4, 2) if features % g == 0 and features >= 4 * g and pixels > 1), 1)
    return nn.Sequential(nn.GroupNorm(groups, features), nn.SiLU())
