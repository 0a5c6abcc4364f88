"""Labels: one class per example."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor, nn

from mmfast import files
from mmfast.errors import MmfastError
from mmfast.modalities import base
from mmfast.modalities.base import Modality, SpaceShape
from mmfast.options import option
from mmfast.pictures import text_tile


@dataclass
class LabelSpec(base.Spec):
    """int64 [B] of class numbers."""

    kind: str = "label"
    classes: int = option(10, "how many classes", min=1)
    names: list[str] = option([], "the classes' names, shown in pictures and taken by --given")
    class_counts: list[int] = option(
        [], "training examples of each class, by which `first` draws a label if nothing is given; empty: counted"
    )
    reads: str = base.reads_option()


class Label(Modality):
    kind = "label"
    Spec = LabelSpec
    beside: ClassVar[dict[str, Any]] = {"weight": {"kind": "none"}, "loss_weight": 0.06, "given_probability": 0.95}
    metric, joint_metric = "accuracy", "agreement"
    discrete = True
    extensions = (".txt",)

    def __init__(self, name: str, spec: LabelSpec, space: SpaceShape) -> None:
        super().__init__(name, spec, space)
        if spec.names and len(spec.names) != spec.classes:
            raise MmfastError(
                f"modalities.{name}.names has {len(spec.names)} names; it should have {spec.classes}, one a class"
            )
        check_counts(spec, f"modalities.{name}.class_counts")
        # In its own channels a label is a point of a simplex, the same at every pixel. Shared channels are too few for
        # that, so there it is a pattern over the whole grid.
        self.channels = space.channels or max(1, min(spec.classes - 1, 16))
        grid = (space.height, space.width) if space.channels else (1, 1)
        self.uniform, self.reads = space.channels is None, spec.reads
        codes = base.code(spec.classes, self.channels * grid[0] * grid[1]).unflatten(1, (self.channels, *grid))
        if spec.encoder == "learned":
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)

    @classmethod
    def anchor_space(cls, spec: LabelSpec) -> SpaceShape:
        return SpaceShape(1, 1)

    def from_z0(self, z0: Tensor) -> Tensor:
        return base.nearest(z0, self._codes().flatten(1))[:, 0, 0]

    def build_head(self, features: int) -> None:
        self.out = base.one_head(self.reads, features, self.spec.classes)

    def check(self, x: Tensor, where: str) -> None:
        base.check_classes(x, (), self.spec.classes, where)

    def _codes(self) -> Tensor:
        # All learned codes together have unit RMS: with unit RMS each, a single channel could hold only +1 and -1.
        return self.codes if self.spec.encoder == "fixed" else base.unit_rms(self.codes[None])[0]

    def encode(self, x: Tensor) -> Tensor:
        return self._codes()[x]

    def head(self, features: Tensor) -> Tensor:
        return self.out(features)

    def nll(self, prediction: Tensor, x: Tensor) -> Tensor:
        return F.cross_entropy(prediction, x, reduction="none")

    def loss(self, prediction: Tensor, x: Tensor) -> Tensor:
        return self.nll(prediction, x)

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        return torch.einsum("bk,kchw->bchw", prediction.float().softmax(1), self._codes())

    def decode(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(1)

    def draw(self, prediction: Tensor, normal: Tensor) -> Tensor:
        return base.draw_class(prediction, normal)

    def prior(self) -> Tensor | None:
        return torch.tensor([self.spec.class_counts]).float().log() if self.spec.class_counts else None

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        return text_tile(self.class_name(int(x)), size)

    def tally(self, x: Tensor) -> Tensor:
        return torch.bincount(x.flatten(), minlength=self.spec.classes)

    def class_name(self, k: int) -> str:
        return self.spec.names[k] if self.spec.names else str(k)

    def score(self, x: Tensor, truth: Tensor) -> float:
        return float((x == truth).float().mean())

    @classmethod
    def read(cls, path: Path, spec: LabelSpec) -> Tensor:
        return number(read_text(path), spec, str(path))

    @classmethod
    def from_text(cls, text: str, spec: LabelSpec, where: str) -> Tensor:
        return number(text, spec, where)

    @classmethod
    def blank(cls, spec: LabelSpec) -> Tensor:
        return torch.tensor(0)

    def plain(self, x: Tensor) -> str:
        """The class's name, or its number if it has none, or shares it with another class."""
        name = self.class_name(int(x))
        return name if self.spec.names.count(name) < 2 else str(int(x))

    def values(self, text: str) -> list[str]:
        """Split at commas; "all" means every class. A text that is the name of a class is that class."""
        if text in self.spec.names:
            return [text]
        if text != "all":
            return [x if x in self.spec.names else x.strip() for x in text.split(",")]
        # By number, unless some class has that number as its name.
        return [self.class_name(k) if str(k) in self.spec.names else str(k) for k in range(self.spec.classes)]

    def parse(self, text: str) -> Tensor:
        return number(text, self.spec, f"{self.name}={text}")


