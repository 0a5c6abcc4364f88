"""A config for a .csv file: its columns of numbers are the row, and its columns of a few texts are labels."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmfast import presets
from mmfast.config import check_name
from mmfast.data import table
from mmfast.errors import MmfastError
from mmfast.guess_text import UNKNOWN
from mmfast.words import plural

# A column with more different texts is no label. A column of at most two whole numbers, below as many, is one.
MOST_CLASSES, TWO = 100, 2


def options(file: Path, source: str) -> tuple[dict[str, Any], list[str]]:
    """The preset `table` for a .csv file, as plain data, and notes on the columns that are left out.

    source: the file as the config should name it. Raises MmfastError for a file that is not a table, or that has no
    column of numbers.
    """
    cells = table.cells(table.Spec(source=str(file)))
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(cells) == 1 and separator in next(iter(cells)):
            raise MmfastError(f"{file} has columns that are separated by {name}; save it with commas")
    numbers: list[str] = []
    labels: dict[str, str] = {}  # by modality, the column
    classes: dict[str, int] = {}
    notes: list[str] = []
    for column, texts in cells.items():
        found = [x for x in texts if x]
        known = [x for x in found if x.lower() not in UNKNOWN]
        values = _numbers(known) if known else None
        unknown = values is not None and len(known) < len(found)
        found = known if unknown else found
        different = len({*found})
        if not found:
            notes.append(f"the column {column}, which is empty")
        elif values is not None and (unknown or different > TWO or not all(x in range(MOST_CLASSES) for x in values)):
            if _counts(values) and len(found) == len(texts):
                notes.append(f"the column {column}, which numbers the rows")
            elif len(found) < len(texts):
                notes.append(
                    f"the column {column}, in which {len(texts) - len(found)} of {len(texts)} numbers are missing; "
                    "fill them in, or remove these rows"
                )
            else:
                numbers.append(column)
        elif 1 < different <= min(MOST_CLASSES, len(texts) // 2):
            name = _name(column, {*labels, *cells} - {column})
            # Whole numbers are the numbers of the classes, of which the last need not be their count.
            labels[name] = column
            classes[name] = 1 + max(map(int, found)) if all(x.isdecimal() for x in found) else different
        else:
            notes.append(f"the column {column}, with {plural(different, 'different text')}, which are not classes")
    if not numbers:
        raise MmfastError(f"{file} has no numeric column without missing values, so there is no row to generate")
    plain = yaml.safe_load(presets.text("table"))
    label = plain["modalities"]["label"]
    plain["data"] = {"kind": "table", "source": source}
    renamed = {name: column for name, column in labels.items() if name != column}
    if renamed:
        plain["data"]["columns"] = renamed
    row = plain["modalities"]["row"]
    plain["modalities"] = {"row": {"kind": row.pop("kind"), "columns": numbers, **row}}
    for name in labels:
        plain["modalities"][name] = {**label, "classes": classes[name]}
    return plain, notes


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """The texts as finite numbers; None if one is not."""
    try:
        found = [float(x) for x in texts]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def _counts(values: Sequence[float]) -> bool:
    """Whether the values count up by one, as numbers of rows do."""
    return all(b - a == 1 for a, b in itertools.pairwise(values))


def _name(column: str, taken: Collection[str]) -> str:
    """A modality's name for a column: its own as far as that is valid, and none of those taken."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", column).strip("_")
    try:
        check_name(name)
    except MmfastError:
        name = "label"
    names = (name, *(f"{name}_{k}" for k in range(2, 1000)))
    return next(name for name in names if name not in taken and name != "row")
