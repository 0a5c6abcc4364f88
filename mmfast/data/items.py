"""Examples of a data set that another package reads: convert its values to tensors of the modalities."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from mmfast import modalities as kinds
from mmfast.data.base import Batch, Data, Examples
from mmfast.data.codings import decided, options_of, undecided, with_values
from mmfast.data.decoded import decoded_once, key_of
from mmfast.data.labelled import Only
from mmfast.data.listing import place
from mmfast.data.skipping import Skipping
from mmfast.errors import MmfastError, unknown
from mmfast.image_files import check_sizes, upright

# The most texts in a list of captions.
MOST_CAPTIONS = 1000
LONGEST_CAPTIONS = 2**20  # in bytes, together


@dataclass
class Items:
    """Examples by number: `get` returns a value for each modality, None for a missing one.

    anchor: the modality that no example may lack. about: everything that the values depend on, as JSON, so that decoded
    examples can be cached; None if that is not known. versions: returns, for each example, a value as JSON that changes
    when the example's files do; None if `about` covers everything.
    """

    count: int
    get: Callable[[int], Mapping[str, Any]]
    specs: Mapping[str, Any]
    called: str
    anchor: str
    about: Mapping[str, Any] | None = None
    versions: Callable[[], Sequence[object]] | None = None

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

    def values(self, index: int) -> Mapping[str, Any]:
        """The values that `get` returns. Turns any error it raises into MmfastError."""
        try:
            return self.get(index)
        except MmfastError:
            raise
        except Exception as error:  # the other package may raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise MmfastError(f"example {index} of {self.called} cannot be read: {reason}") from None

    def _read(self, index: int) -> dict[str, Tensor | None]:
        where, values = f"example {index} of {self.called}", self.values(index)
        if values[self.anchor] is None:
            raise MmfastError(f"{where} has no {self.anchor}, the anchor, which every example needs; fix or remove it")
        pictures = {name: picture_of(spec, values[name], f"{where}, {name}") for name, spec in self.specs.items()}
        sizes = {f"{where}, {name}": picture.size for name, picture in pictures.items() if picture is not None}
        if sizes:
            check_sizes(sizes)
        return {name: x_of(spec, values[name], f"{where}, {name}", pictures[name]) for name, spec in self.specs.items()}


def picture_of(spec: Any, value: Any, where: str) -> PILImage.Image | None:
    """An upright picture from a picture or an array: uint8 pixels, or the class numbers of a mask. Otherwise None."""
    if isinstance(value, PILImage.Image):
        return upright(value, where)
    if not hasattr(spec, "size") or value is None or isinstance(value, str):
        return None
    numbers = not kinds.kind(spec.kind).blank(spec).is_floating_point()
    if not (isinstance(value, np.ndarray) and value.dtype == np.uint8) and not numbers:
        return None
    try:
        array = np.asarray(value)
        if array.dtype != np.uint8:
            if array.ndim != 2 or array.dtype.kind not in "iub" or not array.size:
                return None
            if not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
                raise MmfastError(f"{where} runs from {array.min()} to {array.max()}; it should be class numbers")
            array = array.astype(np.int32)
        return PILImage.fromarray(array)
    except MmfastError:
        raise
    except (TypeError, ValueError, RuntimeError):
        raise MmfastError(
            f"{where} is {type(value).__name__} {list(np.shape(value))}; a picture is [H, W] or [H, W, 3]"
        ) from None


def x_of(spec: Any, value: Any, where: str, picture: PILImage.Image | None = None) -> Tensor | None:
    """One x from a picture, a text, a number or an array; None from None. Raises MmfastError for any other value.

    picture: the result of `picture_of`, if it is already known.
    """
    kind = kinds.kind(spec.kind)
    blank = kind.blank(spec)
    if value is None:
        return None
    picture = picture_of(spec, value, where) if picture is None else picture
    if picture is not None:
        return kind.from_picture(picture, spec, where)
    if isinstance(value, str):
        return kind.from_text(value.strip(), spec, where)
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and not blank.is_floating_point()):
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise MmfastError(
            f"{where} is of type {type(value).__name__}, which cannot be converted to kind {spec.kind}"
        ) from None
    if array.size != math.prod(blank.shape) or (array.ndim > 1 and array.shape != blank.shape):
        raise MmfastError(f"{where} is of shape {list(array.shape)}; it should be {list(blank.shape)}")
    classes = getattr(spec, "classes", None)
    if classes is not None and (int(array.min()) < 0 or int(array.max()) >= classes):
        raise MmfastError(f"{where} runs from {array.min()} to {array.max()}; it should be in 0 .. {classes - 1}")
    with np.errstate(over="ignore"):
        found = torch.from_numpy(np.array(array, dtype=blank.numpy().dtype)).reshape(blank.shape)
    if not bool(found.isfinite().all()):
        raise MmfastError(f"{where} holds NaN or infinite values; it should hold finite ones")
    return found


def codings(train: Items, test: Items | None) -> dict[str, str]:
    """The codings of two-class masks (`mmfast.data.codings`) by modality; empty where no mask is conclusive."""
    found = {}
    for name in undecided(train.specs):

        def mask(at: tuple[Items, int], name: str = name) -> PILImage.Image | None:
            items, index = at
            return picture_of(items.specs[name], items.values(index)[name], "")

        parts = [(items, k) for items in (train, test) if items is not None for k in range(len(items))]
        order = sorted(parts, key=lambda at: place(str(at[1])))
        found[name] = decided(order, mask, train.specs[name])
    return found


def mask_values(train: Items, test: Items | None) -> dict[str, dict[str, Any]]:
    """The codings of masks as options of the modalities, for a run to store."""
    return options_of(codings(train, test))


def split(train: Items, test: Items | None, options: Any) -> Data:
    """The data. Without test examples, a share of the training examples is held out, chosen by their numbers.

    options: a data set's test_fraction, flip, cache, cache_gb and on_error, which mean the same as for folders.
    """
    found = codings(train, test)
    coded = [x and dataclasses.replace(x, specs=with_values(x.specs, found)) for x in (train, test)]
    kept = [None if items is None else _kept(items, options) for items in coded]
    parts = [x for x in kept if x is not None]
    if test is None:
        parts = [Only(parts[0], rows) for rows in parted(len(train), options.test_fraction)]
    # Each part separately, so that no held-out example replaces a training example.
    one, other = [Skipping(part) if options.on_error == "skip" else part for part in parts]
    return Data(one, other, flip=options.flip)


def _kept(items: Items, options: Any) -> Examples:
    if items.about is None:
        return items
    versions = items.versions

    def keys() -> list[bytes]:
        if versions is None:
            return [key_of(items.about, index) for index in range(len(items))]
        return [key_of(items.about, index, version) for index, version in enumerate(versions())]

    return decoded_once(items, items.specs, keys, {"called": items.called}, options)


def parted(count: int, fraction: float) -> list[Tensor]:
    """The numbers of the training examples and of the held-out ones, by a hash of each number."""
    order = sorted(range(count), key=lambda k: place(str(k)))
    share = sum(place(str(k)) < fraction for k in order)
    share = max(1, min(share, len(order) - 1))
    return [torch.tensor(sorted(rows), dtype=torch.int64) for rows in (order[share:], order[:share])]


def named(classes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The option `names` of labels with these class names; omitted if each name is its class's number, or empty."""

    def is_number(name: str, k: int) -> bool:
        return not name or (name.isdecimal() and len(name) <= 9 and int(name) == k)

    return {
        label: {"names": [*names]}
        for label, names in classes.items()
        if not all(is_number(name, k) for k, name in enumerate(names))
    }


