"""Depth maps: a distance in metres at every pixel, on a logarithmic scale between two planes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor

from mmfast import MmfastError
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.embedding import read_array
from mmfast.modalities.image import Image, ImageSpec
from mmfast.options import option
from mmfast.sizes import height_width, middle


@dataclass
class DepthSpec(ImageSpec):
    """float [B, 1, height, width] in -1 .. 1: from the near plane to the far one, evenly in the logarithm."""

    kind: str = "depth"
    channels: int = option(1, "one distance a pixel", choices=(1,))
    near: float = option(0.5, "metres to the near plane", above=0)
    far: float = option(50.0, "metres to the far plane", above=0)


class Depth(Image):
    kind = "depth"
    Spec = DepthSpec
    extensions = (".npy",)

    def __init__(self, name: str, spec: DepthSpec, space: SpaceShape) -> None:
        if spec.far <= spec.near:
            raise MmfastError(f"modalities.{name}.far is {spec.far}; it should be more than near, {spec.near}")
        super().__init__(name, spec, space)

    @classmethod
    def read(cls, path: Path, spec: DepthSpec) -> Tensor:
        """Metres, float [H, W] of a .npy file; the middle of the size's shape, averaged to that size."""
        metres = read_array(path)
        if metres.dim() != 2 or not bool((metres > 0).all()):
            raise MmfastError(f"{path} holds {list(metres.shape)}; it should hold distances [H, W] above 0")
        left, top, right, bottom = middle((metres.shape[0], metres.shape[1]), spec.size)
        inner = metres[top:bottom, left:right].clamp(spec.near, spec.far)
        x = 2 * (inner / spec.near).log() / math.log(spec.far / spec.near) - 1
        return F.interpolate(x[None, None], height_width(spec.size), mode="area")[0]

    @classmethod
    def from_picture(cls, picture: PILImage.Image, spec: Any, where: str) -> Tensor:
        raise MmfastError(f"{where} is a picture; a depth map is a .npy file of metres")

    def plain(self, x: Tensor) -> np.ndarray:
        """Metres, float32 [height, width]."""
        u = (x[0].clamp(-1, 1).double() + 1) / 2
        return (self.spec.near * torch.exp(u * math.log(self.spec.far / self.spec.near))).float().cpu().numpy()
