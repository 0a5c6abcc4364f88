"""Few labels: a share of the training examples keeps a modality, and those that have it are seen more often."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
    """Examples that lack a modality but for a share of them, chosen by their numbers: the same in every run.

    Those that are made of one (`sources`) have it or lack it together.
    """

    examples: Examples
    shares: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch = self.examples.__getitems__(indices)
        sources: Callable[[Sequence[int]], Tensor] = getattr(self.examples, "sources", torch.as_tensor)
        rows = sources(indices)
        present = dict(batch.present)
        # The same word for every share: a larger one keeps what a smaller one does.
        words = ops.random_words([len(rows), 1], seed=0, sample_ids=rows, stream=LABELLED)[:, 0]
        for name, share in self.shares.items():
            kept = words < share * 2.0**32
            present[name] = kept & present[name] if name in present else kept
        return Batch(batch.data, present)


@dataclass
class Only:
    """Some of the examples, in the order of `rows`: some not at all, some several times."""

    examples: Examples
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.examples.__getitems__(self.rows[torch.as_tensor(indices)].tolist())


def once(examples: Examples) -> Examples:
    """The examples, each once: what stands among them again for `labelled_share` is as often as the rest."""
    return Only(examples.examples, examples.rows.unique()) if isinstance(examples, Only) else examples


def with_few_labels(data: Data, specs: Mapping[str, Any]) -> Data:
    """The data whose training examples have as much of each modality as its `labelled_fraction` says.

    With `labelled_only` those that lack it are left out, and with `labelled_share` those that have it are repeated.
    Raises MmfastError where nothing is left, or there is nothing to repeat.
    """
    shares = {name: spec.labelled_fraction for name, spec in specs.items() if spec.labelled_fraction < 1}
    train: Examples = Labelled(data.train, shares) if shares else data.train
    needed = [name for name, spec in specs.items() if spec.labelled_only]
    more = {name: spec.labelled_share for name, spec in specs.items() if spec.labelled_share is not None}
    if needed or more:
        there = _has(train, [*needed, *more])
        rows = torch.arange(len(train))
        for name in needed:
            rows = rows[there[name][rows]]
        if not len(rows):
            raise MmfastError(
                f"modalities.{needed[-1]}.labelled_only is true, but no training example has {' and '.join(needed)}; "
                "give labelled_fraction a larger share, or leave labelled_only out"
            )
        for name, share in more.items():
            if not bool(there[name][rows].any()):
                raise MmfastError(
                    f"modalities.{name}.labelled_share is {share:g}, but no training example has {name}; add some, or "
                    "leave labelled_share out"
                )
            rows = repeated(rows, there[name][rows], share)
        train = Only(train, rows)
    return dataclasses.replace(data, train=train)


def repeated(rows: Tensor, there: Tensor, share: float) -> Tensor:
    """The rows, int64 [n], and those that are `there`, bool [n], again until they are `share` of all; sorted by row.

    Each of them stands as often as any other, or once more: so is the share exact to one example.
    """
    having, lacking = rows[there], int((~there).sum())
    wanted = max(len(having), round(share / (1 - share) * lacking))
    again = torch.arange(wanted - len(having))
    # Evenly from all over, where they do not fit a whole number of times.
    whole = again[: len(again) // len(having) * len(having)] % len(having)
    left = torch.arange(len(again) - len(whole)) * len(having) // max(1, len(again) - len(whole))
    return torch.cat([rows, having[whole], having[left]]).sort().values


def _has(examples: Examples, names: Sequence[str]) -> dict[str, Tensor]:
    """Which of the examples have each modality, bool [N]; they are read for it once, a batch at a time."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in torch.arange(len(examples)).split(256):
        present = examples.__getitems__(part.tolist()).present
        for name in found:
            found[name].append(present.get(name, torch.ones(len(part), dtype=torch.bool)))
    return {name: torch.cat(flags) for name, flags in found.items()}
