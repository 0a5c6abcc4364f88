"""Embeddings: one vector per example, such as a pretrained network returns."""

from __future__ import annotations

import math
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor, nn

from mmfast.errors import MmfastError
from mmfast.files import check_regular
from mmfast.modalities import base
from mmfast.modalities.base import Modality, SpaceShape
from mmfast.modalities.components import Components
from mmfast.options import option

# The longest header of a .npy file, in bytes: NumPy's own limit.
LONGEST_HEADER = 10_000


@dataclass
class EmbeddingSpec(base.Spec):
    """float [B, dim]; only the direction counts, except with components."""

    kind: str = "embedding"
    dim: int = option(384, "length of the vector", min=1)
    components: int | None = option(
        None,
        "diffuse this many principal components of the training vectors, which keeps their lengths, and convert them "
        "back; null: the vector itself, of which only the direction counts",
        min=1,
    )
    layout: str = option(
        "grid", "a fixed encoding puts each number in a cell of the grid, or in a channel", choices=("grid", "channels")
    )
    network: str = option("", "network that computes it from the anchor (mmfast.metrics.features); empty: the data's")
    sigma: float = option(0.1, "standard deviation of the Gaussian head", above=0)
    reads: str = base.reads_option()


class Embedding(Modality):
    kind = "embedding"
    Spec: ClassVar[type[base.Spec]] = EmbeddingSpec
    beside: ClassVar[dict[str, Any]] = {"weight": {"kind": "none"}, "loss_weight": 0.01, "given_probability": 0.5}
    of_anchor: ClassVar[dict[str, Any]] = {"given_at_T": 0.8, "given_steps": 1}
    proj: nn.Module | None
    # Principal components, which are encoded and predicted instead of the vector; None without.
    reduced: Components | None
    metric = joint_metric = "cosine"
    extensions = (".npy",)

    def __init__(self, name: str, spec: Any, space: SpaceShape) -> None:
        super().__init__(name, spec, space)
        self.grid = (space.height, space.width)
        cells = space.height * space.width
        self.reduced = self._components(name, spec)
        # How many numbers represent a vector in the diffusion space.
        numbers = self.numbers = spec.components or spec.dim
        # Fixed: the vector is laid out over the grid, each number in its own cell, or over channels, the same at every
        # pixel. Learned: a projection, the same at every pixel (over the whole grid in shared channels).
        fixed = spec.encoder == "fixed"
        if fixed and spec.layout == "channels":
            if space.channels not in (None, numbers):
                raise MmfastError(
                    f"modalities.{name}.layout is channels, which has {numbers} of them; there are {space.channels} "
                    "shared ones: use space=own, or layout=grid"
                )
            self.grid, cells = (1, 1), 1
        self.channels = space.channels or (-(-numbers // cells) if fixed else min(spec.dim, 32))
        if fixed and self.channels * cells < numbers:
            option = "components" if spec.components else "dim"
            raise MmfastError(
                f"modalities.{name}.{option} is {numbers}; {self.channels} channels of {space.height} x {space.width} "
                f"hold {self.channels * cells}: use encoder=learned or space=own"
            )
        if not fixed and space.channels is None:
            self.grid = (1, 1)
        self.uniform, self.reads = space.channels is None and self.grid == (1, 1), spec.reads
        self.proj = None if fixed else nn.Linear(spec.dim, self.channels * self.grid[0] * self.grid[1], bias=False)

    @staticmethod
    def _components(name: str, spec: Any) -> Components | None:
        if spec.components is None:
            return None
        if spec.components > spec.dim or spec.encoder != "fixed":
            raise MmfastError(
                f"modalities.{name}.components is {spec.components}; it should be at most dim, {spec.dim}, with "
                f"encoder=fixed, which is {spec.encoder}"
            )
        return Components(spec.dim, spec.components)

    @classmethod
    def anchor_space(cls, spec: Any) -> SpaceShape:
        return SpaceShape(1, 1)

    @property
    def fits(self) -> bool:
        return self.reduced is not None

    def fit(self, x: Tensor) -> None:
        if self.reduced is not None:
            self.reduced.fit(x)

    def numbers_of(self, x: Tensor) -> Tensor:
        """The numbers that represent x [B, ...] in the diffusion space: x at unit RMS, or its components."""
        return base.unit_rms(x) if self.reduced is None else self.reduced.project(x)

    def of_numbers(self, y: Tensor) -> Tensor:
        """The x that numbers y [B, ...] represent."""
        return base.unit_rms(y) if self.reduced is None else self.reduced.unproject(y)

    def from_z0(self, z0: Tensor) -> Tensor:
        """The x of the mean over the copies that `encode` lays out."""
        cells = z0.flatten(1)
        copies = cells.shape[1] // self.numbers
        laid = cells[:, : copies * self.numbers].unflatten(1, (copies, -1)).mean(1)
        return self.of_numbers(laid / self._scale(cells.shape[1]))

    def build_head(self, features: int) -> None:
        self.out = base.one_head(self.reads, features, self.numbers)

    def check(self, x: Tensor, where: str) -> None:
        base.check_floats(x, (self.spec.dim,), where)

    def encode(self, x: Tensor) -> Tensor:
        if self.proj is not None:
            return base.unit_rms(self.proj(x)).unflatten(1, (self.channels, *self.grid))
        return self._lay_out(self.numbers_of(x))

    def _lay_out(self, x: Tensor) -> Tensor:
        """Lay out whole copies of x, pad with zeros, and scale so that unit RMS stays unit RMS (`_scale`)."""
        cells = self.channels * self.grid[0] * self.grid[1]
        copies = cells // self.numbers
        laid = F.pad(x.repeat(1, copies) * self._scale(cells), (0, cells - copies * self.numbers))
        return laid.unflatten(1, (self.channels, *self.grid))

    def _scale(self, cells: int) -> float:
        """What makes up for the cells of `_lay_out` that are padded with zeros."""
        return math.sqrt(cells / (cells // self.numbers * self.numbers))

    def encode_part(self, x: Tensor) -> Tensor:
        """Encode numbers as they are, assuming a vector of unit RMS: the RMS of a part does not tell that of all."""
        return self._lay_out(x)

    def known_in_space(self, known: Tensor) -> Tensor:
        self.check_encoder_keeps_parts()
        if self.reduced is not None:
            raise MmfastError(f"known has {self.name}, whose components mix its numbers; give all of it")
        return self._lay_out(known.float()) > 0

    def head(self, features: Tensor) -> Tensor:
        return self.out(features)

    def nll(self, prediction: Tensor, x: Tensor) -> Tensor:
        squared = ((prediction - self.numbers_of(x)) / self.spec.sigma).square()
        return (0.5 * squared + math.log(self.spec.sigma * math.sqrt(2 * math.pi))).flatten(1).sum(1)

    def loss(self, prediction: Tensor, x: Tensor) -> Tensor:
        return (prediction - self.numbers_of(x)).square().flatten(1).mean(1)

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        # The head predicts the vector at unit RMS, so laying it out gives the expected encoding, shorter if uncertain.
        prediction = prediction.float()
        return self.encode(prediction) if self.proj is not None else self._lay_out(prediction)

    def decode(self, prediction: Tensor) -> Tensor:
        return self.of_numbers(prediction.float())

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        """The vector as a square of coloured cells: blue below zero, red above."""
        side = math.ceil(math.sqrt(x.numel()))
        values = F.pad(base.unit_rms(x[None])[0].cpu() / 2, (0, side * side - x.numel())).clamp(-1, 1)
        red, blue = values.clamp(min=0), (-values).clamp(min=0)
        array = ((1 - torch.stack((blue, red + blue, red), -1)) * 255).to(torch.uint8).numpy()
        picture = PILImage.fromarray(array.reshape(side, side, 3))
        return picture.resize((size, size), PILImage.Resampling.NEAREST)

    def score(self, x: Tensor, truth: Tensor) -> float:
        return float(F.cosine_similarity(x.flatten(1), truth.flatten(1), dim=1).mean())

    @classmethod
    def read(cls, path: Path, spec: Any) -> Tensor:
        return read_numbers(path, (spec.dim,))

    @classmethod
    def blank(cls, spec: Any) -> Tensor:
        return torch.zeros(spec.dim)


def mapped(path: Path) -> Any:
    """Memory-map the array of a .npy file, so that one that claims too much fails before memory is allocated.

    Raises OSError, ValueError and other errors of numpy's for anything else.
    """
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(12)
    # NumPy checks the header's length only after reading it, which may be gigabytes.
    if start[:6] == b"\x93NUMPY" and start[6:7] > b"\x01" and int.from_bytes(start[8:], "little") > LONGEST_HEADER:
        raise ValueError(f"its header should be at most {LONGEST_HEADER} bytes long")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (tokenize.TokenError, RecursionError, MemoryError) as error:  # numpy parses the header as Python
        raise ValueError(f"its header is damaged ({str(error) or type(error).__name__})") from None


def read_array(path: Path, what: str = "an array") -> Tensor:
    """The numbers of a .npy file as float32, in the file's shape.

    Raises MmfastError naming the file, which should be `what`.
    """
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise MmfastError(f"{path} is not a file; it should be {what} (.npy)")
    try:
        array = mapped(path)
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
        reason = re.sub(" at 0x[0-9a-f]+", "", " ".join(str(error).split()))  # the address of an object
        raise MmfastError(f"{path} cannot be read as {what} (.npy): {reason}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = array.dtype if isinstance(array, np.ndarray) else "an archive"
        raise MmfastError(f"{path} holds {kind}; it should hold real numbers (.npy)")
    with np.errstate(over="ignore"):  # too large values become infinite, refused below
        x = torch.from_numpy(np.array(array, dtype=np.float32))
    if not bool(torch.isfinite(x).all()):
        raise MmfastError(f"{path} holds NaN or infinite values; fix it, or remove it to make it missing")
    return x


def read_numbers(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The numbers of a .npy file as float32 [*shape]; a vector may have any shape in the file.

    Raises MmfastError naming the file.
    """
    x = read_array(path, "a vector" if len(shape) == 1 else "a map")
    if x.numel() != math.prod(shape):
        raise MmfastError(f"{path} holds {x.numel()} numbers; it should hold {math.prod(shape)}")
    if len(shape) > 1 and tuple(x.shape) != shape:
        raise MmfastError(f"{path} holds {list(x.shape)}; it should hold {list(shape)}")
    return x.reshape(shape)
