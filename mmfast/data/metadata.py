"""A table next to the folders: a CSV or JSON Lines file with a row for each example, which names its file."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mmfast.errors import MmfastError
from mmfast.files import read_text
from mmfast.words import plural

NAMES = ("labels.csv", "metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"
# The longest table, in bytes: about ten million rows.
LONGEST = 2**29
# Among more names, the search for a similar one would take seconds.
MOST_COMPARED = 20_000


@dataclass
class Table:
    """The cells of a table by column, then by the line where the row ends: stripped texts, without the empty ones.

    names: the file name of each row by its line, as written in the table. nested: the first line in which a column has
    a list or an object.
    """

    path: Path
    names: dict[int, str]
    columns: dict[str, dict[int, str]] = field(default_factory=dict)
    nested: dict[str, int] = field(default_factory=dict)

    def where(self, line: int) -> str:
        return f"{self.path} line {line}"


def find_table(root: Path) -> Path | None:
    """The path of the table in a data folder, None if there is none. Raises MmfastError if there are more."""
    found = [root / name for name in NAMES if os.path.lexists(root / name)]
    if len(found) > 1:
        raise MmfastError(
            f"{root} holds {' and '.join(x.name for x in found)}; remove all but one, or put their columns into it"
        )
    return found[0] if found else None


def read_table(path: Path) -> Table:
    """Read a table in UTF-8: a CSV file whose first row names the columns, or a JSON object on each line (.jsonl).

    One column is file_name. Raises MmfastError, with the line, for a row of another length and for any other file.
    """
    try:
        text = read_text(path, LONGEST).removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text; save it as UTF-8"
        raise MmfastError(f"{path} cannot be read as a table: {reason}") from None
    table = Table(path, {})
    for line, row in (_json_lines if path.suffix == ".jsonl" else _csv_rows)(table, text):
        table.names[line] = row.pop(FILE_NAME)
        for name, cell in row.items():
            cells = table.columns.setdefault(name, {})
            if cell:
                cells[line] = cell
    return table


def _csv_rows(table: Table, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file by the line where they end. The table's columns are those of the first row."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [_plain(x) for x in next(rows, [])]
        if FILE_NAME not in header or len({*header}) < len(header):
            raise MmfastError(
                f"{table.where(1)} has the columns {', '.join(header)[:200]}; they should differ, be separated by "
                f"commas, and one should be {FILE_NAME}"
            )
        table.columns |= {name: {} for name in header if name != FILE_NAME}
        for row in rows:
            if row and len(row) != len(header):
                raise MmfastError(
                    f"{table.where(rows.line_num)} has {plural(len(row), 'cell')}; the first line has {len(header)} "
                    "columns"
                )
            if row:
                yield rows.line_num, dict(zip(header, map(_plain, row), strict=True))
    except csv.Error as error:
        raise MmfastError(f"{table.where(rows.line_num)} cannot be read as CSV: {error}") from None


def _json_lines(table: Table, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The objects of a JSON Lines file by line. Values other than texts are as in JSON; null and NaN are empty."""
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            row = json.loads(written)
            json.dumps(row, ensure_ascii=False).encode()  # refuses a half of a surrogate pair, which no file can hold
        except (ValueError, RecursionError) as error:
            raise MmfastError(f"{table.where(line)} cannot be read as JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get(FILE_NAME), str):
            raise MmfastError(f"{table.where(line)} should be an object with a text named {FILE_NAME}")
        for name, value in row.items():
            if isinstance(value, (list, dict)):
                table.nested.setdefault(_plain(name), line)
        yield line, {_plain(name): _as_text(value) for name, value in row.items()}


def _as_text(value: object) -> str:
    if value is None or value != value:
        return ""
    return _plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


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
