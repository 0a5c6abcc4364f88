"""Two-class masks: whether the files of a data set hold 0 and 1 or 0 and 255, decided once for all of them.

A single file may not tell: zeros are valid in both codings, and ones may be class 1 everywhere, or black. So some masks
are inspected, in an order that depends only on the examples' names. So the answer is reproducible, and adding or
removing files seldom changes it. The majority is the data set's coding, and a run keeps it in its config.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from PIL import Image as PILImage

from mmfast.errors import MmfastError
from mmfast.modalities.mask import coding

T = TypeVar("T")
# How many conclusive masks decide, an odd number; how many masks are inspected at most.
ENOUGH, LOOKED_AT = 9, 1000


def undecided(specs: Mapping[str, Any]) -> list[str]:
    """The modalities that are two-class masks whose coding the config does not specify."""
    return [
        name
        for name, spec in specs.items()
        if spec.kind == "mask" and spec.classes == 2 and not (spec.values or spec.colours)
    ]


def decided(order: Iterable[T], picture: Callable[[T], PILImage.Image | None], spec: Any) -> str:
    """The coding of most of the first conclusive masks; a tie goes to the first seen. Empty if none is conclusive.

    picture: returns an example's mask, upright, or None. A mask that cannot be read, or does not have two classes, is
    ignored here; reading it for training raises the error.
    """
    votes: Counter[str] = Counter()
    for _, example in zip(range(LOOKED_AT), order, strict=False):
        try:
            found = picture(example)
            said = "" if found is None else coding(found, spec, "")
        except MmfastError:
            continue
        votes.update([said] if said else [])
        if votes.total() == ENOUGH:
            break
    return max(votes, key=votes.__getitem__, default="")


def with_values(specs: Mapping[str, Any], codings: Mapping[str, str]) -> dict[str, Any]:
    """The specs with the given codings filled in."""
    return {**specs, **{name: dataclasses.replace(specs[name], values=found) for name, found in codings.items()}}


def options_of(codings: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The codings as options of the modalities, for a run to store."""
    return {name: {"values": found} for name, found in codings.items() if found}
