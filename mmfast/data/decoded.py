"""A cache of decoded examples: each is a row of a memory-mapped file, keyed by its files and how they are read.

Whichever process first reads a row writes it. All processes write the same bytes, and a row counts only if its checksum
is right, so a kill or a power cut costs no more than decoding it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import PIL
import torch
from torch import Tensor

from mmfast import modalities as kinds
from mmfast.data.base import Batch, Examples, Layer
from mmfast.data.cache import cache_folder, made
from mmfast.data.rows import KEY, Layout, checksum, packings_of, there
from mmfast.errors import MmfastError, notice
from mmfast.files import write_atomically
from mmfast.modalities import Spec as AnySpec

VERSION = 1  # of the file's format, and of all code that reads pictures
# How many examples are inspected to choose the types in which modalities are stored.
LOOKED_AT = 8
GB = 1e9


@dataclass
class Decoded(Layer):
    """Examples whose values are cached in `file`: rows in it are not decoded again."""

    file: Path
    layout: Layout
    blanks: Mapping[str, Tensor]
    trusted: np.ndarray = field(init=False, repr=False)  # rows whose checksum this process has verified
    writes: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        self.trusted = np.zeros(len(self), bool)

    def __getstate__(self) -> dict[str, Any]:  # pickling a memory map would copy all of it
        return {k: x for k, x in vars(self).items() if k != "_map"}

    @cached_property
    def _map(self) -> np.ndarray | None:
        try:
            whole = np.memmap(self.file, np.uint8, "r")
        except (OSError, ValueError):  # another process has removed the file to make room
            return None
        return whole if len(whole) == self.layout.size else None

    @property
    def complete(self) -> bool:
        """Whether all rows are there, so that nothing is decoded again."""
        return self._map is not None and bool(self.layout.sums(self._map).all())

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        columns = self.layout.columns
        data = {c.name: torch.empty(len(indices), *c.shape, dtype=self.blanks[c.name].dtype) for c in columns}
        out = [x.numpy() for x in data.values()]
        has = np.ones((len(indices), len(columns)), bool)
        missing = [k for k, i in enumerate(indices) if not self._take(int(i), [x[k, ...] for x in out], has[k])]
        if missing:
            batch = self.examples.__getitems__([indices[k] for k in missing])
            for k, column in enumerate(columns):
                out[k][missing] = batch.data[column.name].numpy()
                has[missing, k] = there(batch, column.name).numpy()
            self._keep({int(indices[k]): ([x[k, ...] for x in out], has[k]) for k in missing})
        present = {column.name: torch.from_numpy(has[:, k].copy()) for k, column in enumerate(columns)}
        return Batch(data, {name: x for name, x in present.items() if not bool(x.all())})

    def _take(self, index: int, out: list[np.ndarray], has: np.ndarray) -> bool:
        """Fill one place of a batch from the file; returns whether the row is there and intact."""
        if self._map is None:
            return False
        row = self.layout.row(self._map, index)
        if not self.trusted[index]:
            if self.layout.sums(self._map)[index] != checksum(row):
                return False
            self.trusted[index] = True
        for k, column in enumerate(self.layout.columns):
            has[k] = row[k]
            if row[k]:
                column.unpack(row, out[k])
            else:
                out[k][...] = self.blanks[column.name].numpy()
        return True

    def _keep(self, rows: Mapping[int, tuple[list[np.ndarray], np.ndarray]]) -> None:
        """Write rows, each given by its values and flags for which modalities are present."""
        if self._map is None or not self.writes:
            return
        try:
            with open(self.file, "rb+", buffering=0) as file:
                for index, (numbers, has) in rows.items():
                    row = np.zeros(self.layout.width, np.uint8)
                    row[: len(has)] = has
                    columns = zip(self.layout.columns, numbers, has, strict=True)
                    # A row that does not fit the types chosen from the inspected ones is decoded each time.
                    if all(column.pack(x, row) for column, x, there in columns if there):
                        self.layout.put(file, index, row)
        except OSError as error:
            notice(f"{self.file} cannot be written to ({error.strerror}); the rest is decoded again each time")
            self.writes = False


# The examples by file, as long as this process uses them.
_in_use: WeakValueDictionary[Path, Decoded] = WeakValueDictionary()


def key_of(*parts: object) -> bytes:
    """A key for an example: a hash of parts that can be written as JSON."""
    return hashlib.sha256(json.dumps(parts).encode(errors="surrogateescape")).digest()[:KEY]


def decoded_once(
    examples: Examples,
    specs: Mapping[str, Any],
    keys: Callable[[], Sequence[bytes]],
    about: Mapping[str, Any],
    options: Any,
) -> Examples:
    """Call `decoded` for modalities with these specs, with the options cache and cache_gb of a data set."""
    about = {**about, "modalities": {name: _own_options(x) for name, x in specs.items()}, "pillow": PIL.__version__}
    code = {name: digest for name, spec in specs.items() if (digest := kinds.kind(spec.kind).read_by(spec))}
    about |= {"code": code} if code else {}
    blanks = {name: kinds.kind(spec.kind).blank(spec) for name, spec in specs.items()}
    return decoded(examples, blanks, keys() if options.cache_gb else [], about, options.cache, options.cache_gb)


# Options that readers ignore, and that change with every example that is added or removed.
OF_ALL = {"class_counts", "captions"}


def _own_options(spec: Any) -> dict[str, Any]:
    """The options specific to a kind of modality, which may specify how its files are read."""
    common = {f.name for f in dataclasses.fields(AnySpec)} - {"kind"} | OF_ALL | {*kinds.kind(spec.kind).statistics}
    return {name: value for name, value in dataclasses.asdict(spec).items() if name not in common}


def decoded(
    examples: Examples,
    blanks: Mapping[str, Tensor],
    keys: Sequence[bytes],
    about: Mapping[str, Any],
    folder: str | Path,
    limit: float,
    packings: Mapping[str, str] | None = None,
) -> Examples:
    """The examples, each cached in a file of the cache folder once it is decoded; unchanged if that is impossible.

    blanks: a tensor of the shape and type of each modality. keys: for each example, `key_of` everything that its values
    depend on besides `about`, which is the same for all. Rows of an earlier file of the same `about` whose keys are
    among these are copied, and that file is removed. limit: in gigabytes, for all such files together; the least
    recently used are removed to make room. packings: by modality; None to choose them from a few examples.
    """
    if not limit or not len(examples):
        return examples
    name, folder = f"decoded-{key_of(VERSION, about).hex()}", cache_folder(folder)
    file = folder / f"{name}-{hashlib.sha256(b''.join(keys)).hexdigest()[:16]}.rows"
    layout = Layout.read(file, blanks)
    if layout is None or layout.count != len(examples):
        earlier = [path for path in folder.glob(f"{name}-*.rows") if path != file]
        before = next((found for path in earlier if (found := Layout.read(path, blanks))), None)
        if before is not None:
            packings = before.packings
        elif packings is None:
            packings = packings_of(blanks, _look(examples))
        layout = Layout.of(blanks, packings, len(examples))
        try:
            made(folder)
            if not _make_room(folder, layout.size, limit * GB, earlier):
                size = f"{layout.size / GB:.1f} gigabytes, but there is room for at most {limit:g} (data.cache_gb)"
                notice(f"{len(examples):,} decoded examples need {size}; they are decoded again each time")
                return examples
            _begin(file, layout, blanks, keys, earlier)
        except OSError as error:
            notice(f"{file} cannot be kept ({error.strerror}); examples are decoded again each time")
            return examples
        _remove(*earlier)
    with contextlib.suppress(OSError):
        os.utime(file)
    _in_use[file] = cached = Decoded(examples, file, layout, blanks)
    return cached


def _look(examples: Examples) -> list[Batch]:
    """A few readable examples, evenly spaced over the data."""
    found: list[Batch] = []
    for k in range(LOOKED_AT):
        with contextlib.suppress(MmfastError):
            found.append(examples.__getitems__([k * len(examples) // LOOKED_AT]))
    return found


def _make_room(folder: Path, size: int, limit: float, earlier: Sequence[Path]) -> bool:
    """Make room for a new file by removing the least recently used; returns whether it fits into the limit.

    Files that this process uses stay: the held-out examples would take the room of those to train on.
    """
    others = {path: path.stat() for path in folder.glob("decoded-*.rows") if path not in earlier}
    staying = sum(about.st_size for path, about in others.items() if path in _in_use)
    if size > shutil.disk_usage(folder).free or size + staying > limit:
        return False
    total = size + sum(about.st_size for about in others.values())
    for path in sorted(others, key=lambda path: others[path].st_mtime):
        if total > limit and path not in _in_use:
            _remove(path)
            total -= others[path].st_size
    return True


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _begin(
    file: Path, layout: Layout, blanks: Mapping[str, Tensor], keys: Sequence[bytes], earlier: Sequence[Path]
) -> None:
    """Create a file with the rows that earlier files have, and room for the others."""

    def write(new: Path) -> None:
        with open(new, "rb+") as opened:
            layout.write(opened, keys)
            for path in earlier:
                before = Layout.read(path, blanks)
                if before is None or before.columns != layout.columns:
                    continue
                whole = np.memmap(path, np.uint8, "r")
                rows = {bytes(key): k for k, key in enumerate(before.keys(whole)) if before.sums(whole)[k]}
                for index, key in enumerate(keys):
                    if key in rows and before.sums(whole)[rows[key]] == checksum(before.row(whole, rows[key])):
                        layout.put(opened, index, before.row(whole, rows[key]))

    write_atomically(file, write)
