"""A table next to the folders: a CSV file with a row for each example, with its file's name and its other values."""

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
# The longest table, in bytes: about ten million rows.
LONGEST = 2**29
# Among more names, the search for a similar one would take seconds.
MOST_COMPARED = 20_000


@dataclass
class Table:
    """The cells of a table by column, then by the line where the row ends: stripped texts, without the empty ones.

    names: the file name of each row by its line, as written in the table.
    """

    path: Path
    names: dict[int, str]
    columns: dict[str, dict[int, str]] = field(default_factory=dict)

    def where(self, line: int) -> str:
        return f"{self.path} line {line}"


def find_table(root: Path) -> Path | None:
    """The path of the table in a data folder, None if there is none. Raises MmfastError if there are two."""
    found = [root / name for name in NAMES if os.path.lexists(root / name)]
    if len(found) > 1:
        raise MmfastError(f"{root} holds {' and '.join(NAMES)}; remove one, or put its columns into the other")
    return found[0] if found else None


def read_table(path: Path) -> Table:
    """Read a CSV file in UTF-8 whose first row names the columns, file_name among them. Raises MmfastError, with the
    line, for a row of another length and for any other file."""
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
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text; save it as UTF-8"
        raise MmfastError(f"{path} cannot be read as a table: {reason}") from None
    except csv.Error as error:
        raise MmfastError(f"{path} line {rows.line_num} cannot be read as CSV: {error}") from None
    return table


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def match(table: Table, files: Mapping[str, Path], folder: str) -> tuple[dict[int, str], list[str]]:
    """Match each line of a table to the stem of its example; also returns the problems with file names, a line each.

    files: the anchor's files by stem. A name is a path below the anchor's folder, or below the root, beginning with
    `folder`; its suffix may be omitted.
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
    """The error for a table in which no column is a modality."""
    found = ", ".join(table.columns) or f"{FILE_NAME} alone"
    return MmfastError(
        f"{table.path} line 1 has the columns {found}; one should be a modality: {', '.join(modalities) or '(none)'}"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
