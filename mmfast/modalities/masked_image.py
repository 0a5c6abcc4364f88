"""Hidden parts: an image of which only some blocks are visible, derived from the image itself, for restoration.

If it is given, generating the anchor is a restoration. Its head learns to restore the hidden parts in one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from mmfast import ops
from mmfast.errors import MmfastError
from mmfast.image_files import load_picture, middle_resized
from mmfast.modalities import base
from mmfast.modalities.base import Modality, SpaceShape, WeightSpec
from mmfast.modalities.image import picture, pixels_of
from mmfast.options import option
from mmfast.sizes import Size, height_width
from mmfast.streams import MASK, MASK_RATIO

# The least weight of visible pixels in a resized one.
LEAST = 1e-3


@dataclass
class MaskedSpec(base.Spec):
    """float [B, channels + 1, height, width]: the image in -1 .. 1, and last 1 where visible and 0 where hidden."""

    kind: str = "masked"
    weight: WeightSpec = field(default_factory=lambda: WeightSpec("none"))
    of: str = option("image", "the image whose parts are hidden; the anchor unless you name another")
    channels: int = option(3, "grey or colour", choices=(1, 3))
    size: Any = base.size_option()
    block: int = option(8, "side of a hidden block in pixels", min=1)
    ratios: list[float] = option([0.1, 0.75], "least and greatest share of hidden blocks", min=0, max=1)
    rms: float = option(0.5, "root mean square of the pixels; the encoding divides by it", above=0)
    sigma: float = option(0.1, "standard deviation of the Gaussian head", above=0)
    reads: str = base.reads_option("decoder")


class Masked(base.PictureHead, Modality):
    kind = "masked"
    Spec = MaskedSpec
    beside: ClassVar[dict[str, Any]] = {
        "loss_weight": 0.01,
        "given_probability": 0.75,
        "given_at_T": 0.5,
        "given_steps": 2,
    }
    of_anchor: ClassVar[dict[str, Any]] = {"given_probability": 0.0}  # given the image, nothing is left to restore
    metric = joint_metric = "rmse"
    extensions = (".png",)
    derived = restores = in_place = True
    mirrors = reads_levels = True

    def __init__(self, name: str, spec: MaskedSpec, space: SpaceShape) -> None:
        super().__init__(name, spec, space)
        self.source, self.reads = spec.of, spec.reads
        if space.channels is not None or spec.encoder != "fixed":
            raise MmfastError(f"modalities.{name} is masked, which needs space=own and encoder=fixed")
        if len(spec.ratios) != 2 or spec.ratios[0] > spec.ratios[1]:
            raise MmfastError(f"modalities.{name}.ratios is {spec.ratios}; it should be two shares, the smaller first")
        self.shape = (spec.channels + 1, *height_width(spec.size))
        self.channels = spec.channels + 1

    def derive(self, x: Tensor, seed: int, numbers: Tensor) -> Tensor:
        low, high = self.spec.ratios
        how: dict[str, Any] = {"seed": seed, "sample_ids": numbers, "stream": MASK_RATIO, "device": numbers.device}
        u = ops.random_words([len(numbers), 1], **how)[:, 0].double() / 2.0**32
        return self.hide(x, low + (high - low) * u, seed, numbers)

    def hide(self, x: Tensor, ratio: float | Tensor, seed: int, numbers: Tensor) -> Tensor:
        """Append to the image x [B, C, H, W] a plane that hides `ratio` (a number, or [B]) of its blocks.

        Which blocks are hidden is a function of (seed, number) and the ratio. Returns [B, C + 1, H, W].
        """
        _, seen = ops.block_mask(x[:, :1], ratio, self.spec.block, seed=seed, sample_ids=numbers, stream=MASK)
        return torch.cat((x, seen), 1)

    def build_head(self, features: Any) -> None:
        self.build_picture_head(features, self.spec.channels)

    def check(self, x: Tensor, where: str) -> None:
        base.check_floats(x, self.shape, where)

    def encode(self, x: Tensor) -> Tensor:
        """The visible pixels, zero elsewhere, and the plane that marks them. Hidden values have no effect."""
        image, seen = x[:, :-1], x[:, -1:]
        return torch.cat((torch.where(seen > 0, image / self.spec.rms, 0.0), seen * 2 - 1), 1)

    @property
    def shown_channels(self) -> int:
        return 1

    def reveal(self, anchor: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """Replace z_t's pixels by the visible ones, as at t = 0, and add a channel that is 1 where they are.

        So an image that is hidden altogether is the same as one that is not given: restoring it is generation.
        """
        image, seen = encoding[:, :-1], encoding[:, -1:] > 0
        return torch.where(seen, image * self.spec.rms, anchor), seen.to(anchor.dtype)

    def nll(self, prediction: Tensor, x: Tensor) -> Tensor:
        """Over the visible pixels: hidden ones are not part of x, and their places are drawn, not learnt."""
        squared = ((prediction - x[:, :-1]) / self.spec.sigma).square()
        each = 0.5 * squared + math.log(self.spec.sigma * math.sqrt(2 * math.pi))
        return (each * x[:, -1:]).flatten(1).sum(1)

    def loss(self, prediction: Tensor, x: Tensor) -> Tensor:
        """Over all pixels, including hidden ones, for restoration."""
        return (prediction - x[:, :-1]).square().flatten(1).mean(1)

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        return self.encode(self.decode(prediction))

    def decode(self, prediction: Tensor) -> Tensor:
        """The restored image, with all of it visible."""
        image = prediction.float().clamp(-1, 1)
        return torch.cat((image, torch.ones_like(image[:, :1])), 1)

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        """Show the visible pixels over a checkerboard of two greys."""
        step = max(1, self.spec.block // 4)
        rows, columns = (torch.arange(side, device=x.device) // step for side in x.shape[-2:])
        board = 0.15 * ((rows[:, None] + columns) % 2) - 0.4
        return picture(torch.where(x[-1:] > 0, x[:-1], board), size)

    def score(self, x: Tensor, truth: Tensor) -> float:
        """Root mean square difference of the images over the pixels that `truth` hides."""
        hidden = (truth[:, -1:] == 0).expand(-1, self.spec.channels, -1, -1)
        squared = (x[:, : self.spec.channels] - truth[:, :-1]).square()
        return float(squared[hidden].mean().sqrt()) if bool(hidden.any()) else 0.0

    @classmethod
    def read(cls, path: Path, spec: MaskedSpec) -> Tensor:
        """Read a picture; its transparent pixels are hidden."""
        return cls.from_picture(load_picture(path), spec, str(path))

    def check_given(self, x: Tensor, where: str) -> None:
        if bool(x[-1].all()):
            raise MmfastError(
                f"{where} hides nothing; it should be a PNG file that is transparent where the model should draw"
            )

    @classmethod
    def from_picture(cls, picture: PILImage.Image, spec: MaskedSpec, where: str) -> Tensor:
        if picture.mode == "La":  # Pillow converts it to nothing else
            picture = picture.convert("LA")
        seen, pixels = _opaque(picture, spec.size), pixels_of(picture, spec.channels, spec.size, None, where)
        if not bool(seen.all()):
            visible, weight = _visible(picture.convert("RGBA"), spec)
            pixels = torch.where(weight > LEAST, visible, pixels)
        return torch.cat((pixels, seen))

    def kept(self, source: Tensor, x: Tensor) -> Tensor:
        return torch.where(x[:, -1:] > 0, x[:, :-1].to(source.dtype), source)

    def plain(self, x: Tensor) -> PILImage.Image:
        """A picture that is transparent where the image is hidden."""
        image = picture(x[:-1] * (x[-1:] > 0))
        image.putalpha(PILImage.fromarray(((x[-1] > 0).cpu().numpy() * 255).astype(np.uint8)))
        return image

    @classmethod
    def blank(cls, spec: MaskedSpec) -> Tensor:
        return torch.zeros(spec.channels + 1, *height_width(spec.size))


def _visible(picture: PILImage.Image, spec: MaskedSpec) -> tuple[Tensor, Tensor]:
    """The resized pixels, so weighted that the colours of hidden ones do not count, and their weights [1, H, W]."""

    def resized(x: np.ndarray) -> Tensor:
        plane = middle_resized(PILImage.fromarray(x), spec.size, PILImage.Resampling.LANCZOS)
        return torch.from_numpy(np.array(plane, np.float32))[None]

    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    weight = resized(alpha)
    planes = picture.convert("L" if spec.channels == 1 else "RGB").split()
    values = torch.cat([resized(np.asarray(x, np.float32) * alpha) for x in planes]) / weight.clamp(min=LEAST)
    return (values.clamp(0, 255) / 127.5 - 1).expand(spec.channels, -1, -1), weight


def _opaque(picture: PILImage.Image, size: Size) -> Tensor:
    """1 where a picture is opaque, 0 where it is transparent: [1, height, width]."""
    alpha = middle_resized(picture.convert("RGBA").getchannel("A"), size, PILImage.Resampling.NEAREST)
    return torch.from_numpy((np.asarray(alpha) > 127).astype(np.float32))[None]
