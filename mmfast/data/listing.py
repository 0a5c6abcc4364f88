"""List aligned folders: the files of each modality, how they belong together, and every problem with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from mmfast import modalities as kinds
from mmfast.data.base import Data, Examples
from mmfast.data.class_folders import class_folders
from mmfast.data.codings import decided, undecided, with_values
from mmfast.data.decoded import decoded_once
from mmfast.data.example_files import Files
from mmfast.data.found import check_no_root, find
from mmfast.data.metadata import NAMES, Table, find_table, match, no_column, read_table
from mmfast.data.skipping import Skipping
from mmfast.errors import MmfastError, unknown
from mmfast.image_files import load_picture


@dataclass
class Listing:
    """The contents of spec.root: the files of each modality by stem, and all problems with them, a line each.

    left_out: unused files and folders by reason. table: the file whose columns are modalities.
    """

    spec: Any
    modalities: Mapping[str, Any]
    anchor: str
    paths: dict[str, dict[str, Path]] = field(default_factory=dict)
    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    table: Path | None = None

    def folder(self, name: str) -> Path:
        """The folder of a modality's files."""
        return Path(self.spec.root) / self.spec.folders.get(name, name)

    @property
    def within(self) -> Path | None:
        """The folder that links to folders may not lead out of; None if they may."""
        return None if self.spec.outside else Path(self.spec.root)

    def leave_out(self, why: str, paths: list[Path]) -> None:
        if paths:
            self.left_out.setdefault(why, []).extend(paths)

    def split(self) -> dict[str, list[str]]:
        """The stems of the training examples (train) and of the held-out ones (test).

        The split is a function of each example's name, so adding or removing files moves no other. Each part has at
        least one example.
        """
        order = sorted(self.paths[self.anchor], key=place)
        held_out = sum(place(stem) < self.spec.test_fraction for stem in order)
        held_out = max(1, min(held_out, len(order) - 1))
        return {"train": sorted(order[held_out:]), "test": sorted(order[:held_out])}

    @cached_property
    def codings(self) -> dict[str, str]:
        """The codings of two-class masks (`mmfast.data.codings`) by modality; empty where no mask is conclusive."""
        order = sorted(self.paths[self.anchor], key=place)
        found = {}
        for name in undecided(self.modalities):
            files = [self.paths[name][stem] for stem in order if stem in self.paths[name]]
            found[name] = decided(files, lambda path: load_picture(path, "mask"), self.modalities[name])
        return found

    def data(self, on_error: str = "") -> Data:
        """The examples: the anchor's files with those that belong to them. on_error: overrides the option."""
        train, test = (self._part(part, stems, on_error or self.spec.on_error) for part, stems in self.split().items())
        return Data(train, test, flip=self.spec.flip)

    def _part(self, part: str, stems: list[str], on_error: str) -> Examples:
        named = {name: dataclasses.replace(self.modalities[name], names=found) for name, found in self.classes.items()}
        specs = with_values({**self.modalities, **named}, self.codings)
        files = Files(stems, self.paths, specs, self.texts)
        about = {"root": str(Path(self.spec.root).resolve()), "folders": dict(self.spec.folders), "part": part}
        examples = decoded_once(files, specs, lambda: [files.key(stem) for stem in stems], about, self.spec)
        return Skipping(examples) if on_error == "skip" else examples


def place(stem: str) -> float:
    """A number in 0 .. 1 that depends only on an example's name; examples below the test fraction are held out."""
    return int.from_bytes(hashlib.sha256(stem.encode(errors="surrogateescape")).digest()[:8], "big") / 2.0**64


