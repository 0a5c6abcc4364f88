"""Few labels: keep a modality in only a share of the training examples, and repeat those that have it."""

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
    """Examples of which only a share keep a modality, chosen by their numbers: the same ones in every run.

    Examples made from the same one (`sources`) keep it or lose it together.
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
        # The same word for every share, so that a larger share keeps all that a smaller one does.
        words = ops.random_words([len(rows), 1], seed=0, sample_ids=rows, stream=LABELLED)[:, 0]
        for name, share in self.shares.items():
            kept = words < share * 2.0**32
            present[name] = kept & present[name] if name in present else kept
        return Batch(batch.data, present)


@dataclass
class Only:
    """The examples in `rows`, in that order: some not at all, some several times."""

    examples: Examples
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.examples.__getitems__(self.rows[torch.as_tensor(indices)].tolist())


def once(examples: Examples) -> Examples:
    """The examples, each once, without the repetitions for `labelled_share`."""
    return Only(examples.examples, examples.rows.unique()) if isinstance(examples, Only) else examples


def with_few_labels(data: Data, specs: Mapping[str, Any]) -> Data:
    """The data, with each modality kept in the share of the training examples that its `labelled_fraction` specifies.

    With `labelled_only`, examples that lack it are dropped; with `labelled_share`, those that have it are repeated.
    Raises MmfastError if nothing is left, or there is nothing to repeat.
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
    """Repeat those rows, int64 [n], that are `there`, bool [n], until they are `share` of all; sorted by row.

    The numbers of repetitions differ by at most one, so the share is exact to one example.
    """
    having, lacking = rows[there], int((~there).sum())
    wanted = max(len(having), round(share / (1 - share) * lacking))
    again = torch.arange(wanted - len(having))
    # The remainder is evenly spaced.
    whole = again[: len(again) // len(having) * len(having)] % len(having)
    left = torch.arange(len(again) - len(whole)) * len(having) // max(1, len(again) - len(whole))
    return torch.cat([rows, having[whole], having[left]]).sort().values


def _has(examples: Examples, names: Sequence[str]) -> dict[str, Tensor]:
    """Which examples have each modality, bool [N]. This reads all examples once, a batch at a time."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in torch.arange(len(examples)).split(256):
        present = examples.__getitems__(part.tolist()).present
        for name in found:
            found[name].append(present.get(name, torch.ones(len(part), dtype=torch.bool)))
    return {name: torch.cat(flags) for name, flags in found.items()}
