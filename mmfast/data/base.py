"""Data set types: training examples, held-out examples, and judges that predict a modality from an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass
class Batch:
    """Some examples: each modality [B, ...] by name, and which examples have it (bool [B]) if not all do.

    z0: the anchor's z_0, [B, C, H, W], if it was computed before, as an autoencoder's latents are.
    """

    data: dict[str, Tensor]
    present: dict[str, Tensor] = field(default_factory=dict)
    z0: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.data.values())))

    def filled(self) -> dict[str, Tensor]:
        """The data with missing values replaced by zeros."""
        data = dict(self.data)
        for name, there in self.present.items():
            missing = ~there.reshape(-1, *[1] * (data[name].dim() - 1))
            data[name] = data[name].masked_fill(missing, 0)
        return data

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in pinned memory, for asynchronous copies to a GPU. torch's DataLoader calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        data, present = ({name: change(x) for name, x in part.items()} for part in (self.data, self.present))
        return Batch(data, present, None if self.z0 is None else change(self.z0))


class Examples(Protocol):
    """Examples by number, 0 .. len - 1, in an order that never changes.

    If several examples are made from one, as by mirroring, a method `sources` returns its number: numbers -> int64 [B].
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


@dataclass
class Layer:
    """A wrapper that changes how examples are read. It forwards other attributes, such as stems."""

    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "examples":  # as during unpickling
            raise AttributeError(name)
        return getattr(self.examples, name)


@dataclass
class InMemory:
    """Examples held as tensors [len, ...]."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        return Batch({name: x[index] for name, x in self.tensors.items()})


# The help text of the option `validation` of a data set's spec.
VALIDATION = "hold out a part of the training data instead of the test data, to choose options by"

# The help text of the option `flip` of a data set's spec.
FLIP = "mirror half of the training examples, left to right, at random: image, mask and feature maps together"

# Predicts a modality from generated anchors, independently of the model: images float [B, C, H, W] -> x [B, ...].
Judge = Callable[[Tensor], Tensor]


@dataclass
class Data:
    """A data set, split into training and test examples.

    judges: makes the judges of generated images (or x of another anchor) by modality, for the evaluation. baselines:
    computes the figures of simple methods on the same split, to compare the model's with. flip: whether training should
    mirror half of its examples.
    """

    train: Examples
    test: Examples
    judges: Callable[[], dict[str, Judge]] = dict
    flip: bool = False
    baselines: Callable[[], dict[str, float]] = dict
