"""Data sets of torchvision: any class of torchvision.datasets whose examples are tuples, such as (picture, label)."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfast.data import skipping
from mmfast.data.base import FLIP, Data
from mmfast.data.cache import HELP, LIMIT
from mmfast.data.decoded import key_of
from mmfast.data.found import walk
from mmfast.data.items import Items, check_known, mask_values, named, names_of, split
from mmfast.errors import MmfastError, optional_package, unknown
from mmfast.image_files import no_programs
from mmfast.options import option

# These open any format that Pillow knows; kind: folder reads folders instead.
FOLDERS = ("ImageFolder", "DatasetFolder")
# These unpickle a file in the current folder.
UNSAFE = ("LSUN", "LSUNClass")


@dataclass
class Spec:
    kind: str = "torchvision"
    name: str = option("", "the class in torchvision.datasets, such as CIFAR10 or OxfordIIITPet")
    root: str = option("", "the folder in which torchvision keeps the data", path=True)
    download: bool = option(False, "let torchvision download the data, if it can")
    train: dict[str, Any] = option({}, "arguments of the class for the training examples, as in {train: true}")
    test: dict[str, Any] = option({}, "its arguments for the held-out examples; empty: hold out a share of the others")
    fields: dict[str, int] = option(
        {}, "the place of each modality in a flattened example; empty: the anchor 0, the others in order"
    )
    test_fraction: float = option(0.1, "share of the examples held out if test is empty", above=0, max=0.9)
    on_error: str = option("stop", skipping.ON_ERROR, choices=skipping.CHOICES)
    flip: bool = option(False, FLIP)
    cache: str = option("", HELP, path=True)
    cache_gb: float = option(10.0, LIMIT, min=0, max=math.inf)


def _flat(example: Any) -> list[Any]:
    return [x for part in example for x in _flat(part)] if isinstance(example, tuple) else [example]


@functools.lru_cache(maxsize=4)
def _load(name: str, root: str, download: bool, arguments: str) -> Any:
    with optional_package("torchvision", "torchvision", "data.kind=torchvision"):
        from torchvision import datasets
    known = [x for x in datasets.__all__ if x not in (*FOLDERS, *UNSAFE) and inspect.isclass(getattr(datasets, x))]
    if name in FOLDERS:
        raise MmfastError(f"data.name is {name!r}; folders are read by data.kind=folder")
    if name in UNSAFE:
        raise MmfastError(
            f"data.name is {name!r}, whose reader runs code from a file in the current folder; choose another"
        )
    if name not in known:
        raise unknown("data.name", name, known)
    make = getattr(datasets, name)
    takes = inspect.signature(make).parameters
    given = json.loads(arguments)
    for key in given:
        if key not in takes or key in ("root", "download", "loader"):
            names = [x for x in takes if x not in ("root", "download", "loader")]
            raise unknown(f"data: an argument of {name}", key, names)
    given |= {"root": root} if "root" in takes else {}
    given |= {"download": True} if download and "download" in takes else {}
    try:
        with no_programs():
            return make(**given)
    except MmfastError:
        raise
    except Exception as error:  # torchvision may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise MmfastError(
            f"data: torchvision's {name} cannot be opened in {root or 'no data.root'}: {reason}"
        ) from None


def _dataset(spec: Spec, arguments: Mapping[str, Any]) -> Any:
    return _load(spec.name, spec.root, spec.download, json.dumps(dict(arguments), sort_keys=True))


def _fields(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> dict[str, int]:
    check_known("data.fields", spec.fields, modalities)
    others = (name for name in modalities if name != anchor)
    return dict(spec.fields) or {name: k for k, name in enumerate((anchor, *others))}


def _items(spec: Spec, modalities: Mapping[str, Any], anchor: str, arguments: Mapping[str, Any]) -> Items:
    found, fields = _dataset(spec, arguments), _fields(spec, modalities, anchor)
    missing = [name for name in modalities if name not in fields]
    if missing:
        raise MmfastError(f"data.fields has no {missing[0]}; it should have a place for each modality that is read")

    def get(index: int) -> dict[str, Any]:
        with no_programs():
            values = _flat(found[index])
        if max(fields.values()) >= len(values) or min(fields.values()) < 0:
            raise MmfastError(
                f"data.fields is {fields}; an example of {spec.name} has {len(values)} parts, from 0 on: "
                f"{', '.join(type(x).__name__ for x in values)}"
            )
        return {name: values[k] for name, k in fields.items()}

    about = None
    if spec.cache_gb:
        about = {"arguments": dict(arguments), "fields": fields, "files": _files(spec.root), "torchvision": _version()}
    return Items(len(found), get, modalities, f"torchvision's {spec.name}", anchor, about)


def _files(root: str) -> str:
    """A hash of the names, sizes and times of the files below root, as a cache key."""
    found = []
    for path in walk(Path(root)) if root else ():
        with contextlib.suppress(OSError):
            known = path.stat()
            found.append((str(path), known.st_size, known.st_mtime_ns, known.st_ctime_ns))
    return key_of(sorted(found)).hex()


def _version() -> str:
    import torchvision

    return torchvision.__version__


def open(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Data:
    """The examples of a torchvision data set. Raises MmfastError if it cannot be opened or the options do not fit."""
    return split(*_parts(spec, modalities, anchor), spec)


def _parts(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> tuple[Items, Items | None]:
    train = _items(spec, modalities, anchor, spec.train)
    return train, _items(spec, modalities, anchor, spec.test) if spec.test else None


def found(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> dict[str, dict[str, Any]]:
    """Options of the modalities found in the data: the data set's names of classes, and codings of two-class masks."""
    names = getattr(_dataset(spec, spec.train), "classes", None)
    labels = {name: names for name, part in modalities.items() if part.kind == "label" and names}
    return named(names_of(modalities, labels)) | mask_values(*_parts(spec, modalities, anchor))
