"""The pixels of sprites: classify, crop and downscale them, and make the terrain that they may stand on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor

from mmfast.image_files import load_picture
from mmfast.sizes import Size, height_width

CLASSES = ("background", "shadow", "body", "team colour")
# The side of the central crop, by the size that it is averaged down to. Units stand in the middle of 72 x 72 pixels.
SIDES = {16: 64, 32: 64, 36: 72, 64: 64, 72: 72}
TRANSPARENT, OPAQUE = 8, 247  # alpha <= 8 is background, >= 247 body
# Hexagons of 72 x 72 tile the plane at these offsets (x, y).
NEIGHBOURS = ((54, 36), (54, -36), (-54, 36), (-54, -36), (0, 0))


def middle(pixels: np.ndarray, area: Size) -> np.ndarray:
    """The central crop [*area, 4] of a picture [height, width, 4], padded with zeros if the picture is smaller."""
    rows, columns = height_width(area)
    missing = [max(0, side - size) for side, size in zip((rows, columns), pixels.shape[:2], strict=True)]
    padded = np.pad(pixels, [*((n // 2, n - n // 2) for n in missing), (0, 0)]) if any(missing) else pixels
    top, left = (padded.shape[0] - rows) // 2, (padded.shape[1] - columns) // 2
    return padded[top : top + rows, left : left + columns]


def area_of(size: Size) -> tuple[tuple[int, int], int]:
    """The (height, width) of the central crop, and the factor by which it is averaged down to `size`."""
    height, width = height_width(size)
    factor = SIDES[max(height, width)] // max(height, width)
    return (height * factor, width * factor), factor


def pixel_classes(pixels: np.ndarray, palette: Sequence[int]) -> np.ndarray:
    """The class of each pixel, an index into CLASSES: uint8 [..., 4] -> uint8 [...]."""
    red, green, blue, alpha = np.moveaxis(pixels.astype(np.int32), -1, 0)
    team = np.isin(red << 16 | green << 8 | blue, np.array(palette, np.int32), kind="table")
    classes = np.select([alpha <= TRANSPARENT, alpha < OPAQUE, team], [0, 1, 3], default=2)
    return classes.astype(np.uint8)


def majority(classes: Tensor, factor: int) -> Tensor:
    """The most common class of each f x f square, the highest in a tie: uint8 [N, H, W] -> [N, H / f, W / f]."""
    votes = torch.stack([classes == k for k in reversed(range(len(CLASSES)))], 1).float()
    return (len(CLASSES) - 1 - F.avg_pool2d(votes, factor).argmax(1)).to(torch.uint8)


def averaged(pixels: Tensor, factor: int) -> Tensor:
    """Means over f x f squares, with colours weighted by alpha: uint8 [N, 4, H, W] -> [N, 4, H / f, W / f].

    The resulting colours are premultiplied: over a ground G the picture is colour + (255 - alpha) G / 255.
    """
    colour, alpha = pixels[:, :3].float(), pixels[:, 3:].float()
    return F.avg_pool2d(torch.cat([colour * alpha / 255, alpha], 1), factor).round().to(torch.uint8)


def visible(pixels: np.ndarray) -> int:
    """The number of pixels of uint8 [..., 4] that are not background."""
    return int((pixels[..., 3] > TRANSPARENT).sum())


def hexagon(file: Path, size: Size) -> Tensor | None:
    """A terrain hexagon, its corners filled with copies of itself, uint8 [3, H, W]; None for any other picture."""
    picture = load_picture(file)
    if picture.size != (72, 72):
        return None
    tile = picture.convert("RGBA")
    plane = PILImage.new("RGBA", tile.size)
    for offset in NEIGHBOURS:
        layer = PILImage.new("RGBA", tile.size)
        layer.paste(tile, offset)
        plane = PILImage.alpha_composite(plane, layer)
    area, factor = area_of(size)
    pixels = torch.from_numpy(middle(np.asarray(plane), area).copy()).permute(2, 0, 1)
    return averaged(pixels[None], factor)[0, :3] if bool((pixels[3] == 255).all()) else None