T = TypeVar("T")


def captions(texts: Iterable[str | None]) -> list[str]:
    """The captions that a generated one is matched to: the distinct texts, or some evenly spaced if there are many.

    Long texts count as many: the run's config holds them all.
    """
    found = spread(sorted({*filter(None, texts)}), MOST_CAPTIONS)
    while sum(len(x.encode(errors="replace")) for x in found) > LONGEST_CAPTIONS:
        found = spread(found, len(found) // 2)
    return found


def spread(things: Sequence[T], most: int) -> list[T]:
    """At most `most` of the things, evenly spaced."""
    return [things[k * len(things) // most] for k in range(most)] if len(things) > most else [*things]


def names_of(specs: Mapping[str, Any], classes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The class names of labels that have that many classes and no names of their own.

    Raises MmfastError if a label's own names are these in another order: its numbers would mean other classes.
    """
    plain = {name: [re.sub(r"\s+", " ", str(x)) for x in found] for name, found in classes.items()}
    for name, found in plain.items():
        names = list(specs[name].names)
        if names != found and sorted(names) == sorted(found):
            raise MmfastError(f"modalities.{name}.names is {', '.join(names)}; the data's order is {', '.join(found)}")
    return {n: found for n, found in plain.items() if not specs[n].names and specs[n].classes == len(found)}


def check_known(option: str, names: Mapping[str, Any], modalities: Mapping[str, Any]) -> None:
    """Raise MmfastError if an option by modality has a key that is not a modality."""
    for name in names:
        if name not in modalities:
            raise unknown(f"{option}' modality", name, modalities)
