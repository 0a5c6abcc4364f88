"""Held-out examples to compare a model with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmfast.data import Batch, Examples
from mmfast.errors import MmfastError
from mmfast.model import Model


class NoExamples(MmfastError):
    """No example has all the modalities to compare."""


def held_out(examples: Examples, count: int, model: Model) -> Batch:
    """The first `count` examples that have all modalities of the data, repeated from the start if they run out.

    Derived modalities are made once per example, so every evaluation has the same hidden parts. Raises NoExamples if
    there are none, and MmfastError for one that cannot be read.
    """
    names = [name for name, part in model.parts.items() if not part.derived]
    found: list[dict[str, Tensor]] = []
    for start in range(0, len(examples), 64):
        batch = examples.__getitems__(range(start, min(start + 64, len(examples))))
        whole = torch.ones(len(batch), dtype=torch.bool)
        for there in batch.present.values():
            whole &= there
        found.append({name: batch.data[name][whole] for name in names})
        if sum(len(part[names[0]]) for part in found) >= count:
            break
    data = {name: torch.cat([part[name] for part in found]) for name in names}
    available = len(data[names[0]])
    if not available:
        raise NoExamples(f"data: no held-out example has all of {', '.join(names)}; raise data.test_fraction")
    data = model.complete(Batch(data), 0, torch.arange(available)).data
    index = torch.arange(count) % available
    return Batch({name: x[index] for name, x in data.items()})


def true_values(model: Model, data: Mapping[str, Tensor], given: Sequence[str]) -> dict[str, Tensor]:
    """The true values of the modalities that were drawn, except those derived from another modality."""
    return {name: x for name, x in data.items() if name not in given and not model.part(name).derived}


class Shuffled:
    """Examples in a fixed random order, because neighbours in a data set are often related."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.order)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.examples.__getitems__(self.order[list(indices)].tolist())
