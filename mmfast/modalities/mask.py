"""Masks: a class for each pixel."""

from __future__ import annotations

import colorsys
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor, nn

from mmfast.errors import MmfastError
from mmfast.image_files import check_colour, load_picture, middle_resized
from mmfast.mask_values import BLACK_AND_WHITE, CODINGS, class_numbers, coding_of, two_classes
from mmfast.metrics.similarity import mean_iou
from mmfast.modalities import base
from mmfast.modalities.base import Modality, SpaceShape
from mmfast.options import option
from mmfast.pictures import fit
from mmfast.sizes import height_width

# The value in x of pixels whose class is not known.
IGNORED = -1


@dataclass
class MaskSpec(base.Spec):
    """int64 [B, height, width] of class numbers, 0 being the background; -1 where a file holds `ignore`."""

    kind: str = "mask"
    classes: int = option(2, "how many classes, the background included", min=2)
    size: Any = base.size_option()
    ignore: int | None = option(
        None, "the value in a mask's file that marks pixels to ignore, as 255; null: none", min=0
    )
    values: str = option(
        "", "the coding of files of two classes, as 0/255; empty: that of most of the data", choices=("", *CODINGS)
    )
    colours: list[str] = option(
        [], "the colour of each class in the files, in order, such as '#ff0000'; empty: they hold class numbers"
    )
    reads: str = base.reads_option("decoder")


