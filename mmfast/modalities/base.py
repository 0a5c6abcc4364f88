"""The base class of modalities: encoder into the diffusion space, head out of it, loss, picture and score."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from mmfast.errors import MmfastError
from mmfast.image_files import load_picture, white
from mmfast.modalities.codes import code, draw_class, nearest, unit_rms
from mmfast.modalities.heads import PictureHead, Pooled, Reader, head_norm, one_head, reads_option
from mmfast.modalities.spec import Spec, WeightSpec, size_option
from mmfast.trust import source_digest

# What the files of kinds import from here.
__all__ = [
    "Modality",
    "PictureHead",
    "Pooled",
    "Reader",
    "SpaceShape",
    "Spec",
    "WeightSpec",
    "check_classes",
    "check_floats",
    "code",
    "draw_class",
    "head_norm",
    "nearest",
    "one_head",
    "reads_option",
    "size_option",
    "unit_rms",
]


@dataclass(frozen=True)
class SpaceShape:
    """The shape of a modality in the diffusion space: its grid, and its channels (None: as many as it needs)."""

    height: int
    width: int
    channels: int | None = None


class Modality(nn.Module):
    """One kind of data: x <-> the diffusion space.

    A subclass sets `kind` and its Spec; it is registered because its file is in this package. `channels` is the number
    of channels of an encoding. Encodings should have unit RMS, because the scale of W assumes it.

    `uniform` means that an encoding is the same at every pixel, [B, channels, 1, 1]. Only the decoder is conditioned on
    such a modality, never the encoder. `reads` specifies what the head reads: "decoder", the features of the pixels, or
    "encoder", the features from before any conditioning.
    """

    kind: ClassVar[str]
    Spec: ClassVar[type[Spec]]
    # Defaults in a config whose anchor is an image: its own, and the image's. They are measured: docs/configuration.md.
    beside: ClassVar[Mapping[str, Any]] = {}
    of_anchor: ClassVar[Mapping[str, Any]] = {}
    # The name of its score against the truth, and between two generated modalities.
    metric: ClassVar[str]
    joint_metric: ClassVar[str]

    # The suffixes of the files that `read` reads.
    extensions: ClassVar[tuple[str, ...]] = ()

    # Options that are measured on the training data and stored with a run, whose weights depend on these units.
    statistics: ClassVar[tuple[str, ...]] = ()
    # Whether x is derived from another modality, `source`, by `derive`, instead of being read from the data.
    derived: ClassVar[bool] = False
    # Whether x has finitely many values. Then nll is of a probability, else of a density, whose value depends on the
    # unit of x.
    discrete: ClassVar[bool] = False
    # Whether the head restores more than is given, so that its loss counts even where the modality is given.
    restores: ClassVar[bool] = False
    # Whether it is diffused itself, without a head of its kind (mmfast.modalities.diffused).
    diffused: ClassVar[bool] = False
    # Whether z_0 is in -1 .. 1, as pixels are, if it is the anchor. A sampler can then clamp it.
    bounded: bool = False
    # Whether its known pixels replace those of the anchor (`reveal`): they are at time 0 and the rest at t, and it has
    # no other time.
    in_place: ClassVar[bool] = False

    # Whether a head that reads the encoder gets all of its levels, for pictures, instead of their averages.
    reads_levels: ClassVar[bool] = False

    # Whether the last axis of x runs from left to right, so that x.flip(-1) is its mirror image.
    mirrors: ClassVar[bool] = False

    channels: int
    source: str = ""
    uniform: bool = False
    reads: str = "decoder"

    def __init__(self, name: str, spec: Any, space: SpaceShape) -> None:
        super().__init__()
        self.name = name
        self.spec = spec

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Modality:
        """Stay in float32 if a model is cast (.half(), .double()): it is small, and sampling steps are float32."""

        def moved(x: Tensor) -> Tensor:
            found = fn(x)
            return found if found.dtype == x.dtype else x.to(found.device)

        return super()._apply(moved, recurse)

    @classmethod
    def anchor_space(cls, spec: Any) -> SpaceShape:
        """The grid of the diffusion space if it is the anchor. Raises MmfastError if it cannot be the anchor."""
        raise MmfastError(f"anchor is of kind {cls.kind}, which has no diffusion space; choose another modality")

    @property
    def z0_shape(self) -> tuple[int, int, int]:
        """[channels, H, W] of z_0 if it is the anchor."""
        grid = self.anchor_space(self.spec)
        return self.channels, grid.height, grid.width

    def to_z0(self, x: Tensor) -> Tensor:
        """x as the anchor's z_0, [B, channels, H, W]: its encoding, unless the kind overrides this."""
        return self.encode(x)

    def from_z0(self, z0: Tensor) -> Tensor:
        """The x nearest to a generated z_0: the inverse of `to_z0`."""
        raise NotImplementedError

    def from_encoding(self, encoding: Tensor) -> Tensor:
        """The x whose encoding by a fixed encoder is nearest: the inverse of `encode`."""
        return self.from_z0(encoding)

    @property
    def fits(self) -> bool:
        """Whether it is fitted to the training data before the first step (`fit`)."""
        return False

    def fit(self, x: Tensor) -> None:
        """Compute from training examples x [n, ...] what the encoder needs and gradient descent does not find."""

    def build_head(self, features: Any) -> None:
        """Create the head, whose input (what it `reads`) has this many channels or numbers; a tuple for levels."""
        raise NotImplementedError

    def check(self, x: Tensor, where: str) -> None:
        """Raise MmfastError if x (on the host, [B, ...]) is not a valid batch; `where` names it."""
        raise NotImplementedError

    def check_given(self, x: Tensor, where: str) -> None:
        """Raise MmfastError if x [...], of a text, file or picture, says nothing when it is given; `where` names it."""

    def derive(self, x: Tensor, seed: int, numbers: Tensor) -> Tensor:
        """Derive this modality from its source x [B, ...], as a function of (seed, number); numbers: int64 [B]."""
        raise NotImplementedError

    def kept(self, source: Tensor, x: Tensor) -> Tensor:
        """What this modality is made from, as it was drawn, with the parts that x shows of it in their places."""
        return source

    def encode(self, x: Tensor) -> Tensor:
        """E(x): [B, channels, H or 1, W or 1], unit RMS."""
        raise NotImplementedError

    def encode_part(self, x: Tensor) -> Tensor:
        """E of an x that is known in part. Where x is not known, it and E may be anything."""
        return self.encode(x)

    def known_in_space(self, known: Tensor) -> Tensor:
        """Where E(x) is known if x is known in part: bool [B, ...] of x's shape -> bool that broadcasts to E(x)'s.

        Raises MmfastError for a kind without parts, and for an encoder that mixes them.
        """
        raise MmfastError(f"known has {self.name}, a {self.kind}, which has no parts; give all of it")

    def in_part(self, value: Any) -> tuple[Tensor, Tensor] | None:
        """x [...] and what is known of it, bool [...], from a value that specifies part of x; None for any other."""
        return None

    def parse_known(self, text: str) -> Tensor:
        """Parse what is known of x, bool [...], from the command line (`--known name=text`).

        For pictures: the path of a picture that is white where x is known. For numbers: their places, as 0-31,40.
        """
        blank = self.blank(self.spec)
        if blank.dim() == 0:
            raise MmfastError(f"known has {self.name}, a {self.kind}, which has no parts; give all of it")
        if blank.dim() > 1:
            there = white(load_picture(Path(text), "mask"), blank.shape[-2:])
            return torch.from_numpy(there).expand(blank.shape).clone()
        known = torch.zeros(blank.shape, dtype=torch.bool)
        for span in text.split(","):
            low, _, high = span.partition("-")
            first, last = low.strip(), (high or low).strip()
            if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < max(1, blank.numel())):
                raise MmfastError(
                    f"known {self.name}={text}: {span!r} is not a place; it should be in 0 .. {blank.numel() - 1}, "
                    "as 0-3"
                )
            known[int(first) : int(last) + 1] = True
        return known

    def check_encoder_keeps_parts(self) -> None:
        """Raise MmfastError if the encoder is learned, because it mixes the parts of x."""
        if self.spec.encoder != "fixed":
            raise MmfastError(
                f"known has {self.name}, whose learned encoder mixes its parts; give all of it, or train with "
                f"modalities.{self.name}.encoder=fixed"
            )

    def counted(self, encoding: Tensor, x: Tensor) -> Tensor:
        """An encoding of x, or of a prediction of x, with zeros where x is ignored."""
        return encoding

    @property
    def shown_channels(self) -> int:
        """The channels that the network sees of it in addition to the anchor's, if it leaves no trace in z_t."""
        return self.channels

    def reveal(self, anchor: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees of a given modality that leaves no trace in z_t.

        anchor: the anchor's block [B, C, H, W] as the network sees it; encoding: zero in examples where this modality
        is not given. Returns the block, with known pixels inserted, and the additional channels.
        """
        return anchor, encoding

    def head(self, features: Any) -> Tensor:
        """D(features): [B, F, H, W], or [B, F] or levels from the encoder -> the parameters of p(x | z_t)."""
        raise NotImplementedError

    def nll(self, prediction: Tensor, x: Tensor) -> Tensor:
        """-ln p(x | z_t) in nats, [B]: this modality's part of L2."""
        raise NotImplementedError

    def loss(self, prediction: Tensor, x: Tensor) -> Tensor:
        """The training loss [B]: nll as a mean over what is predicted, so that loss_weight does not depend on sizes."""
        raise NotImplementedError

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        """E(xhat): the expected encoding under the head's distribution."""
        raise NotImplementedError

    def decode(self, prediction: Tensor) -> Tensor:
        """xhat: the most likely x."""
        raise NotImplementedError

    def draw(self, prediction: Tensor, normal: Tensor) -> Tensor:
        """Sample x from the head's distribution, a Gaussian; normal: standard normals of the prediction's shape."""
        return self.decode(prediction.float() + self.spec.sigma * normal)

    def prior(self) -> Tensor | None:
        """The head's prediction if nothing is known of an example, [1, ...]; None if only the network can tell."""
        return None

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        """One x (without the batch dimension) as an RGB picture whose longer side has about `size` pixels."""
        raise NotImplementedError

    def overview(self, x: Tensor, real: Tensor) -> PILImage.Image | None:
        """A picture that compares many x with real ones; None if each is better shown alone."""
        return None

    def distances(self, x: Tensor, real: Tensor) -> dict[str, float]:
        """Distances of many x from real ones, by the name of the measure; {} if the kind has none."""
        return {}

    def tally(self, x: Tensor) -> Tensor | None:
        """How often each class occurs in x, int64 [classes]; None if there are no classes."""
        return None

    def class_name(self, k: int) -> str:
        """The name of class k."""
        return str(k)

    def score(self, x: Tensor, truth: Tensor) -> float:
        """How well x agrees with the truth over the batch, as `metric`."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path, spec: Any) -> Tensor:
        """One x from a file. Raises MmfastError naming it."""
        raise NotImplementedError

    @classmethod
    def read_by(cls, spec: Any) -> str:
        """A hash of the code from other packages that `read` uses; empty if it uses only this package's."""
        return "" if cls.__module__.startswith("mmfast.") else source_digest(cls.__module__)

    @classmethod
    def from_text(cls, text: str, spec: Any, where: str) -> Tensor:
        """One x from a cell of a table, stripped of spaces. Raises MmfastError, naming it `where`."""
        raise MmfastError(f"{where}: {text!r} is a cell of a table, which cannot be converted to kind {cls.kind}")

    @classmethod
    def check_text(cls, text: str, spec: Any, where: str) -> None:
        """Raise MmfastError, naming it `where`, for a text that `from_text` does not accept."""
        cls.from_text(text, spec, where)

    @classmethod
    def blank(cls, spec: Any) -> Tensor:
        """The placeholder for a missing x."""
        raise NotImplementedError

    @classmethod
    def from_picture(cls, picture: PILImage.Image, spec: Any, where: str) -> Tensor:
        """One x from an upright picture. Raises MmfastError, naming it `where`."""
        raise MmfastError(f"{where} is a picture, which cannot be converted to kind {cls.kind}")

    def plain(self, x: Tensor) -> PILImage.Image | str | np.ndarray | dict[str, float]:
        """One x in the form of its files, which `read` reads: a picture, a name, an array or a row by column."""
        return x.cpu().numpy()

    def values(self, text: str) -> list[str]:
        """Split a text of several values, separated by commas, into texts for `parse`; a file's name is one value."""
        return [text] if os.path.exists(text) else text.split(",")

    def parse(self, text: str) -> Tensor:
        """One x from the command line (`--given name=text`): a file's path, unless the kind has a shorter form."""
        return self.read(Path(text), self.spec)


def check_floats(x: Tensor, shape: tuple[int, ...], where: str) -> None:
    """Raise MmfastError unless x is floating point, of shape [B, *shape], and finite."""
    if tuple(x.shape[1:]) != shape or not x.is_floating_point():
        raise MmfastError(f"{where} is {x.dtype} {list(x.shape)}; it should be float [B, {', '.join(map(str, shape))}]")
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise MmfastError(f"{where} holds NaN or infinite values (example {row} of the batch); fix or drop it")


def check_classes(x: Tensor, shape: tuple[int, ...], classes: int, where: str, least: int = 0) -> None:
    """Raise MmfastError unless x is int64 [B, *shape] with values in least .. classes - 1."""
    if tuple(x.shape[1:]) != shape or x.dtype != torch.int64:
        raise MmfastError(f"{where} is {x.dtype} {list(x.shape)}; it should be int64 {['B', *shape]}")
    if x.numel() and (int(x.min()) < least or int(x.max()) >= classes):
        raise MmfastError(
            f"{where} runs from {int(x.min())} to {int(x.max())}; it should be in {least} .. {classes - 1}"
        )
