"""Aligned folders: root/MODALITY/.../stem.ext, where files with the same path and stem belong together.

root/image/cats/001.png, root/mask/cats/001.png, root/label/cats/001.txt, root/embedding/cats/001.npy. Each file of
the anchor is an example; modalities without a file for it are missing. A label without a folder of its own is a column
of root/labels.csv, or the first folder of the anchor's path (cats). `folders` gives folders with another name
({image: photos}); "." is root itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmfast.data import codings, skipping
from mmfast.data.base import FLIP, Data
from mmfast.data.cache import HELP, LIMIT
from mmfast.data.items import MOST_CAPTIONS, captions, named, spread
from mmfast.data.listing import Listing, look
from mmfast.errors import MmfastError
from mmfast.modalities.label import counted, is_class, read_text
from mmfast.modalities.table import number, statistics
from mmfast.options import option

# How many label files are opened to count the classes: enough to estimate their shares.
MOST_COUNTED = 10_000


@dataclass
class Spec:
    kind: str = "folder"
    root: str = option("", "the folder that holds a folder for each modality", path=True)
    folders: dict[str, str] = option(
        {}, "folders below root of modalities with another name, as in {image: photos}; . for root itself"
    )
    outside: bool = option(False, "folders may lead out of root, by .., an absolute path or a link")
    test_fraction: float = option(
        0.1, "approximate share of the examples held out for the evaluation, by their names", above=0, max=0.9
    )
    on_error: str = option("stop", skipping.ON_ERROR, choices=skipping.CHOICES)
    flip: bool = option(False, FLIP)
    cache: str = option("", HELP, path=True)
    cache_gb: float = option(10.0, LIMIT, min=0, max=math.inf)


def open(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Data:
    """The examples below spec.root. Raises MmfastError for the first problem with the files there."""
    listing = look(spec, modalities, anchor)
    for problem in listing.problems:
        raise MmfastError(problem)
    return listing.data()


def folders(spec: Spec, modalities: Mapping[str, Any]) -> list[Path]:
    """The folders whose files are examples."""
    return [Path(spec.root) / spec.folders.get(name, name) for name in modalities]


def found(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> dict[str, dict[str, Any]]:
    """Options of the modalities found in the folders: the classes' names from folders or a table, the number of
    examples of each (from at most MOST_COUNTED label files), captions, and codings of masks."""
    listing = look(spec, modalities, anchor)
    options = named(listing.classes) | codings.options_of(listing.codings)
    train = listing.split()["train"] if listing.paths[anchor] else []
    for name, part in modalities.items():
        texts = listing.texts.get(name, {})
        if part.kind == "label" and not texts:
            there = listing.paths.get(name, {})
            texts = {x: _text(there[x]) for x in spread([x for x in train if x in there], MOST_COUNTED)}
        if part.kind == "label" and texts:
            part = dataclasses.replace(part, names=listing.classes.get(name, part.names))
            seen = (text for x in train if (text := texts.get(x)) and (spec.on_error == "stop" or is_class(text, part)))
            options[name] = {**options.get(name, {}), **counted(part, seen)}
    for name, part in modalities.items():
        texts = listing.texts.get(name, {})
        if part.kind == "table" and texts and not (part.means and part.scales):
            rows = [row for x in train if x in texts and (row := _row(texts[x], part)) is not None]
            if rows:
                means, scales = statistics(np.array(rows))
                options[name] = {"means": part.means or means, "scales": part.scales or scales}
        if part.kind == "caption" and not part.captions:
            stems, cells = listing.paths[anchor], listing.texts.get(name)
            paths = [path for stem, path in listing.paths.get(name, {}).items() if stem in stems]
            # Training reports, or skips, what cannot be read.
            files = (_text(path) or None for path in spread(paths, MOST_CAPTIONS))
            options[name] = {"captions": captions(files if cells is None else cells.values())}
    return options


def _row(text: str, part: Any) -> list[float] | None:
    """The numbers of a table's row; None if a cell is no number, which training reports."""
    try:
        return [number(cell, "") for cell in (json.loads(text)[column] for column in part.columns)]
    except MmfastError:
        return None


def _text(path: Path) -> str:
    """A label file's text; "" if it cannot be read, which training reports."""
    try:
        return read_text(path)
    except MmfastError:
        return ""


__all__ = ["Listing", "Spec", "folders", "found", "look", "open"]
