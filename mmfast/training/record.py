"""A record of a run's data: enough to detect what has changed since, without reading all of it again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmfast.data import Data, Examples
from mmfast.errors import notice
from mmfast.files import read_text
from mmfast.progress import Bar
from mmfast.words import plural

# The longest record, in bytes: that of a million files.
LONGEST = 2**28
# In bytes: how much of all files is hashed in total, and of each at least. Longer files are hashed by their two ends.
IN_ALL, OF_EACH = 2**31, 2**13
# How many examples of each part are hashed if the data is not in files.
LOOKED_AT = 32
# How many names an error lists; up to how many files are hashed without a progress bar.
NAMED, FEW = 3, 2000
PARTS = {"train": "training", "test": "held-out"}


@dataclass
class Record:
    """Files by name, each [size in bytes, time of change in ns, digest]; or examples, {part: {number: digest}}.

    portion: how many bytes of a file are hashed at most. allowed: the changes that the user has allowed, a line each.
    """

    portion: int = 0
    files: dict[str, list[Any]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, dict[str, str]] = field(default_factory=dict)
    allowed: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Parse what `to_json` wrote. Raises ValueError for anything else."""
        found = json.loads(text)
        usual = asdict(cls())
        if not isinstance(found, dict) or found.keys() != usual.keys():
            raise ValueError(f"it should hold {', '.join(usual)}")
        for name, value in usual.items():
            if type(found[name]) is not type(value):
                raise ValueError(f"{name} is a {type(found[name]).__name__}")
        for entry in found["files"].values():
            if not isinstance(entry, list) or [type(x) for x in entry] != [int, int, str]:
                raise ValueError(f"a file is {entry!r:.50}")
        return cls(**found)


def load(path: Path) -> Record | None:
    """The record of the data as it was when the run began or a change was last allowed; None if there is none.

    If the record cannot be read, print a notice and return None.
    """
    try:
        return Record.from_json(read_text(path, LONGEST))
    except FileNotFoundError:  # the run is of an earlier version
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        notice(f"{path} cannot be read ({reason}), so changes of the data go unnoticed this time")
        return None


def of_files(files: Mapping[str, Path], before: Record | None = None, quiet: bool = True) -> Record:
    """The record of files by name. Files whose size and time are as `before` are not read again."""
    found: dict[str, list[Any]] = {}
    for name, path in files.items():
        try:
            known = path.stat()
        except OSError:  # a dangling link, which the data set reports when it reads it
            continue
        found[name] = [known.st_size, known.st_mtime_ns, ""]
    portion = before.portion if before and before.files else _portion([size for size, *_ in found.values()])
    new = []
    for name, entry in found.items():
        old = before.files.get(name) if before else None
        if old is not None and old[:2] == entry[:2]:
            entry[2] = old[2]
        else:
            new.append(name)
    with Bar(len(new), "looking at the data", "file", quiet=quiet or len(new) <= FEW) as bar:
        for name in new:
            found[name][2] = _digest(files[name], portion)
            bar.update()
    return Record(portion, found)


def _portion(sizes: Sequence[int]) -> int:
    """How many bytes of each file to hash, so that small files leave their share to large ones."""
    left = IN_ALL
    for k, size in enumerate(sorted(sizes)):
        if size * (len(sizes) - k) > left:
            return max(OF_EACH, left // (len(sizes) - k))
        left -= size
    return max(OF_EACH, *sizes, 0)


def _digest(path: Path, portion: int) -> str:
    """Hash a file's content, or its two ends if it has more than `portion` bytes; "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= portion:
                return _short(file.read())
            beginning = file.read(portion // 2)
            file.seek(size - portion // 2)
            return _short(beginning + file.read())
    except OSError:
        return ""


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def of_examples(data: Data, names: Iterable[str]) -> Record:
    """The record of data that is not in files: the number of examples, and hashes of some, evenly spaced.

    names: the modalities to hash. Modalities computed from others may differ in their last bits between machines.
    """
    found = Record()
    for part in PARTS:
        examples: Examples = getattr(data, part)
        count = len(examples)
        rows = sorted({k * count // LOOKED_AT for k in range(LOOKED_AT)})
        found.counts[part] = count
        found.examples[part] = {str(row): _of_example(examples, row, names) for row in rows}
    return found


def _of_example(examples: Examples, row: int, names: Iterable[str]) -> str:
    batch = examples.__getitems__([row])
    content = hashlib.sha256()
    for name in sorted(set(names) & batch.data.keys()):
        x = batch.data[name][0].detach().cpu().contiguous()
        there = bool(batch.present[name][0]) if name in batch.present else True
        content.update(f"{name} {x.dtype} {list(x.shape)} {there}".encode())
        if there:
            content.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:32]


def changes(old: Record, new: Record) -> list[str]:
    """Describe what has changed from one record to the other; empty if they are of different kinds."""
    found = []
    if old.files and new.files:
        both = [name for name in old.files if name in new.files]
        altered = [name for name in both if (a := old.files[name])[0] != (b := new.files[name])[0] or a[2] != b[2]]
        found += _named("added", [name for name in new.files if name not in old.files])
        found += _named("no longer used", [name for name in old.files if name not in new.files])
        found += _named("altered", altered)
    for part in PARTS if old.counts and new.counts else ():
        was, count = old.counts.get(part), new.counts[part]
        if was != count:
            found.append(f"{plural(count, f'{PARTS[part]} example')} instead of {was:,}")
            continue
        before, now = old.examples.get(part, {}), new.examples[part]
        other = sorted(int(k) for k in now if before.get(k) != now[k])
        if other:
            which = f"{plural(len(now), f'{PARTS[part]} example')} looked at"
            found.append(f"{len(other)} of {which} altered (number {_some(map(str, other))})")
    return found


def _named(what: str, names: list[str]) -> list[str]:
    return [f"{plural(len(names), 'file')} {what} ({_some(sorted(names))})"] if names else []


def _some(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:NAMED]) + (", ..." if len(first) > NAMED else "")
