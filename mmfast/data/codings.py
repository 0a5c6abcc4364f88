"""Two-class masks: whether the files of a data set hold 0 and 1 or 0 and 255, decided once for all of them.

A file alone may not tell: one of zeros is right in both codings, and one of ones may be all class 1, or black. So some
masks are looked at, in an order that hangs on the examples' names alone: the answer is the same whoever asks, and files
that come or go seldom change it. What most of them hold is the data set's coding, and a run keeps it in its config.
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
# So many masks that tell decide, an odd number; so many are looked at, at the most.
ENOUGH, LOOKED_AT = 9, 1000


def undecided(specs: Mapping[str, Any]) -> list[str]:
    """The modalities that are masks of two classes whose coding the config does not say."""
    return [name for name, spec in specs.items() if spec.kind == "mask" and spec.classes == 2 and not spec.values]


def decided(order: Iterable[T], picture: Callable[[T], PILImage.Image | None], spec: Any) -> str:
    """What most of the first masks hold that tell; of as many, the first of them. Empty where none of them tells.

    picture: of an example its mask, upright, or None. One that cannot be read, or is no mask of two classes, tells
    nothing here: whoever reads it for training says what is wrong.
    """
    votes: Counter[str] = Counter()
    for _, example in zip(range(LOOKED_AT), order, strict=False):
        try:
            found = picture(example)
            said = "" if found is None else coding(found, spec.ignore, "")
        except MmfastError:
            continue
        votes.update([said] if said else [])
        if votes.total() == ENOUGH:
            break
    return max(votes, key=votes.__getitem__, default="")


def with_values(specs: Mapping[str, Any], codings: Mapping[str, str]) -> dict[str, Any]:
    """The specs with the codings that were found."""
    return {**specs, **{name: dataclasses.replace(specs[name], values=found) for name, found in codings.items()}}


def options_of(codings: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The codings as options of the modalities, for a run to keep."""
    return {name: {"values": found} for name, found in codings.items() if found}
