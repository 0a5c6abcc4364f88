"""What a data set is: examples to train on, examples held out, and judges that read a modality off an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass
class Batch:
    """Some examples: every modality [B, ...] by name, and for those that not all have, who has it (bool [B]).

    z0: of the anchor, [B, C, H, W], where it was computed before, as an autoencoder's latents are.
    """

    data: dict[str, Tensor]
    present: dict[str, Tensor] = field(default_factory=dict)
    z0: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.data.values())))

    def filled(self) -> dict[str, Tensor]:
        """The data with zeros for what is missing, whatever stood there."""
        data = dict(self.data)
        for name, there in self.present.items():
            missing = ~there.reshape(-1, *[1] * (data[name].dim() - 1))
            data[name] = data[name].masked_fill(missing, 0)
        return data

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy from which a GPU takes what it needs while the host goes on; torch's DataLoader asks for it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        data, present = ({name: change(x) for name, x in part.items()} for part in (self.data, self.present))
        return Batch(data, present, None if self.z0 is None else change(self.z0))


class Examples(Protocol):
    """Examples by number, 0 .. len - 1, in an order that never changes.

    Where several are made of one, as by mirroring, a method `sources` says of which: numbers -> int64 [B].
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


@dataclass
class Layer:
    """Examples seen through something that changes how they are read. What else they have, such as stems, is theirs."""

    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "examples":  # as while it is unpickled
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


# What the option `validation` of a data set's spec is for.
VALIDATION = "hold out a part of the training data instead of the test data, to choose options by"

# What the option `flip` of a data set's spec is for.
FLIP = "mirror half of the training examples, left to right, at random: image, mask and feature maps together"

# Reads a modality off generated anchors, independently of the model: images float [B, C, H, W] -> x [B, ...].
Judge = Callable[[Tensor], Tensor]


@dataclass
class Data:
    """A data set, split.

    judges: makes, by modality, what the evaluation asks about generated images (x of another anchor). baselines: makes
    figures of simple methods on the same split, to stand beside the model's. flip: whether training is to mirror half
    of its examples.
    """

    train: Examples
    test: Examples
    judges: Callable[[], dict[str, Judge]] = dict
    flip: bool = False
    baselines: Callable[[], dict[str, float]] = dict
