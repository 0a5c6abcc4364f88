"""Images: the usual anchor; with another anchor, a modality with a Gaussian head."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from mmfast.autoencoders import Autoencoder, AutoencoderSpec
from mmfast.errors import MmfastError
from mmfast.image_files import EXTENSIONS, check_colour, grey_or_colour, load_picture, middle_resized
from mmfast.modalities import base
from mmfast.modalities.base import Modality, SpaceShape
from mmfast.options import option
from mmfast.pictures import fit
from mmfast.sizes import Size, height_width

FAR = 4.0  # above any pixel of -1 .. 1, even a noisy one, but not above those of 0 .. 255


@dataclass
class ImageSpec(base.Spec):
    """float [B, channels, height, width] in -1 .. 1; size: a square's side, or [height, width]."""

    kind: str = "image"
    channels: int = option(3, "grey or colour", choices=(1, 3))
    size: Any = base.size_option()
    levels: int = option(256, "how many values a pixel can take", min=2)
    rms: float = option(0.5, "root mean square of the pixels; a fixed encoding divides by it", above=0)
    sigma: float = option(0.1, "standard deviation of the Gaussian head", above=0)
    background: str = option("white", "the colour behind the transparent pixels of a file, as white or #808080")
    autoencoder: AutoencoderSpec = field(default_factory=AutoencoderSpec)


class Image(Modality):
    """shape: that of z_0 if it is the anchor: of its pixels, or of an autoencoder's latents."""

    kind = "image"
    Spec = ImageSpec
    metric = joint_metric = "rmse"
    extensions = EXTENSIONS
    mirrors = True
    bounded = True  # pixels are; latents have no bounds

    def __init__(self, name: str, spec: ImageSpec, space: SpaceShape) -> None:
        super().__init__(name, spec, space)
        check_colour(f"modalities.{name}.background", spec.background)
        self.pixels = (spec.channels, *height_width(spec.size))
        self.autoencoder = (
            Autoencoder(f"modalities.{name}.autoencoder", spec.autoencoder, self.pixels)
            if spec.autoencoder.network
            else None
        )
        self.shape = self.pixels if self.autoencoder is None else self.autoencoder.shape
        self.bounded = self.autoencoder is None
        self.channels = space.channels or spec.channels
        if self.channels % spec.channels and spec.encoder == "fixed":
            raise MmfastError(
                f"modalities.{name} has {spec.channels} channels, which do not fit {self.channels} shared ones"
            )
        self.conv = nn.Conv2d(spec.channels, self.channels, 3, padding=1) if spec.encoder == "learned" else None

    @classmethod
    def anchor_space(cls, spec: ImageSpec) -> SpaceShape:
        return SpaceShape(*height_width(spec.size))

    @property
    def z0_shape(self) -> tuple[int, int, int]:
        return self.shape

    def to_z0(self, x: Tensor) -> Tensor:
        """The pixels themselves, or their latents."""
        return x if self.autoencoder is None else self.autoencoder.encode(x)

    def from_z0(self, z0: Tensor) -> Tensor:
        return z0 if self.autoencoder is None else self.autoencoder.decode(z0)

    def from_encoding(self, encoding: Tensor) -> Tensor:
        return (encoding.unflatten(1, (-1, self.spec.channels)).mean(1) * self.spec.rms).clamp(-1, 1)

    def build_head(self, features: int) -> None:
        self.norm = base.head_norm(features)
        self.out = nn.Conv2d(features, self.spec.channels, 3, padding=1)

    def check(self, x: Tensor, where: str) -> None:
        base.check_floats(x, self.pixels, where)
        if x.numel() and float(x.abs().max()) > FAR:
            raise MmfastError(
                f"{where} runs from {float(x.min()):.3g} to {float(x.max()):.3g}; it should be in -1 .. 1"
            )

    def encode(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            return base.unit_rms(self.conv(x))
        # Divide by the data's scale, not each image's own, which would amplify a dark image.
        return x.repeat(1, self.channels // x.shape[1], 1, 1) / self.spec.rms

    def known_in_space(self, known: Tensor) -> Tensor:
        if self.conv is not None:
            self.check_encoder_keeps_parts()
        return known.repeat(1, self.channels // known.shape[1], 1, 1)

    def head(self, features: Tensor) -> Tensor:
        return self.out(self.norm(features))

    def nll(self, prediction: Tensor, x: Tensor) -> Tensor:
        squared = ((prediction - x) / self.spec.sigma).square()
        return (0.5 * squared + math.log(self.spec.sigma * math.sqrt(2 * math.pi))).flatten(1).sum(1)

    def loss(self, prediction: Tensor, x: Tensor) -> Tensor:
        return (prediction - x).square().flatten(1).mean(1)

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        return self.encode(prediction)

    def decode(self, prediction: Tensor) -> Tensor:
        return prediction.clamp(-1, 1)

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        return picture(x, size)

    def score(self, x: Tensor, truth: Tensor) -> float:
        return float((x - truth).square().mean().sqrt())

    @classmethod
    def read(cls, path: Path, spec: ImageSpec) -> Tensor:
        return read_image(path, spec.channels, spec.size, spec.background)

    @classmethod
    def from_picture(cls, picture: PILImage.Image, spec: ImageSpec, where: str) -> Tensor:
        return pixels_of(picture, spec.channels, spec.size, spec.background, where)

    def plain(self, x: Tensor) -> PILImage.Image:
        """A picture of mode L or RGB, at the image's own size."""
        return picture(x).convert("L" if self.spec.channels == 1 else "RGB")

    @classmethod
    def blank(cls, spec: ImageSpec) -> Tensor:
        return torch.zeros(spec.channels, *height_width(spec.size))


def picture(x: Tensor, size: int | None = None) -> PILImage.Image:
    """Pixels float [1 or 3, H, W] in -1 .. 1 as an RGB picture whose longer side is `size`; None keeps the size."""
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    found = PILImage.fromarray(np.ascontiguousarray(array))
    return found if size is None else fit(found, size)


def read_image(path: Path, channels: int, size: Size, background: str | None) -> Tensor:
    """Read a picture file as float [channels, height, width] in -1 .. 1, cropped to the middle and resized.

    background: the colour behind transparent pixels; None to keep colours as they are, whatever the alpha.
    """
    return pixels_of(load_picture(path), channels, size, background, path)


def pixels_of(
    picture: PILImage.Image, channels: int, size: Size, background: str | None, where: Path | str = "picture"
) -> Tensor:
    """Convert an upright picture as `read_image` does a file; errors name it `where`."""
    picture = middle_resized(grey_or_colour(picture, channels, background, where), size, PILImage.Resampling.LANCZOS)
    array = np.asarray(picture, dtype=np.float32).reshape(*height_width(size), -1)
    pixels = torch.from_numpy(array.copy()).permute(2, 0, 1).clamp(0, 255)
    return pixels.expand(channels, -1, -1) / 127.5 - 1