def look(spec: Any, modalities: Mapping[str, Any], anchor: str) -> Listing:
    """List the contents of spec.root, with all problems. Of all files, only a table is opened.

    Raises MmfastError if there is no folder, and for invalid `folders`.
    """
    root = Path(spec.root)
    if not spec.root or not root.is_dir():
        here = f" in {Path.cwd()}, the current one" if spec.root and not root.is_absolute() else ""
        raise MmfastError(
            f"data.root is {spec.root!r}, no folder{here}; it should be one that has a folder for each modality, as "
            "--data.root DIR"
        )
    check_no_root("data.root", root)
    for name in spec.folders:
        if name not in modalities:
            raise unknown("data.folders' modality", name, modalities)
        folder = Path(spec.folders[name])
        if (folder.anchor or ".." in folder.parts) and not spec.outside:
            raise MmfastError(
                f"data.folders.{name} is {spec.folders[name]!r}, which leads out of data.root; it should be a folder "
                "below it, unless --data.outside true says so"
            )
    listing = Listing(spec, modalities, anchor)
    _take_files(listing, anchor)
    if not listing.paths[anchor]:
        return listing
    try:
        table = _take_table(listing)
    except MmfastError as error:
        listing.problems.append(str(error))
        table = None
    for name in modalities:
        if name != anchor:
            seen = _take_files(listing, name)
            if seen and name not in listing.texts:
                _check_found(listing, name)
    if len(listing.paths[anchor]) < 2:
        listing.problems.append(
            f"data.root: {listing.folder(anchor)} holds one example; it should hold some to train on and some to test"
        )
    known = {Path(spec.folders.get(name, name)).parts[:1] for name in modalities}
    if () not in known:  # if root itself is a modality's folder, all in it has been listed
        known |= set() if table is None else {(table.path.name,)}
        beside = [x for x in sorted(root.iterdir()) if not x.name.startswith(".") and (x.name,) not in known]
        tables = [x for x in beside if x.suffix.lower() in (".csv", ".jsonl") and x.stem != "samples"]
        listing.leave_out("not a folder of a modality", [x for x in beside if x not in tables])
        listing.leave_out(f"table, which would have to be named {', '.join(NAMES[:-1])} or {NAMES[-1]}", tables)
    return listing


def _take_files(listing: Listing, name: str) -> bool:
    """List the files of one modality; returns whether all folders could be listed."""
    part = listing.modalities[name]
    endings = kinds.kind(part.kind).extensions
    folder = listing.folder(name)
    found = find(folder, endings, listing.within)
    inside = [other for n in listing.modalities if folder in (other := listing.folder(n)).parents]
    found = found.without(inside)
    listing.paths[name] = found.paths
    listing.problems += [f"data.root: {problem}" for problem in found.problems]
    listing.problems += [f"data.root holds {a} and {b}, two files of one example; remove one" for a, b in found.doubles]
    beside = {n for n in listing.modalities if n != name and listing.folder(n) == folder}  # which share the folder
    theirs = tuple(ending for n in beside for ending in kinds.kind(listing.modalities[n].kind).extensions)
    table = {Path(listing.spec.root) / x for x in NAMES}
    others = [path for path in found.others if not path.name.lower().endswith(theirs) and path not in table]
    listing.leave_out(f"no {part.kind} file ({', '.join(endings)})", others)
    if name == listing.anchor and not found.paths and not found.problems:
        there = sorted(x.name for x in Path(listing.spec.root).iterdir() if x.is_dir() and x.name[0] != ".")
        hint = f"; name its folder in data.folders: there are {', '.join(there[:5])}"
        hint = hint if there and not folder.is_dir() else ""
        listing.problems.append(f"data.root: {folder} holds no {part.kind} files ({', '.join(endings)}){hint}")
    return not found.problems


def _check_found(listing: Listing, name: str) -> None:
    """Find files without an example and modalities without files. Without label files, folders name the classes."""
    part, paths, anchors = listing.modalities[name], listing.paths[name], listing.paths[listing.anchor]
    strays = [path for stem, path in paths.items() if stem not in anchors]
    listing.leave_out(f"of {name}, without a file of {listing.anchor} of that path and name", strays)
    if not paths and part.kind == "label":
        try:
            listing.classes[name] = _classes(anchors, name, part, listing.folder(name))
            listing.texts[name] = class_folders(anchors)
        except MmfastError as error:
            listing.problems.append(str(error))
    elif len(strays) == len(paths):
        endings = ", ".join(kinds.kind(part.kind).extensions)
        listing.problems.append(
            f"data.root: {listing.folder(name)} holds no {part.kind} file ({endings}) of the same path and name as one "
            f"in {listing.folder(listing.anchor)}"
        )
    elif strays and part.kind == "label" and not paths.keys() >= anchors.keys():
        lacks = next(path for stem, path in anchors.items() if stem not in paths)
        listing.problems.append(
            f"{strays[0]} is not a label of any {listing.anchor}, and {lacks} has none; name each label like the file "
            f"that it belongs to, or remove it{f' ({len(strays):,} such labels)' if len(strays) > 1 else ''}"
        )


def _has_own(listing: Listing, name: str) -> bool:
    """Whether a modality has files or, for a label, folders that name its classes."""
    part = listing.modalities[name]
    folders = part.kind == "label" and all("/" in stem for stem in listing.paths[listing.anchor])
    return folders or bool(find(listing.folder(name), kinds.kind(part.kind).extensions, listing.within).paths)


