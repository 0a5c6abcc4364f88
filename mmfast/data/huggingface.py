"""Data sets of Hugging Face's `datasets`: from the Hub, from data files, or written by save_to_disk."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmfast.data import skipping
from mmfast.data.base import FLIP, Data
from mmfast.data.cache import HELP, LIMIT
from mmfast.data.items import (
    MOST_CAPTIONS,
    Items,
    captions,
    check_known,
    mask_values,
    named,
    names_of,
    parted,
    split,
    spread,
)
from mmfast.errors import MmfastError, optional_package, unknown
from mmfast.image_files import load_picture, picture_in
from mmfast.modalities.label import counted
from mmfast.options import option

# The file that marks a folder written by save_to_disk: with several splits, with one.
SAVED = ("dataset_dict.json", "dataset_info.json")
# How many rows are read at a time where only their paths are wanted.
ROWS = 1000


def _is_folder(text: str, full: str) -> bool:
    """Whether a path is meant and not a name: `datasets` itself accepts a folder in the current one."""
    return Path(full).exists() or Path(text).exists() or text.startswith((".", os.sep))


@dataclass
class Spec:
    kind: str = "huggingface"
    path: str = option("", "the data set's name on the Hub, or a folder of it", path=_is_folder)
    name: str = option("", "which configuration of the data set; empty: the only one")
    train: str = option("train", "the split of the training examples")
    test: str = option("", "the split that is held out; empty: hold out a share of the others")
    columns: dict[str, str] = option({}, "columns of modalities with another name, as in {image: img}")
    test_fraction: float = option(0.1, "share of the examples held out if test is empty", above=0, max=0.9)
    on_error: str = option("stop", skipping.ON_ERROR, choices=skipping.CHOICES)
    flip: bool = option(False, FLIP)
    cache: str = option("", HELP, path=True)
    cache_gb: float = option(10.0, LIMIT, min=0, max=math.inf)


@functools.lru_cache(maxsize=4)
def _load(path: str, name: str, part: str) -> Any:
    with optional_package("datasets", "huggingface", "data.kind=huggingface"):
        import datasets
    if int(datasets.__version__.split(".")[0]) < 4:  # earlier versions may run a script that comes with the data
        raise MmfastError(f"data.kind=huggingface needs datasets 4 or later, not {datasets.__version__}")
    if not path:
        raise MmfastError("data.path is empty; it should be a data set's name on the Hub, or a folder of it")
    try:
        if any((Path(path) / file).exists() for file in SAVED):
            found = datasets.load_from_disk(path)
            if isinstance(found, datasets.DatasetDict):
                if part not in found:
                    raise unknown("data: the split", part, found)
                found = found[part]
        else:
            found = datasets.load_dataset(path, name or None, split=part)
    except MmfastError:
        raise
    except Exception as error:  # datasets may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise MmfastError(f"data.path {path!r}, split {part!r}, cannot be opened: {reason}") from None
    # Pictures are decoded by mmfast, which accepts only its own formats.
    for column, feature in found.features.items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(column, datasets.Image(decode=False))
    return found


def _columns(spec: Spec, modalities: Mapping[str, Any], known: Any) -> dict[str, str]:
    check_known("data.columns", spec.columns, modalities)
    columns = {name: spec.columns.get(name, name) for name in modalities}
    for column in columns.values():
        if column not in known:
            raise unknown("data.columns: a column", column, known)
    return columns


def _value(x: Any, where: str) -> Any:
    """The value of a column, with pictures decoded. An empty text is a missing value."""
    if isinstance(x, str) and not x.strip():
        return None
    if not (isinstance(x, dict) and {"bytes", "path"} == x.keys()):
        return x
    return picture_in(x["bytes"], where) if x["bytes"] else load_picture(Path(x["path"]))


def _items(spec: Spec, modalities: Mapping[str, Any], anchor: str, part: str) -> Items:
    found = _load(spec.path, spec.name, part)
    columns = _columns(spec, modalities, found.features)
    chosen = found.select_columns([*{*columns.values()}])
    called = f"{spec.path}, split {part}"

    def get(index: int) -> dict[str, Any]:
        row = chosen[index]
        return {name: _value(row[column], f"example {index} of {called}") for name, column in columns.items()}

    # A data set that is only in memory, as from a generator, may have no fingerprint.
    fingerprint = getattr(found, "_fingerprint", None)
    about = {"fingerprint": fingerprint, "columns": columns} if fingerprint else None
    pictures = [column for column in {*columns.values()} if getattr(found.features[column], "decode", True) is False]
    return Items(len(found), get, modalities, called, anchor, about, lambda: _versions(found, pictures))


def _versions(found: Any, pictures: Sequence[str]) -> list[list[Any]]:
    """The size and times of each picture file that a row names by its path: a fingerprint covers the path alone."""
    if not pictures:
        return [[]] * len(found)
    paths, versions = found.flatten().select_columns([f"{column}.path" for column in pictures]), []
    for start in range(0, len(found), ROWS):
        part = paths[start : start + ROWS]
        versions += [[_version(path) for path in row] for row in zip(*part.values(), strict=True)]
    return versions


def _version(path: str | None) -> list[int] | None:
    try:
        known = os.stat(path or "")
    except (OSError, ValueError):  # most often a mere name, of a picture whose bytes are in the row
        return None
    return [known.st_size, known.st_mtime_ns, known.st_ctime_ns]


def open(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Data:
    """The examples of a data set of `datasets`. Raises MmfastError if it cannot be opened or its columns do not fit."""
    train, test = _parts(spec, modalities, anchor)
    if spec.test and _names(spec, modalities, spec.train) != (others := _names(spec, modalities, spec.test)):
        raise MmfastError(
            f"data.test: the classes of split {spec.test!r} are {others}, not those of {spec.train!r}, so the same "
            "numbers mean different classes; cast the column to the same features"
        )
    return split(train, test, spec)


def _parts(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> tuple[Items, Items | None]:
    train = _items(spec, modalities, anchor, spec.train)
    return train, _items(spec, modalities, anchor, spec.test) if spec.test else None


def found(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> dict[str, dict[str, Any]]:
    """Options of the modalities found in the data: names of classes from the features or the texts of label columns,
    the number of examples of each, captions, and codings of two-class masks."""
    options = named(names_of(modalities, _names(spec, modalities, spec.train)))
    options |= {name: {"names": texts} for name, texts in _texts(spec, modalities).items()}
    options |= mask_values(*_parts(spec, modalities, anchor))
    for name, part in modalities.items():
        if part.kind == "label":
            data = _load(spec.path, spec.name, spec.train)
            column = _columns(spec, modalities, data.features)[name]
            values = [x.strip() if isinstance(x := row[column], str) else x for row in data.select_columns([column])]
            train = torch.arange(len(values)) if spec.test else parted(len(values), spec.test_fraction)[0]
            part = dataclasses.replace(part, **options.get(name, {}))
            seen = counted(part, (x for k in train.tolist() if (x := values[k]) not in (None, "")))
            options[name] = {**options.get(name, {}), **seen}
        if part.kind == "caption" and not part.captions:
            data = _load(spec.path, spec.name, spec.train)
            column = _columns(spec, modalities, data.features)[name]
            texts = data.select_columns([column])
            rows = (texts[k][column] for k in spread(range(len(texts)), MOST_CAPTIONS))
            options[name] = {"captions": captions(str(x).strip() if x is not None else None for x in rows)}
    return options


def _texts(spec: Spec, modalities: Mapping[str, Any]) -> dict[str, list[str]]:
    """The classes of each label without names whose column holds texts: those of the training split, sorted.

    Texts that are all whole numbers are the numbers of the classes. Raises MmfastError for another number of classes.
    """
    data, found = _load(spec.path, spec.name, spec.train), {}
    for name, column in _columns(spec, modalities, data.features).items():
        part, dtype = modalities[name], getattr(data.features[column], "dtype", "")
        if part.kind != "label" or part.names or dtype not in ("string", "large_string"):
            continue
        texts = sorted({row[column].strip() for row in data.select_columns([column]) if row[column]} - {""})
        if all(text.isdecimal() for text in texts):
            continue
        if len(texts) != part.classes:
            raise MmfastError(
                f"modalities.{name}.classes is {part.classes}; the column {column} has {len(texts):,} different texts "
                f"({', '.join(texts[:5])})"
            )
        found[name] = texts
    return found


def _names(spec: Spec, modalities: Mapping[str, Any], part: str) -> dict[str, list[str]]:
    """The names of the classes of each label from a split's features; labels without names are omitted."""
    features = _load(spec.path, spec.name, part).features
    columns = _columns(spec, modalities, features)
    labels = {name: column for name, column in columns.items() if modalities[name].kind == "label"}
    by_label = {name: getattr(features[column], "names", None) for name, column in labels.items()}
    return {name: [*names] for name, names in by_label.items() if names}
