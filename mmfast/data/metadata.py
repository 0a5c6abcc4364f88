"""A table beside the folders: a CSV file with a row for each example, its file's name and what goes with it."""

from __future__ import annotations

import csv
import difflib
import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mmfast.errors import MmfastError
from mmfast.files import read_text

NAMES = ("labels.csv", "metadata.csv")
FILE_NAME = "file_name"
# In bytes: some ten million rows.
LONGEST = 2**29
# To look for a similar name takes seconds among more.
MOST_COMPARED = 20_000


@dataclass
class Table:
    """The cells of a table by column, then by row: the line where it ends, and its text, stripped. Empty ones are not.

    names: the file of each row, by its line, as the table has it.
    """

    path: Path
    names: dict[int, str]
    columns: dict[str, dict[int, str]] = field(default_factory=dict)

    def where(self, line: int) -> str:
        return f"{self.path} line {line}"


def find_table(root: Path) -> Path | None:
    """The table in a data folder. Raises MmfastError where there are two."""
    found = [root / name for name in NAMES if os.path.lexists(root / name)]
    if len(found) > 1:
        raise MmfastError(f"{root} holds {' and '.join(NAMES)}; remove one, or put its columns into the other")
    return found[0] if found else None


def read_table(path: Path) -> Table:
    """A CSV file in UTF-8, its first row the columns' names, file_name one of them. Raises MmfastError, with the line,
    for a row of another length, and for what is no such file."""
    try:
        text = read_text(path, LONGEST).removeprefix("\ufeff")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [_plain(x) for x in next(rows, [])]
        if FILE_NAME not in header or len({*header}) < len(header):
            raise MmfastError(
                f"{path} line 1 has the columns {', '.join(header)[:200]}; they should differ, be separated by commas, "
                f"and one should be {FILE_NAME}"
            )
        table = Table(path, {}, {name: {} for name in header if name != FILE_NAME})
        for row in rows:
            if not row:
                continue
            line = rows.line_num
            if len(row) != len(header):
                raise MmfastError(f"{table.where(line)} has {len(row)} cells; the first line has {len(header)} columns")
            for name, cell in zip(header, map(_plain, row), strict=True):
                if name == FILE_NAME:
                    table.names[line] = cell
                elif cell:
                    table.columns[name][line] = cell
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8; save it as UTF-8"
        raise MmfastError(f"{path} cannot be read as a table: {reason}") from None
    except csv.Error as error:
        raise MmfastError(f"{path} line {rows.line_num} cannot be read as CSV: {error}") from None
    return table


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def match(table: Table, files: Mapping[str, Path], folder: str) -> tuple[dict[int, str], list[str]]:
    """The example that each line of a table is of, as its stem, and what is wrong with its file names, a line each.

    files: the anchor's by stem. A name is a path below the anchor's folder, or below the root, which has `folder`
    before it; its ending may be left out.
    """
    known: dict[str, str] = {}
    for with_ending in (True, False):
        for stem, path in files.items():
            name = unicodedata.normalize("NFC", stem + path.suffix * with_ending)
            for start in ("", f"{folder}/"):
                known.setdefault(start + name, stem)
    found: dict[int, str] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    for line, name in table.names.items():
        stem = known.get(str(PurePosixPath(name.replace("\\", "/"))), "") if name else ""
        if not stem:
            near = difflib.get_close_matches(name, known, n=1) if not problems and len(known) < MOST_COMPARED else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(
                f"{table.where(line)}: {FILE_NAME} is {_short(name)}; it should be a file of {folder}{hint}"
            )
        elif stem in lines:
            problems.append(f"{table.where(line)}: {FILE_NAME} is {_short(name)}, as in line {lines[stem]}; remove one")
        else:
            found[line], lines[stem] = stem, line
    return found, problems


def no_column(table: Table, modalities: Sequence[str]) -> MmfastError:
    """The error for a table without a column of a modality."""
    found = ", ".join(table.columns) or f"{FILE_NAME} alone"
    return MmfastError(
        f"{table.path} line 1 has the columns {found}; one should be a modality: {', '.join(modalities) or '(none)'}"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
