"""Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes, 28 x 28, with labels and outlines.

Xiao, Rasul, Vollgraf, "Fashion-MNIST", arXiv 1708.07747.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfast.data.base import VALIDATION, Batch, Data, Judge
from mmfast.data.cache import HELP
from mmfast.data.judge import Classified, as_floats, classifier
from mmfast.errors import MmfastError
from mmfast.modalities.label import counted
from mmfast.options import option
from mmfast.sizes import plain

NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIDE, SIZES = 28, (16, 28, 32)
PACKAGE = "dataset-fashion-mnist"
TRAIN = 50_000  # training images if the rest are held out for validation


@dataclass
class Spec:
    kind: str = "fashion"
    root: str = option(
        f"/usr/share/datasets/{PACKAGE.removeprefix('dataset-')}",
        f"folder of the idx files of Debian's {PACKAGE}",
        path=True,
    )
    validation: bool = option(False, VALIDATION)
    cache: str = option("", HELP, path=True)


def _read(root: Path, name: str, *shape: int) -> Tensor:
    """Read an idx file of unsigned bytes: the magic bytes (0, 0, 8, rank), the sizes as big-endian uint32, the data."""
    file = root / f"{name}-idx{len(shape)}-ubyte.gz"
    try:
        raw = gzip.decompress(file.read_bytes())
    except FileNotFoundError:
        raise MmfastError(
            f"data.root: {file} does not exist; `apt-get install {PACKAGE}`, or `apt-get download {PACKAGE} && "
            f"dpkg-deb -x {PACKAGE}_*.deb DIR` and --data.root DIR/usr/share/datasets/fashion-mnist"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise MmfastError(f"data.root: {file} cannot be read: {error}; install {PACKAGE} again") from None
    head = np.array([0x0800 + len(shape), *shape], dtype=">u4").tobytes()
    if not raw.startswith(head) or len(raw) != len(head) + int(np.prod(shape)):
        raise MmfastError(
            f"data.root: {file} is {len(raw)} bytes beginning {raw[: len(head)].hex()}; it should be an idx file of "
            f"{' x '.join(map(str, shape))} bytes, beginning {head.hex()}; install {PACKAGE} again"
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=len(head)).reshape(shape).copy())


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 [N, 28, 28] -> uint8 [N, 1, size, size]: 32 by a black border of two pixels, 16 by area averaging."""
    images = images[:, None]
    if size == SIDE:
        return images
    if size > SIDE:
        return F.pad(images, [(size - SIDE) // 2] * 4)
    # Pad first, so that each pixel is the mean of a whole 2 x 2 square.
    return F.avg_pool2d(F.pad(images, [2] * 4).float(), 2).round().to(torch.uint8)


def outline(images: Tensor) -> Tensor:
    """The masks of images: int64 [B, size, size], 1 where an image is not black."""
    return (((images[:, 0].clamp(-1, 1) + 1) * 127.5).round() > 0).long()


@dataclass
class Pictures:
    """Examples stored as bytes, converted to floats on access."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        images = self.images[index]
        return Batch(
            {"image": as_floats(images), "label": self.labels[index].long(), "mask": (images[:, 0] > 0).long()}
        )


def _judges(train: Pictures, cache: str) -> dict[str, Judge]:
    """Judges. The label's is a network with a test accuracy of 0.926 (28 x 28; trained once, in minutes)."""
    content = hashlib.sha256(train.images.numpy().tobytes()).hexdigest()[:16]  # other data sets use this format too
    key = {"data": "fashion", "size": train.images.shape[-1], "images": content}
    label = classifier(Classified(train.images, train.labels.long(), len(NAMES)), cache=cache, key=key)
    return {"label": label, "mask": outline}


def found(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> dict[str, dict[str, Any]]:
    """The number of training examples of each class, as options of the labels."""
    labels = _read(Path(spec.root), "train-labels", 60_000)[: TRAIN if spec.validation else None].tolist()
    return {name: counted(part, labels) for name, part in modalities.items() if part.kind == "label"}


def open(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Data:
    """Image (float [1, size, size] in -1 .. 1, with all 256 levels), label and mask; the split is the authors'.

    The size is the anchor's: 16, 28 or 32. Raises MmfastError for other sizes, and for missing or damaged files.
    """
    size = plain(modalities[anchor].size)
    if not isinstance(size, int) or size not in SIZES:
        raise MmfastError(f"modalities.{anchor}.size is {size}; for this data it should be one of 16, 28, 32")

    def part(name: str, count: int) -> Pictures:
        images = _read(Path(spec.root), f"{name}-images", count, SIDE, SIDE)
        return Pictures(resized(images, size), _read(Path(spec.root), f"{name}-labels", count))

    train, test = part("train", 60_000), part("t10k", 10_000)
    if spec.validation:
        test = Pictures(train.images[TRAIN:], train.labels[TRAIN:])
        train = Pictures(train.images[:TRAIN], train.labels[:TRAIN])
    return Data(train, test, partial(_judges, train, spec.cache))
