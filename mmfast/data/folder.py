"""Aligned folders: root/MODALITY/.../stem.ext, where files of one path and stem belong together.

root/image/cats/001.png, root/mask/cats/001.png, root/label/cats/001.txt, root/embedding/cats/001.npy. An example is
an anchor's file; what it lacks of the others counts as missing. A label without a folder of its own is the first
folder of the anchor's path (cats). A folder of another name is said by `folders` ({image: photos}); "." is root itself.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfast import modalities as kinds
from mmfast.data.base import Batch, Data
from mmfast.errors import MmfastError, unknown
from mmfast.image_files import check_shapes
from mmfast.modalities.label import read_text
from mmfast.options import option

# The files that a list of captions is made of, the first of them.
MOST_CAPTIONS = 1000


@dataclass
class Spec:
    kind: str = "folder"
    root: str = option("", "the folder that holds a folder for each modality")
    folders: dict[str, str] = option(
        {}, "the folder below root of a modality that has another name, as {image: photos}; . for root itself"
    )
    outside: bool = option(False, "folders may lead out of root, by .. or an absolute path")
    test_fraction: float = option(
        0.1, "share of the examples held out for the evaluation, about, by their names", above=0, max=0.9
    )


@dataclass
class Files:
    """Examples as files, read when they are asked for."""

    stems: list[str]
    paths: dict[str, dict[str, Path]]
    specs: Mapping[str, Any]
    classes: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.stems)

    def _read(self, name: str, stem: str) -> Tensor | None:
        spec = self.specs[name]
        if name in self.classes:
            return torch.tensor(self.classes[name].index(stem.split("/")[0]))
        path = self.paths[name].get(stem)
        return None if path is None else kinds.kind(spec.kind).read(path, spec)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        data, present = {}, {}
        for name, spec in self.specs.items():
            found = [self._read(name, self.stems[i]) for i in indices]
            there = torch.tensor([x is not None for x in found])
            if not bool(there.all()):
                present[name] = there
            blank = kinds.kind(spec.kind).blank(spec)
            data[name] = torch.stack([blank if x is None else x for x in found])
        # Of each the middle square is taken, which is the same part of both in pictures of one shape alone.
        kind_of = {name: kinds.kind(spec.kind) for name, spec in self.specs.items()}
        pictures = [self.paths[name] for name, kind in kind_of.items() if ".png" in kind.extensions]
        for i in indices:
            check_shapes([paths[self.stems[i]] for paths in pictures if self.stems[i] in paths])
        return Batch(data, present)


@dataclass
class Found:
    """The files below one folder by their path without the ending; beside them pairs of one stem, and other files."""

    paths: dict[str, Path] = field(default_factory=dict)
    doubles: list[tuple[Path, Path]] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def find(folder: Path, extensions: Sequence[str]) -> Found:
    """The files of these endings below a folder, sorted; none whose path has a hidden part. Linked folders are entered.

    Stems are in Unicode's composed form (NFC): other systems may have written the same name in another.
    """
    found = Found()
    for parent, folders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(x) for x in Path(parent).parents}
        if os.path.realpath(parent) in above:  # a link back, which would go on for ever
            folders[:] = []
            continue
        folders[:] = sorted(x for x in folders if not x.startswith("."))
        for path in sorted(Path(parent) / x for x in files if not x.startswith(".")):
            if path.suffix.lower() not in extensions or _is_special(path):
                found.others.append(path)
                continue
            stem = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
            if stem in found.paths:
                found.doubles.append((found.paths[stem], path))
            else:
                found.paths[stem] = path
    return found


def _is_special(path: Path) -> bool:
    """Whether there is something that is no file, such as a pipe, which would be waited for for ever."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link to nothing: to be told of when it is read
        return False


@dataclass
class Listing:
    """What lies below spec.root: the files of each modality by stem, and all that is wrong with it, a line each.

    left_out: what belongs to nothing, by the reason why it does not.
    """

    spec: Spec
    modalities: Mapping[str, Any]
    anchor: str
    paths: dict[str, dict[str, Path]] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def data(self) -> Data:
        """The examples: the files of the anchor, and what goes with each; some of them held out.

        Which are is a function of each one's name: files that come or go move no other. One at least is held out, and
        one is not.
        """
        order = sorted(self.paths[self.anchor], key=place)
        held_out = sum(place(stem) < self.spec.test_fraction for stem in order)
        held_out = max(1, min(held_out, len(order) - 1))

        def part_of(stems: list[str]) -> Files:
            return Files(sorted(stems), self.paths, self.modalities, self.classes)

        return Data(part_of(order[held_out:]), part_of(order[:held_out]))