def _take_table(listing: Listing) -> Table | None:
    """Read the columns of a table that are modalities. Raises MmfastError if the table cannot be read."""
    path = find_table(Path(listing.spec.root))
    if path is None:
        return None
    table, anchors = read_table(path), listing.paths[listing.anchor]
    rows = {name: spec.columns for name, spec in listing.modalities.items() if _is_row(listing, name, table)}
    columns = [x for x in listing.modalities if x in table.columns and x != listing.anchor and x not in rows]
    if not columns and not rows:
        others = [name for name in listing.modalities if name != listing.anchor]
        lacking = [x for x in others if get_close_matches(x, table.columns) or not _has_own(listing, x)]
        if lacking:
            raise no_column(table, lacking)
        listing.notes.append(f"{path}: the columns {', '.join(table.columns)} are not modalities, and are left out")
        return None
    listing.table = path
    stems, problems = match(table, anchors, listing.spec.folders.get(listing.anchor, listing.anchor))
    listing.problems += problems
    used = {*columns, *(column for of in rows.values() for column in of)}
    others = [name for name in table.columns if name not in used]
    if others:
        listing.notes.append(f"{path}: the columns {', '.join(others)} are not modalities, and are left out")
    for name in columns:
        part, cells = listing.modalities[name], table.columns[name]
        if find(listing.folder(name), kinds.kind(part.kind).extensions, listing.within).paths:
            listing.problems.append(f"{path} has a column {name}, and {listing.folder(name)} its files; remove one")
        if not cells:
            listing.problems.append(f"{path}: the column {name} is empty")
        if name in table.nested:
            where = table.where(table.nested[name])
            listing.problems.append(f"{where}: {name} is a list or an object; it should be a text or a number")
        if part.kind == "label" and not part.names and not all(map(_is_number, cells.values())):
            found = sorted({*cells.values()})
            if len(found) == part.classes:
                listing.classes[name] = found
                part = dataclasses.replace(part, names=found)
            else:
                listing.problems.append(
                    f"modalities.{name}.classes is {part.classes}; {path} names {len(found)} ({', '.join(found[:5])})"
                )
                part = None
        listing.texts[name] = {stems[line]: cell for line, cell in cells.items() if line in stems}
        if part is not None:
            listing.problems += _wrong_cells(table, cells, part)
    for name, of in rows.items():
        whole = {line: {c: table.columns[c].get(line, "") for c in of} for line in stems}
        cells = {line: json.dumps(row) for line, row in whole.items() if all(row.values())}
        listing.texts[name] = {stems[line]: cell for line, cell in cells.items()}
        listing.problems += _wrong_cells(table, cells, listing.modalities[name])
    return table


def _is_row(listing: Listing, name: str, table: Table) -> bool:
    """Whether a modality is a row of the table's columns: it names them, and has no files of its own."""
    part = listing.modalities[name]
    columns = part.columns if part.kind == "table" else ()
    if not columns or not all(column in table.columns for column in columns):
        return False
    return not find(listing.folder(name), kinds.kind(part.kind).extensions, listing.within).paths


def _wrong_cells(table: Table, cells: Mapping[int, str], part: Any) -> list[str]:
    """A line for each text in a column that is invalid."""
    first = {cell: line for line, cell in reversed([*cells.items()])}
    return [problem for cell, line in first.items() if (problem := _problem(cell, part, table.where(line)))]


def _problem(cell: str, part: Any, where: str) -> str:
    try:
        kinds.kind(part.kind).check_text(cell, part, where)
    except MmfastError as error:
        return str(error)
    return ""


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 9


def _classes(anchors: dict[str, Path], name: str, part: Any, folder: Path) -> list[str]:
    """The name of each class, from the folders of the anchors' paths: in the order of the given names, else sorted.

    Folders named by whole numbers are the classes of these numbers.
    """
    found = sorted({*class_folders(anchors).values()})
    if not found:
        raise MmfastError(f"data.root: {folder} holds no label files (.txt), nor do folders name the classes")
    if not part.names and all(map(_is_number, found)):  # they keep their numbers
        numbers = [int(x) for x in found]
        if len({*numbers}) < len(found) or max(numbers) >= part.classes:
            raise MmfastError(
                f"modalities.{name}.classes is {part.classes}; the folders are the numbers {', '.join(found[:5])}, "
                "which should differ and be below it"
            )
        return [found[numbers.index(k)] if k in numbers else "" for k in range(part.classes)]
    names = list(part.names) or found
    missing = [stem for stem in found if stem not in names]
    if missing or len(names) != part.classes:
        raise MmfastError(
            f"modalities.{name}.classes is {part.classes}; the folders name {len(found)} ({', '.join(found[:5])})"
        )
    return names
