"""Examples of a data set that another package reads: what it gives of each becomes the modalities' own numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from mmfast import modalities as kinds
from mmfast.data.base import Batch, Data, Examples
from mmfast.data.labelled import Only
from mmfast.data.listing import place
from mmfast.errors import MmfastError, unknown
from mmfast.image_files import upright


@dataclass
class Items:
    """Examples by number: `get` gives a value for each modality, None for one that is missing."""

    count: int
    get: Callable[[int], Mapping[str, Any]]
    specs: Mapping[str, Any]
    called: str

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        found = [self._read(int(index)) for index in indices]
        data, present = {}, {}
        for name, spec in self.specs.items():
            column, blank = [x[name] for x in found], kinds.kind(spec.kind).blank(spec)
            there = torch.tensor([x is not None for x in column])
            if not bool(there.all()):
                present[name] = there
            data[name] = torch.stack([blank if x is None else x for x in column])
        return Batch(data, present)

    def _read(self, index: int) -> dict[str, Tensor | None]:
        where = f"example {index} of {self.called}"
        try:
            values = self.get(index)
        except MmfastError:
            raise
        except Exception as error:  # of another package, which may raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise MmfastError(f"{where} cannot be read: {reason}") from None
        return {name: x_of(spec, values[name], f"{where}, {name}") for name, spec in self.specs.items()}


def x_of(spec: Any, value: Any, where: str) -> Tensor | None:
    """One x of a picture, a text, a whole number or an array; None of None. Raises MmfastError for any other value."""
    kind = kinds.kind(spec.kind)
    blank = kind.blank(spec)
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3) and hasattr(spec, "size"):
        value = PILImage.fromarray(value)
    if isinstance(value, PILImage.Image):
        return kind.from_picture(upright(value, where), spec, where)
    if isinstance(value, str):
        return kind.from_text(value.strip(), spec, where)
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and not blank.is_floating_point()):
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise MmfastError(f"{where} is of type {type(value).__name__}, of which no {spec.kind} can be made") from None
    if array.size != math.prod(blank.shape) or (array.ndim > 1 and array.shape != blank.shape):
        raise MmfastError(f"{where} is of shape {list(array.shape)}; it should be {list(blank.shape)}")
    classes = getattr(spec, "classes", None)
    if classes is not None and (int(array.min()) < 0 or int(array.max()) >= classes):
        raise MmfastError(f"{where} runs from {array.min()} to {array.max()}; it should lie in 0 .. {classes - 1}")
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(array, dtype=blank.numpy().dtype)).reshape(blank.shape)


def split(train: Examples, test: Examples | None, fraction: float, flip: bool) -> Data:
    """The data, of whose training examples a share is held out where there are no others: by their numbers."""
    if test is not None:
        return Data(train, test, flip=flip)
    order = sorted(range(len(train)), key=lambda k: place(str(k)))
    count = sum(place(str(k)) < fraction for k in order)
    count = max(1, min(count, len(order) - 1))
    held_out, rest = (torch.tensor(sorted(rows), dtype=torch.int64) for rows in (order[:count], order[count:]))
    return Data(Only(train, rest), Only(train, held_out), flip=flip)


def named(classes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The options of labels whose classes have these names; numbers are called as they are."""
    return {n: {"names": [*names]} for n, names in classes.items() if not all(x.isdecimal() or not x for x in names)}


def names_of(specs: Mapping[str, Any], classes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The names of the classes of labels that have as many, and no names of their own."""
    return {
        name: [re.sub(r"\s+", " ", str(x)) for x in found]
        for name, found in classes.items()
        if not specs[name].names and specs[name].classes == len(found)
    }


def check_known(option: str, names: Mapping[str, Any], modalities: Mapping[str, Any]) -> None:
    """Raise MmfastError for an option by modality that names another."""
    for name in names:
        if name not in modalities:
            raise unknown(f"{option}' modality", name, modalities)