def place(stem: str) -> float:
    """A number in 0 .. 1 that hangs on an example's name alone: those below the test fraction are held out."""
    return int.from_bytes(hashlib.sha256(stem.encode(errors="surrogateescape")).digest()[:8], "big") / 2.0**64


def open(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Data:
    """The examples below spec.root. Raises MmfastError for the first thing that is wrong with what lies there."""
    listing = look(spec, modalities, anchor)
    for problem in listing.problems:
        raise MmfastError(problem)
    return listing.data()


def found(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> dict[str, dict[str, Any]]:
    """What the folders say of the modalities' options: the classes' names, of labels that folders name; captions."""
    listing = look(spec, modalities, anchor)
    # Numbers are called as they are.
    names = {n: x for n, x in listing.classes.items() if not all(y.isdecimal() or not y for y in x)}
    options: dict[str, dict[str, Any]] = {n: {"names": x} for n, x in names.items()}
    for name, part in modalities.items():
        if part.kind == "caption" and not part.captions:
            read = (
                read_text(path) for stem, path in listing.paths.get(name, {}).items() if stem in listing.paths[anchor]
            )
            options[name] = {"captions": sorted(set(itertools.islice(filter(None, read), MOST_CAPTIONS)))}
    return options


def look(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Listing:
    """What lies below spec.root, right or wrong; no file is opened. Raises MmfastError where there is no folder."""
    root = Path(spec.root)
    if not spec.root or not root.is_dir():
        raise MmfastError(f"data.root is {spec.root!r}, no folder; it should hold a folder for each modality")
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
    problems, paths = listing.problems, listing.paths
    for name, part in sorted(modalities.items(), key=lambda item: item[0] != anchor):  # the anchor first
        folder = root / spec.folders.get(name, name)
        extensions = kinds.kind(part.kind).extensions
        found = find(folder, extensions)
        paths[name], endings = found.paths, ", ".join(extensions)
        problems += [f"data.root holds {a} and {b}, two files of one example; remove one" for a, b in found.doubles]
        _leave_out(listing, f"no {part.kind} file ({endings})", found.others)
        strays = [path for stem, path in found.paths.items() if stem not in paths[anchor]]
        _leave_out(listing, f"of {name}, without a file of {anchor} of that path and name", strays)
        if name == anchor and not paths[name]:
            problems.append(f"data.root: {folder} holds no {part.kind} files ({endings})")
            return listing
        if not paths[name] and part.kind == "label":
            try:
                listing.classes[name] = _classes(paths[anchor], name, part, folder)
            except MmfastError as error:
                problems.append(str(error))
        elif len(strays) == len(paths[name]) and name != anchor:
            problems.append(
                f"data.root: {folder} holds no {part.kind} file ({endings}) of the same path and name as one in "
                f"{root / spec.folders.get(anchor, anchor)}"
            )
    if len(paths[anchor]) < 2:
        folder = root / spec.folders.get(anchor, anchor)
        problems.append(f"data.root: {folder} holds one example; it should hold some to train on and some to test")
    known = {Path(spec.folders.get(name, name)).parts[:1] for name in modalities}
    if () not in known:  # where root itself is a modality's folder, all in it was looked at
        beside = [x for x in sorted(root.iterdir()) if not x.name.startswith(".") and (x.name,) not in known]
        _leave_out(listing, "no folder of a modality", beside)
    return listing


def _leave_out(listing: Listing, why: str, paths: list[Path]) -> None:
    if paths:
        listing.left_out.setdefault(why, []).extend(paths)


def _classes(anchors: dict[str, Path], name: str, part: Any, folder: Path) -> list[str]:
    """The folder of each class, from the first folder of the anchors' paths: those of the names given, else in their
    order; folders that are whole numbers are the classes of these numbers.
    """
    found = sorted({stem.split("/")[0] for stem in anchors if "/" in stem})
    if not found or any("/" not in stem for stem in anchors):
        raise MmfastError(f"data.root: {folder} holds no label files (.txt), nor do folders name the classes")
    if not part.names and all(x.isdecimal() and len(x) <= 9 for x in found):  # which keep their numbers
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
