"""Feature maps: an embedding for each cell of the image, such as a pretrained network has before averaging."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor, nn

from mmfast.errors import MmfastError
from mmfast.modalities import base
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.embedding import Embedding, read_numbers
from mmfast.modalities.image import picture
from mmfast.options import option
from mmfast.sizes import height_width


@dataclass
class FeatureMapSpec(base.Spec):
    """float [B, dim, rows, columns] of cells; only the direction, over all numbers together, counts."""

    kind: str = "feature_map"
    dim: int = option(8, "numbers a cell", min=1)
    cells: Any = base.size_option(4, "cells along the height and the width: a number, or [height, width]")
    network: str = option("", "network that computes it from the anchor (mmfast.metrics.features); empty: the data's")
    sigma: float = option(0.1, "standard deviation of the Gaussian head", above=0)
    reads: str = base.reads_option("decoder")


class FeatureMap(Embedding):
    """Laid over the image: each cell's numbers are at every pixel of the cell, so that it is diffused like a picture.

    Joint diffusion of images and principal components of features: ReDi (arXiv 2504.16064).
    """

    kind = "feature_map"
    mirrors = True
    Spec: ClassVar[type[base.Spec]] = FeatureMapSpec
    beside: ClassVar[dict[str, Any]] = {"weight": {"kind": "none"}, "loss_weight": 0.02}
    of_anchor: ClassVar[dict[str, Any]] = {"given_probability": 0.6, "given_at_T": 1.0, "given_steps": 1}

    def __init__(self, name: str, spec: Any, space: SpaceShape) -> None:
        super(Embedding, self).__init__(name, spec, space)
        self.reduced, self.reads = None, spec.reads
        rows, columns = self.cells = height_width(spec.cells)
        if space.height % rows or space.width % columns:
            raise MmfastError(
                f"modalities.{name}.cells is {spec.cells}; it should divide the image's {space.height} x {space.width}"
            )
        if spec.encoder == "fixed" and space.channels not in (None, spec.dim):
            raise MmfastError(
                f"modalities.{name}.dim is {spec.dim}; there are {space.channels} shared channels: use space=own, or "
                "encoder=learned"
            )
        self.channels, self.grid = space.channels or spec.dim, (space.height, space.width)
        self.proj = None if spec.encoder == "fixed" else nn.Conv2d(spec.dim, self.channels, 1, bias=False)

    @classmethod
    def anchor_space(cls, spec: Any) -> SpaceShape:
        return SpaceShape(*height_width(spec.cells))

    def from_z0(self, z0: Tensor) -> Tensor:
        return base.unit_rms(F.adaptive_avg_pool2d(z0, self.spec.cells))

    def build_head(self, features: int) -> None:
        if self.reads == "encoder":
            self.out: nn.Module = base.Reader(features, self.spec.dim * math.prod(self.cells))
        else:
            self.norm = base.head_norm(features)
            self.out = nn.Conv2d(features, self.spec.dim, 3, padding=1)

    def check(self, x: Tensor, where: str) -> None:
        base.check_floats(x, (self.spec.dim, *self.cells), where)

    def encode(self, x: Tensor) -> Tensor:
        x = base.unit_rms(x)
        return self._lay_out(x if self.proj is None else base.unit_rms(self.proj(x)))

    def _lay_out(self, x: Tensor) -> Tensor:
        """Repeat each cell's numbers at all of its pixels."""
        return F.interpolate(x, self.grid, mode="nearest")

    def head(self, features: Tensor) -> Tensor:
        if self.reads == "encoder":
            return self.out(features).unflatten(1, (self.spec.dim, *self.cells))
        return F.adaptive_avg_pool2d(self.out(self.norm(features)), self.cells)

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        """Show the first three numbers of each cell as red, green and blue."""
        colours = base.unit_rms(x[None].float().cpu())[0, :3] / 2
        return picture(F.pad(colours, (0, 0, 0, 0, 0, 3 - len(colours))), size)

    @classmethod
    def read(cls, path: Path, spec: Any) -> Tensor:
        return read_numbers(path, (spec.dim, *height_width(spec.cells)))

    @classmethod
    def blank(cls, spec: Any) -> Tensor:
        return torch.zeros(spec.dim, *height_width(spec.cells))
