"""Samples as files: each value in a format that suits its type, and rows of a table as .csv."""

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
    """Write what `Modality.plain` returns to a file, with the extension of its type. Returns the file."""
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
    """Write arrays of any names to an .npz file; np.savez would take some names for its own arguments."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, x, allow_pickle=False)


def cells(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The columns and labels of one sample as a row of a table."""
    columns = {name: x for value in sample.values() if isinstance(value, dict) for name, x in value.items()}
    labels = {name: value for name, value in sample.items() if isinstance(value, str)}
    return columns | {f"{name} (label)" if name in columns else name: value for name, value in labels.items()}


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns to a .csv file, with a header line of names."""
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