# The longest label file, in bytes.
LONGEST = 2**20
# How many names an error lists.
SHOWN = 20


def check_counts(spec: LabelSpec, where: str) -> None:
    """Raise MmfastError, naming them `where`, unless there is one count per class and at least one is above 0."""
    counts = spec.class_counts
    if counts and (len(counts) != spec.classes or min(counts) < 0 or not any(counts)):
        shown = f"[{', '.join(map(str, counts[:5]))}{', ...' if len(counts) > 5 else ''}]"
        raise MmfastError(
            f"{where} is {shown}, of length {len(counts)}; it should have {spec.classes} numbers from 0, one a class, "
            "one of them above 0"
        )


def counted(spec: LabelSpec, classes: Iterable[int | str]) -> dict[str, Any]:
    """The option `class_counts` of a label whose training examples have these classes, numbers or texts.

    {} if the label has the option already, if there are no examples, or if one is not a class, which reading reports.
    """
    counts = [0] * spec.classes
    try:
        for value, count in ({} if spec.class_counts else Counter(classes)).items():
            # A number is that class, whatever the names of the classes.
            k = int(number(value, spec, "class_counts")) if isinstance(value, str) else operator.index(value)
            counts[k if k >= 0 else spec.classes] += count
    except (MmfastError, IndexError, TypeError):
        return {}
    return {"class_counts": counts} if any(counts) else {}


def read_text(path: Path, what: str = "label") -> str:
    """The text of a file, which should be a `what`. Raises MmfastError naming the file."""
    try:
        return files.read_text(path, LONGEST).removeprefix("\ufeff").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MmfastError(f"{path} cannot be read as a {what}: {error}") from None


def is_class(text: str, spec: LabelSpec) -> bool:
    """Whether a text is the number or name of a class."""
    try:
        number(text, spec, "")
    except MmfastError:
        return False
    return True


def number(text: str, spec: LabelSpec, where: str) -> Tensor:
    """A class given by number or name. Raises MmfastError if it is neither, or a name that several classes share."""
    if text in spec.names:
        if spec.names.count(text) > 1:
            numbers = [str(k) for k, name in enumerate(spec.names) if name == text]
            raise MmfastError(f"{where}: {text!r} is the name of classes {', '.join(numbers)}; it should be a number")
        return torch.tensor(spec.names.index(text))
    if text.isdecimal() and len(text) <= 9 and int(text) < spec.classes:
        return torch.tensor(int(text))
    names = f" or one of {', '.join(spec.names[:SHOWN])}{', ...' if len(spec.names) > SHOWN else ''}"
    names = names if spec.names else ""
    text = text if len(text) <= 40 else f"{text[:40]}..."
    raise MmfastError(f"{where}: {text!r} is not a label; it should be in 0 .. {spec.classes - 1}{names}")
