"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, with their labels and masks of the ink."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfast.data.base import Data, InMemory, Judge
from mmfast.errors import optional_package
from mmfast.modalities.label import counted
from mmfast.options import option

LEVELS = 17
# The threshold of ink in pixels of 0 .. 16, where the fewest real pixels are, so that one level matters least.
INK = 7


@dataclass
class Spec:
    kind: str = "digits"
    test_fraction: float = option(0.2, "share of the images held out for the evaluation", above=0, max=0.9)


def _load() -> Any:
    with optional_package("scikit-learn", "digits", "the digits data set"):
        from sklearn.datasets import load_digits
    return load_digits()


def pixels(images: Tensor) -> Tensor:
    """Convert images in -1 .. 1 to the digits' own scale: whole numbers 0 .. 16."""
    return ((images.clamp(-1, 1) + 1) * ((LEVELS - 1) / 2)).round()


def ink(images: Tensor) -> Tensor:
    """The masks of images: int64 [B, 8, 8], 1 where there is ink."""
    return (pixels(images)[:, 0] >= INK).long()


def _tensors() -> dict[str, Tensor]:
    raw = _load()
    images = torch.from_numpy(raw.images).float()[:, None] / ((LEVELS - 1) / 2) - 1
    return {"image": images, "label": torch.from_numpy(raw.target).long(), "mask": ink(images)}


@functools.cache
def _classifier() -> Judge:
    """scikit-learn's logistic regression on the pixels of all real digits, since it should be right about digits, not
    generalise. Fitted once per process, in seconds."""
    from sklearn.linear_model import LogisticRegression

    real = _tensors()

    def features(x: Tensor) -> Any:
        return (pixels(x).flatten(1) / (LEVELS - 1)).cpu().numpy()

    regression = LogisticRegression(max_iter=1000).fit(features(real["image"]), real["label"].numpy())

    def judge(generated: Tensor) -> Tensor:
        return torch.from_numpy(regression.predict(features(generated))).long()

    return judge


def _split(spec: Spec, count: int) -> tuple[Tensor, Tensor]:
    """The numbers of the training digits and of the held-out digits."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held_out = round(count * spec.test_fraction)
    return order[held_out:], order[:held_out]


def found(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> dict[str, dict[str, Any]]:
    """The number of training examples of each digit, as options of the labels."""
    labels = torch.from_numpy(_load().target)
    train = labels[_split(spec, len(labels))[0]].tolist()
    return {name: counted(part, train) for name, part in modalities.items() if part.kind == "label"}


def open(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Data:
    """The digits as image (float [1, 8, 8] in -1 .. 1), label and mask, split the same way every time."""
    tensors = _tensors()
    train, test = _split(spec, len(tensors["label"]))

    def part(index: Tensor) -> InMemory:
        return InMemory({name: x[index] for name, x in tensors.items()})

    return Data(part(train), part(test), lambda: {"label": _classifier(), "mask": ink})
