"""Few labels: training examples of which only a share keeps a modality, and the rest lacks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfast import ops
from mmfast.data.base import Batch, Data, Examples
from mmfast.errors import MmfastError
from mmfast.streams import LABELLED


@dataclass
class Labelled:
    """Examples that lack a modality but for a share of them, chosen by their numbers: the same in every run."""

    examples: Examples
    shares: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch, rows = self.examples.__getitems__(indices), torch.as_tensor(indices)
        present = dict(batch.present)
        # The same word for every share: a larger one keeps what a smaller one does.
        words = ops.random_words([len(rows), 1], seed=0, sample_ids=rows, stream=LABELLED)[:, 0]
        for name, share in self.shares.items():
            kept = words < share * 2.0**32
            present[name] = kept & present[name] if name in present else kept
        return Batch(batch.data, present)


@dataclass
class Only:
    """Some of the examples, in their order."""

    examples: Examples
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.examples.__getitems__(self.rows[torch.as_tensor(indices)].tolist())


def with_few_labels(data: Data, specs: Mapping[str, Any]) -> Data:
    """The data whose training examples have as much of each modality as its `labelled_fraction` says.

    With `labelled_only` those that lack it are left out. Raises MmfastError where nothing is left.
    """
    shares = {name: spec.labelled_fraction for name, spec in specs.items() if spec.labelled_fraction < 1}
    train: Examples = Labelled(data.train, shares) if shares else data.train
    needed = [name for name, spec in specs.items() if spec.labelled_only]
    if needed:
        rows = torch.arange(len(train))
        for name in needed:
            rows = rows[_has(train, name, rows)]
        if not len(rows):
            raise MmfastError(
                f"modalities.{needed[-1]}.labelled_only is true, but no training example has {' and '.join(needed)}; "
                "give labelled_fraction a larger share, or leave labelled_only out"
            )
        train = Only(train, rows)
    return dataclasses.replace(data, train=train)


def _has(examples: Examples, name: str, rows: Tensor) -> Tensor:
    """Which of the examples have the modality, bool [B]; they are read for it, a batch at a time."""
    found = []
    for part in rows.split(256):
        batch = examples.__getitems__(part.tolist())
        found.append(batch.present.get(name, torch.ones(len(part), dtype=torch.bool)))
    return torch.cat(found)
