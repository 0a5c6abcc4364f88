"""Find the files below a folder, by their path without the suffix."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmfast.errors import MmfastError

# How many paths may lead to one folder by links. A few links between folders can make factorially many paths.
MOST_WAYS = 100


@dataclass
class Found:
    """The files below one folder by their path without the suffix, pairs that share a stem, and other files.

    problems: folders that could not be listed, a line each.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    doubles: list[tuple[Path, Path]] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def without(self, folders: Sequence[Path]) -> Found:
        """The same without the files below these folders."""

        def outside(path: Path) -> bool:
            return not any(folder in path.parents for folder in folders)

        return Found(
            {stem: path for stem, path in self.paths.items() if outside(path)},
            [pair for pair in self.doubles if all(map(outside, pair))],
            [path for path in self.others if outside(path)],
            self.problems,
        )


def find(folder: Path, extensions: Sequence[str], within: Path | None = None) -> Found:
    """The files with these suffixes below a folder, sorted, without hidden files and folders; links are followed.

    within: the folder that links to folders may not lead out of, while links to files may; None for no restriction.
    Stems are in Unicode's composed form (NFC), since other systems may write the same name in another form.
    """
    return find_each(folder, {"": extensions}, within)[""]


def find_each(folder: Path, endings: Mapping[str, Sequence[str]], within: Path | None = None) -> dict[str, Found]:
    """`find` for the suffixes of several kinds by name, walking the folder once."""
    out, problems = list[Path](), list[str]()
    each = {kind: Found(problems=problems) for kind in endings}
    for path in walk(folder, within, out, problems):
        ending = path.suffix.lower()
        special = any(ending in x for x in endings.values()) and _is_special(path)
        stem = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        for kind, found in each.items():
            if special or ending not in endings[kind]:
                found.others.append(path)
            elif stem in found.paths:
                found.doubles.append((found.paths[stem], path))
            else:
                found.paths[stem] = path
    if out:
        problems.append(led_out(out))
    return each


def check_no_root(what: str, folder: Path) -> None:
    """Raise MmfastError, naming it `what`, if the folder is the root of the file system, which nobody wants to walk."""
    if not os.path.realpath(folder).strip("/"):
        raise MmfastError(f"{what} is {str(folder)!r}, the root of the file system; it should be a folder of data")


def walk(
    folder: Path, within: Path | None = None, out: list[Path] | None = None, problems: list[str] | None = None
) -> Iterator[Path]:
    """Yield the files below a folder, sorted within each folder, without hidden files and folders.

    Linked folders are entered, except links back up, which would never end. out: collects the folders that lead out of
    `within`, which are not entered. problems: collects a line for each folder that cannot be listed.
    """
    problems, ways = [] if problems is None else problems, Counter[str]()
    todo = [(folder, frozenset(map(str, Path(os.path.realpath(folder)).parents)))]
    while todo:
        folder, above = todo.pop()
        if out is not None and leads_out(folder, within):
            out.append(folder)
            continue
        real = os.path.realpath(folder)
        if real in above:
            continue
        ways[real] += 1
        if ways[real] > MOST_WAYS:
            problems.append(f"{folder} is one of more than {MOST_WAYS} paths that lead to {real} by links; remove some")
            return
        try:
            with os.scandir(folder) as found:
                entries = sorted((x for x in found if not x.name.startswith(".")), key=lambda x: x.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problems.append(f"{folder} cannot be listed: {error.strerror}; permit it, or remove it")
            continue
        folders, files = list[Path](), list[Path]()
        for entry in entries:
            (folders if _is_folder(entry) else files).append(folder / entry.name)
        todo += [(path, above | {real}) for path in reversed(folders)]
        yield from files


def leads_out(path: Path, within: Path | None) -> bool:
    """Whether a path leads out of the folder `within` by links."""
    if within is None:
        return False
    real, root = os.path.realpath(path), os.path.realpath(within)
    return real != root and not real.startswith(root.rstrip(os.sep) + os.sep)


def led_out(paths: Sequence[Path]) -> str:
    """The message about links to folders that lead out of a data folder."""
    more = f" (and {len(paths) - 1:,} more)" if len(paths) > 1 else ""
    return (
        f"{paths[0]} is a link out of data.root, to {os.path.realpath(paths[0])}{more}; put that folder in its place, "
        "or let links lead out by --data.outside true (of `mmfast init`: --outside)"
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link, reported when it is read
        return False


def _is_special(path: Path) -> bool:
    """Whether the path is not a regular file: reading a pipe, for example, would block forever."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a dangling link, reported when it is read
        return False
