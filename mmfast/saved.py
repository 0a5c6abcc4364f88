"""Samples as files: each value in a file of its type's ending, and rows of a table as .csv."""

from __future__ import annotations

import csv
import functools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage


@functools.singledispatch
def write_file(value: Any, stem: Path) -> Path:
    """Write what `Modality.plain` returns to a file of its ending."""
    raise TypeError(type(value))


@write_file.register
def _(value: PILImage.Image, stem: Path) -> Path:
    value.save(stem.with_suffix(".png"))
    return stem.with_suffix(".png")


@write_file.register
def _(value: str, stem: Path) -> Path:
    stem.with_suffix(".txt").write_text(value, encoding="utf-8")
    return stem.with_suffix(".txt")


@write_file.register
def _(value: dict, stem: Path) -> Path:
    write_rows(stem.with_suffix(".csv"), [value])
    return stem.with_suffix(".csv")


@write_file.register
def _(value: np.ndarray, stem: Path) -> Path:
    np.save(stem.with_suffix(".npy"), value)
    return stem.with_suffix(".npy")


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays of any names as an .npz file; np.savez takes some names for its own arguments."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, x, allow_pickle=False)


def cells(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and the names of one sample as a row of a table: columns, labels."""
    row: dict[str, Any] = {}
    for name, value in sample.items():
        row |= value if isinstance(value, dict) else {name: value} if isinstance(value, str) else {}
    return row


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same columns as a .csv file, with a line of names first."""
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
