"""Held-out examples to compare a model with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.data import Batch, Examples
from mmfast.errors import MmfastError
from mmfast.model import Model


class NoExamples(MmfastError):
    """No example has all the modalities to compare."""


def held_out(examples: Examples, count: int, model: Model, needed: Sequence[str] | None = None) -> Batch:
    """The first `count` examples that have all modalities of the data, repeated from the start if they run out.

    If there are fewer than `count` of those and `needed` is given, the examples that have these modalities, and nothing
    else of them. Derived modalities are made once per example, so every evaluation has the same hidden parts. Raises
    NoExamples if there are none, and MmfastError for one that cannot be read.
    """
    return with_count(examples, count, model, needed).batch


def different(examples: Examples, count: int, model: Model) -> Batch:
    """`held_out`, of at most `count` examples: fewer if they run out, and none twice."""
    found = with_count(examples, count, model, None)
    return Batch({name: x[: found.different] for name, x in found.batch.data.items()})


def with_count(examples: Examples, count: int, model: Model, needed: Sequence[str] | None) -> Found:
    """`held_out`, with the number of different examples."""
    names = _stored(model, model.parts)
    found = _chosen(examples, count, model, {"": names if needed is None else _stored(model, needed)})
    if not found:
        wanted = ", ".join(names if needed is None else needed)
        raise NoExamples(f"data: no held-out example has all of {wanted}; raise data.test_fraction")
    return found[""]


class Found(NamedTuple):
    """Held-out examples, and how many of them are different ones."""

    batch: Batch
    different: int


def by_modality(examples: Examples, count: int, model: Model) -> dict[str, Found]:
    """`count` held-out examples for each modality, to compare what is drawn for it or for the anchor.

    If at least `count` have all modalities, they serve for each, as one object. Otherwise each modality gets those that
    have it and the anchor, and nothing else of them; one that no example has is left out.
    """
    return _chosen(examples, count, model, {name: _stored(model, [model.anchor_name, name]) for name in model.parts})


def _stored(model: Model, names: Iterable[str]) -> list[str]:
    """The modalities that an example must hold for these to exist: those, or what they are derived from."""
    parts = {name: model.parts[name] for name in names}
    return list(dict.fromkeys(str(part.source) if part.derived else name for name, part in parts.items()))


def _chosen(examples: Examples, count: int, model: Model, needed: Mapping[str, Sequence[str]]) -> dict[str, Found]:
    """For each key, examples that have all modalities, or else those that it needs. Reads no further than it must."""
    whole = tuple(_stored(model, model.parts))
    kinds = list(dict.fromkeys([whole, *map(tuple, needed.values())]))
    counts, chosen = dict.fromkeys(kinds, 0), {names: list[Tensor]() for names in kinds}
    kept: list[dict[str, Tensor]] = []  # each example once, whoever needs it
    for start in range(0, len(examples), 64):
        batch = examples.__getitems__(range(start, min(start + 64, len(examples))))
        flags = {}
        for names in kinds:
            there = torch.full((len(batch),), counts[names] < count)
            for name in batch.present if names == whole else names:  # also those that the model does not have
                there &= batch.present.get(name, there)
            flags[names] = there
            counts[names] += int(there.sum())
        wanted = torch.stack([*flags.values()]).any(0)
        kept.append({name: batch.data[name][wanted] for name in whole})
        for names, there in flags.items():
            chosen[names].append(there[wanted])
        if counts[whole] >= count:
            counts, chosen = dict.fromkeys(kinds, counts[whole]), dict.fromkeys(kinds, chosen[whole])
            break
    data = {name: torch.cat([part[name] for part in kept]) for name in whole}
    made: dict[tuple[str, ...], Found] = {}
    for names in kinds:
        if made and counts[names] == counts[whole]:  # the same examples, since those that have all are among them
            made[names] = made[whole]
            continue
        rows = torch.cat(chosen[names])
        made[names] = _repeated({name: data[name][rows] for name in names}, count, model)
    every = {key: made[tuple(names)] for key, names in needed.items()}
    return {key: of for key, of in every.items() if of.different}


def _repeated(data: dict[str, Tensor], count: int, model: Model) -> Found:
    """`count` of these examples, from the start again if they run out, with what is derived of them."""
    different = len(next(iter(data.values())))
    if not different:
        return Found(Batch({}), 0)
    complete = model.complete(Batch(data), 0, torch.arange(different)).data
    index = torch.arange(count) % different
    return Found(Batch({name: x[index] for name, x in complete.items()}), min(different, count))


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