class Mask(base.PictureHead, Modality):
    kind = "mask"
    Spec = MaskSpec
    beside: ClassVar[dict[str, Any]] = {"weight": {"kind": "carried", "scale": 1.5}, "loss_weight": 0.1}
    of_anchor: ClassVar[dict[str, Any]] = {"given_probability": 0.85, "given_at_T": 1.0, "given_steps": 1}
    metric = joint_metric = "iou"
    discrete = True
    mirrors = reads_levels = True
    extensions = (".png", ".bmp", ".gif")

    def __init__(self, name: str, spec: MaskSpec, space: SpaceShape) -> None:
        # A mask passed to a model may be from anywhere, so its coding is found from itself alone.
        super().__init__(name, dataclasses.replace(spec, values=""), space)
        self.coding = spec.values  # of saved ones, so that they can be read as the others of the data
        self.channels, self.reads = space.channels or max(1, min(spec.classes - 1, 16)), spec.reads
        codes = base.code(spec.classes, self.channels)
        if spec.encoder == "learned":
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)

    @classmethod
    def anchor_space(cls, spec: MaskSpec) -> SpaceShape:
        return SpaceShape(*height_width(spec.size))

    def from_z0(self, z0: Tensor) -> Tensor:
        return base.nearest(z0, self._codes())

    def build_head(self, features: Any) -> None:
        self.build_picture_head(features, self.spec.classes)

    def check(self, x: Tensor, where: str) -> None:
        least = 0 if self.spec.ignore is None else IGNORED
        base.check_classes(x, height_width(self.spec.size), self.spec.classes, where, least)

    def _codes(self) -> Tensor:
        # All learned codes together have unit RMS: with unit RMS each, a single channel could hold only +1 and -1.
        return self.codes if self.spec.encoder == "fixed" else base.unit_rms(self.codes[None])[0]

    def encode(self, x: Tensor) -> Tensor:
        numbers = x if self.spec.ignore is None else x.clamp(min=0)
        return self.counted(F.embedding(numbers, self._codes()).permute(0, 3, 1, 2), x)

    def known_in_space(self, known: Tensor) -> Tensor:
        return known[:, None]

    def counted(self, encoding: Tensor, x: Tensor) -> Tensor:
        return encoding if self.spec.ignore is None else encoding * (x != IGNORED)[:, None]

    def nll(self, prediction: Tensor, x: Tensor) -> Tensor:
        return F.cross_entropy(prediction, x, reduction="none", ignore_index=IGNORED).flatten(1).sum(1)

    def loss(self, prediction: Tensor, x: Tensor) -> Tensor:
        """The mean over the pixels whose class is known."""
        if self.spec.ignore is None:
            return F.cross_entropy(prediction, x, reduction="none").flatten(1).mean(1)
        return self.nll(prediction, x) / (x != IGNORED).flatten(1).sum(1).clamp(min=1)

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        return torch.einsum("bkhw,kc->bchw", prediction.float().softmax(1), self._codes())

    def decode(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(1)

    def draw(self, prediction: Tensor, normal: Tensor) -> Tensor:
        return base.draw_class(prediction, normal)

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        colours = np.concatenate((shades(self.spec), np.array([UNKNOWN], np.uint8)))
        array = colours[x.cpu().numpy()]  # the last, at index -1, for ignored pixels
        return fit(PILImage.fromarray(array), size)

    def tally(self, x: Tensor) -> Tensor:
        return torch.bincount(x[x != IGNORED], minlength=self.spec.classes)

    def score(self, x: Tensor, truth: Tensor) -> float:
        """Intersection over union, over the whole batch: the mean over the classes except the background."""
        known = (x != IGNORED) & (truth != IGNORED)
        return mean_iou(x[known], truth[known], self.spec.classes)

    @classmethod
    def read(cls, path: Path, spec: MaskSpec) -> Tensor:
        return numbers_of(load_picture(path, "mask"), spec, path)

    @classmethod
    def from_picture(cls, picture: PILImage.Image, spec: MaskSpec, where: str) -> Tensor:
        return numbers_of(picture, spec, where)

    def plain(self, x: Tensor) -> PILImage.Image:
        """A picture of the class numbers, with a palette to show them; `ignore` where the class is not known.

        Black and white if the data's masks are.
        """
        ignored = 0 if self.spec.ignore is None else self.spec.ignore
        numbers = x.masked_fill(x == IGNORED, ignored).cpu().numpy()
        if self.coding == BLACK_AND_WHITE and not self.spec.colours and ignored <= 255:
            return PILImage.fromarray(np.where(x.cpu().numpy() == 1, 255, numbers).astype(np.uint8))
        if max(ignored, self.spec.classes - 1) > 255:
            return PILImage.fromarray(numbers.astype(np.uint16))
        picture = PILImage.fromarray(numbers.astype(np.uint8))
        colours = shades(self.spec)
        if self.spec.colours:  # that of what is ignored too, so that the picture can be read again
            colours = np.array(_rgb(tuple(self.spec.colours)), np.uint8)
        elif self.spec.ignore is not None:
            colours = np.concatenate((colours, np.full((256 - len(colours), 3), UNKNOWN[0], np.uint8)))
        picture.putpalette(colours.tobytes())
        return picture

    @classmethod
    def blank(cls, spec: MaskSpec) -> Tensor:
        return torch.zeros(*height_width(spec.size), dtype=torch.int64)


# The colour of pixels whose class is not known.
UNKNOWN = (128, 128, 128)


def palette(classes: int) -> np.ndarray:
    """uint8 [classes, 3]: near black for the background, then hues spread around the circle."""
    hues = [colorsys.hsv_to_rgb((0.47 + 0.618 * k) % 1.0, 0.65, 0.95) for k in range(classes - 1)]
    return (np.array([(0.08, 0.08, 0.12), *hues]) * 255).astype(np.uint8)


def shades(spec: MaskSpec) -> np.ndarray:
    """The colours to show the classes in, uint8 [classes, 3]: those of the files, or a palette."""
    if not spec.colours:
        return palette(spec.classes)
    return np.concatenate((np.array(_rgb(tuple(spec.colours)), np.uint8), palette(spec.classes)))[: spec.classes]


def coding(picture: PILImage.Image, spec: MaskSpec, path: Path | str) -> str:
    """The coding of an upright two-class mask; empty if it fits both, being black or having one bit per pixel.

    Raises MmfastError, naming it `path`, if it is not a two-class mask.
    """
    whole, known = _pixels(picture, spec, path)
    return coding_of(path, whole, known) if known.any() and picture.mode != "1" else ""


def _pixels(picture: PILImage.Image, spec: MaskSpec, path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """A mask's values, int32 [height, width], and which of them count, bool."""
    if spec.colours:
        whole = _by_colour(picture, tuple(spec.colours), path)
    else:
        whole = np.asarray(class_numbers(path, picture)).astype(np.int32)
    return whole, np.ones_like(whole, dtype=bool) if spec.ignore is None else whole != spec.ignore


def colour_codes(picture: PILImage.Image) -> np.ndarray:
    """The colour of each pixel as one number, 0xRRGGBB, int32 [height, width]."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.int32)
    return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]


@functools.lru_cache(256)
def _rgb(colours: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    found = tuple(check_colour("a mask's colours", colour) for colour in colours)
    if len({*found}) < len(found):
        raise MmfastError(f"a mask's colours are {', '.join(colours)}; each class should have one of its own")
    return found


def _by_colour(picture: PILImage.Image, colours: tuple[str, ...], path: Path | str) -> np.ndarray:
    """The number of each pixel's colour in the list, int32 [height, width]."""
    codes = np.array([r << 16 | g << 8 | b for r, g, b in _rgb(colours)], np.int32)
    seen, order = colour_codes(picture), np.argsort(codes)
    at = np.searchsorted(codes[order], seen).clip(max=len(codes) - 1)
    other = codes[order][at] != seen
    if other.any():
        raise MmfastError(
            f"{path} has the colour #{int(seen[other][0]):06x}, which is none of the mask's {len(colours)} colours; "
            "add it to modalities.NAME.colours, or repair the file"
        )
    return order[at].astype(np.int32)


def numbers_of(picture: PILImage.Image, spec: MaskSpec, path: Path | str) -> Tensor:
    """The class numbers of an upright picture, int64 [height, width]; errors name it `path`.

    Its grey or palette values are class numbers, or its colours are those of `spec.colours`. A two-class mask may also
    be black and white (any value above 127 is class 1), and must have the coding of `spec.values` if that is set.
    Pixels of the value `spec.ignore` become -1; no pixel can then have the class of that number.
    """
    whole, known = _pixels(picture, spec, path)
    values, classes = whole[known], spec.classes
    if classes == 2 and values.size and not spec.colours:
        values = two_classes(path, whole, "" if picture.mode == "1" else spec.values, known)[known]
    if values.size and values.min() < 0:
        raise MmfastError(f"{path} holds class {values.min()}; the mask has classes 0 .. {classes - 1}")
    if values.size and values.max() >= classes:
        raise MmfastError(f"{path} holds class {values.max()}; the mask has classes 0 .. {classes - 1}")
    whole = np.full_like(whole, IGNORED)
    whole[known] = values
    numbers = middle_resized(PILImage.fromarray(whole), spec.size, PILImage.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(numbers).astype(np.int64))
