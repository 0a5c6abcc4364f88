"""What a modality is: its encoder into the diffusion space, its head out of it, its loss, picture and score."""

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
from mmfast.modalities.heads import Pooled, Reader, head_norm, one_head, reads_option
from mmfast.modalities.spec import Spec, WeightSpec, size_option
from mmfast.trust import source_digest

# What a kind's own file takes from here.
__all__ = [
    "Modality",
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
    """The shape a modality has in the diffusion space: its grid, and its channels (None: as many as it wants)."""

    height: int
    width: int
    channels: int | None = None


class Modality(nn.Module):
    """One kind of data: x <-> the diffusion space.

    A subclass sets `kind` and its Spec, and is registered by its file being in this package. `channels` is the
    number of channels that `encode` makes. Encodings have unit RMS, or the scale of W would mean nothing.

    `uniform` says that an encoding is the same at every pixel, [B, channels, 1, 1]: of such a modality the decoder is
    told, and the encoder never. `reads` says what the head reads: "decoder", the pixels' features, or "encoder", what
    was seen before anything was told.
    """

    kind: ClassVar[str]
    Spec: ClassVar[type[Spec]]
    # Defaults in a config that has it beside an image, its anchor: its own, and the image's. The measured presets'.
    beside: ClassVar[Mapping[str, Any]] = {}
    of_anchor: ClassVar[Mapping[str, Any]] = {}
    # How a score is called, against the truth and between two generated modalities.
    metric: ClassVar[str]
    joint_metric: ClassVar[str]

    # The endings of the files that `read` reads.
    extensions: ClassVar[tuple[str, ...]] = ()

    # Options that are found in the training data and that a run keeps: what it has learnt is in their units.
    statistics: ClassVar[tuple[str, ...]] = ()
    # Whether x is made from another modality, `source`, by `derive`, and not read from the data.
    derived: ClassVar[bool] = False
    # Whether x has finitely many values: nll is then of a probability, else of a density, whose sign and size hang on
    # the unit of x.
    discrete: ClassVar[bool] = False
    # Whether the head restores more than is given, so that its loss counts where the modality is given, too.
    restores: ClassVar[bool] = False
    # Whether it is diffused itself, without a head of its kind (mmfast.modalities.diffused).
    diffused: ClassVar[bool] = False
    # Whether z_0 lies in -1 .. 1, as pixels do, where it is the anchor: a sampler can then hold it there.
    bounded: bool = False
    # Whether what is seen of it stands in the anchor's own pixels (`reveal`): they are at time 0, the rest at t, and
    # nothing else of it has a time.
    in_place: ClassVar[bool] = False

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
        """Keep float32 where a model is cast (.half(), .double()): it is small, and steps are float32."""

        def moved(x: Tensor) -> Tensor:
            found = fn(x)
            return found if found.dtype == x.dtype else x.to(found.device)

        return super()._apply(moved, recurse)

    @classmethod
    def anchor_space(cls, spec: Any) -> SpaceShape:
        """The grid of the diffusion space where it is the anchor. Raises MmfastError where it cannot be."""
        raise MmfastError(f"anchor is a {cls.kind}, from which no space can be made; choose another modality")

    @property
    def z0_shape(self) -> tuple[int, int, int]:
        """[channels, H, W] of z_0 where it is the anchor."""
        grid = self.anchor_space(self.spec)
        return self.channels, grid.height, grid.width

    def to_z0(self, x: Tensor) -> Tensor:
        """x as the anchor's z_0, [B, channels, H, W]: its encoding, unless the kind says another."""
        return self.encode(x)

    def from_z0(self, z0: Tensor) -> Tensor:
        """The x nearest to a z_0 that was generated: the inverse of `to_z0`."""
        raise NotImplementedError

    def from_encoding(self, encoding: Tensor) -> Tensor:
        """The x whose encoding, by a fixed encoder, is the nearest: the inverse of `encode`."""
        return self.from_z0(encoding)

    @property
    def fits(self) -> bool:
        """Whether it takes something of the training data before the first step (`fit`)."""
        return False

    def fit(self, x: Tensor) -> None:
        """Take from training examples x [n, ...] what the encoder needs and no gradient finds."""

    def build_head(self, features: int) -> None:
        """Make the head for a backbone that returns this many channels (or numbers) of what it `reads`."""
        raise NotImplementedError

    def check(self, x: Tensor, where: str) -> None:
        """Raise MmfastError if x (on the host, [B, ...]) is no valid batch; `where` names it."""
        raise NotImplementedError

    def derive(self, x: Tensor, seed: int, numbers: Tensor) -> Tensor:
        """This modality made from its source x [B, ...]: a function of (seed, number), numbers int64 [B]."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """E(x): [B, channels, H or 1, W or 1], unit RMS."""
        raise NotImplementedError

    def encode_part(self, x: Tensor) -> Tensor:
        """E of an x that is given in part: where it is not known it may be anything, and so may E."""
        return self.encode(x)

    def known_in_space(self, known: Tensor) -> Tensor:
        """Where E(x) holds what is known of x: bool [B, ...] of x's shape -> bool that broadcasts to E(x)'s.

        Raises MmfastError for a kind without parts, and for an encoder that mixes them.
        """
        raise MmfastError(f"known has {self.name}, a {self.kind}, which has no parts; give all of it")

    def in_part(self, value: Any) -> tuple[Tensor, Tensor] | None:
        """x [...] and what is known of it, bool [...], of a value that says a part of x; None for any other."""
        return None

    def parse_known(self, text: str) -> Tensor:
        """What is known of x, bool [...], from the command line (`--known name=text`).

        Of a picture: a picture's path, white where it is known. Of numbers: their places from 0, as 0-31,40.
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
                    f"known {self.name}={text}: {span!r} is no place; it should lie in 0 .. {blank.numel() - 1}, as 0-3"
                )
            known[int(first) : int(last) + 1] = True
        return known

    def check_encoder_keeps_parts(self) -> None:
        """Raise MmfastError where a learned encoder mixes the parts of x."""
        if self.spec.encoder != "fixed":
            raise MmfastError(
                f"known has {self.name}, whose learned encoder mixes its parts; give all of it, or train with "
                f"modalities.{self.name}.encoder=fixed"
            )

    def counted(self, encoding: Tensor, x: Tensor) -> Tensor:
        """An encoding, of x or of what is predicted of it, with zeros where x is not known and so counts nowhere."""
        return encoding

    @property
    def shown_channels(self) -> int:
        """The channels in which the network sees it, beside the anchor's, where it leaves no trace in z_t."""
        return self.channels

    def reveal(self, anchor: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees of what is given, where it leaves no trace in z_t.

        anchor: its block [B, C, H, W] as the network sees it; encoding: zero in the examples that are not given it.
        Returns that block, with what is known of it in its place, and the channels beside it.
        """
        return anchor, encoding

    def head(self, features: Tensor) -> Tensor:
        """D(features): [B, F, H, W], or [B, F] of the encoder -> the parameters of p(x | z_t)."""
        raise NotImplementedError

    def nll(self, prediction: Tensor, x: Tensor) -> Tensor:
        """-ln p(x | z_t) in nats, [B]: this modality's part of L2."""
        raise NotImplementedError

    def loss(self, prediction: Tensor, x: Tensor) -> Tensor:
        """The training loss [B]: nll as a mean over what is predicted, so that loss_weight keeps its meaning."""
        raise NotImplementedError

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        """E(xhat): the expected encoding under the head's distribution."""
        raise NotImplementedError

    def decode(self, prediction: Tensor) -> Tensor:
        """xhat: the likeliest x."""
        raise NotImplementedError

    def draw(self, prediction: Tensor, normal: Tensor) -> Tensor:
        """x drawn from the head's distribution, a Gaussian; normal: standard normals of the prediction's shape."""
        return self.decode(prediction.float() + self.spec.sigma * normal)

    def prior(self) -> Tensor | None:
        """What the head should predict if nothing is known of an example, [1, ...]; None: only the network can say."""
        return None

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        """One x (without the batch dimension) as an RGB picture, the longer side of which has about `size` pixels."""
        raise NotImplementedError

    def overview(self, x: Tensor, real: Tensor) -> PILImage.Image | None:
        """A picture of many x beside real ones; None where each is better seen alone."""
        return None

    def distances(self, x: Tensor, real: Tensor) -> dict[str, float]:
        """How far many x lie from real ones, by the measure's name; {} where the kind has no such measure."""
        return {}

    def tally(self, x: Tensor) -> Tensor | None:
        """How often each class stands in x, int64 [classes]; None where there are no classes."""
        return None

    def class_name(self, k: int) -> str:
        """How class k is called."""
        return str(k)

    def score(self, x: Tensor, truth: Tensor) -> float:
        """How well x agrees with the truth, over the batch: `metric`."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path, spec: Any) -> Tensor:
        """One x from a file. Raises MmfastError naming it."""
        raise NotImplementedError

    @classmethod
    def read_by(cls, spec: Any) -> str:
        """A hash of the code from elsewhere by which `read` reads; empty where all of it is this package's."""
        return "" if cls.__module__.startswith("mmfast.") else source_digest(cls.__module__)

    @classmethod
    def from_text(cls, text: str, spec: Any, where: str) -> Tensor:
        """One x from a cell of a table, without spaces around it. Raises MmfastError, which calls it `where`."""
        raise MmfastError(f"{where}: {text!r} is a cell of a table, of which no {cls.kind} can be made")

    @classmethod
    def check_text(cls, text: str, spec: Any, where: str) -> None:
        """Raise MmfastError, which calls it `where`, for a text of which `from_text` makes no x."""
        cls.from_text(text, spec, where)

    @classmethod
    def blank(cls, spec: Any) -> Tensor:
        """What stands for one x that is missing."""
        raise NotImplementedError

    @classmethod
    def from_picture(cls, picture: PILImage.Image, spec: Any, where: str) -> Tensor:
        """One x from a picture, upright as a file's is. Raises MmfastError, which calls it `where`."""
        raise MmfastError(f"{where} is a picture, of which no {cls.kind} can be made")

    def plain(self, x: Tensor) -> PILImage.Image | str | np.ndarray | dict[str, float]:
        """One x as a person has it, a picture, a name, an array or a row by column: what `read` reads from its file."""
        return x.cpu().numpy()

    def values(self, text: str) -> list[str]:
        """The values in a text of several, with commas between them, each for `parse`; a file's name is one."""
        return [text] if os.path.exists(text) else text.split(",")

    def parse(self, text: str) -> Tensor:
        """One x from the command line (`--given name=text`): a file's path, unless the kind has a shorter form."""
        return self.read(Path(text), self.spec)


def check_floats(x: Tensor, shape: tuple[int, ...], where: str) -> None:
    """Raise MmfastError unless x is floating, of [B, *shape] and finite."""
    if tuple(x.shape[1:]) != shape or not x.is_floating_point():
        raise MmfastError(f"{where} is {x.dtype} {list(x.shape)}; it should be float [B, {', '.join(map(str, shape))}]")
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise MmfastError(f"{where} holds NaN or infinite values (example {row} of the batch); mend or drop it")


def check_classes(x: Tensor, shape: tuple[int, ...], classes: int, where: str, least: int = 0) -> None:
    """Raise MmfastError unless x is int64 [B, *shape] with values in least .. classes - 1."""
    if tuple(x.shape[1:]) != shape or x.dtype != torch.int64:
        raise MmfastError(f"{where} is {x.dtype} {list(x.shape)}; it should be int64 {['B', *shape]}")
    if x.numel() and (int(x.min()) < least or int(x.max()) >= classes):
        raise MmfastError(
            f"{where} runs from {int(x.min())} to {int(x.max())}; it should lie in {least} .. {classes - 1}"
        )
