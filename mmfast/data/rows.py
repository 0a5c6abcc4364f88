"""The file of decoded examples: a header, the rows' checksums (0: not there yet), the rows' keys, and the rows."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmfast.data.base import Batch

HEADER, KEY, ALIGNED = 4096, 16, 8  # bytes


class Packing(NamedTuple):
    """How a tensor's values are stored: in a type that holds them all exactly.

    type: numpy's, empty for the tensor's own. of: the type of the tensors it applies to. `unpack(kept, out)` restores
    `out` bit for bit.
    """

    type: str
    of: str
    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray, np.ndarray], None]


_HALF_RANGE, _ONE = np.float32(127.5), np.float32(1)


def _pack_pixels(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint((x.astype(np.float64) + 1) * 127.5), 0, 255)


def _unpack_pixels(kept: np.ndarray, out: np.ndarray) -> None:
    """Convert to floats, one example at a time: it stays in the CPU's cache, which is faster than copying floats."""
    np.divide(kept, _HALF_RANGE, out=out)
    np.subtract(out, _ONE, out=out)


def _copy(kept: np.ndarray, out: np.ndarray) -> None:
    out[...] = kept


PACKINGS = {  # the narrowest first
    "pixels": Packing("u1", "<f4", _pack_pixels, _unpack_pixels),
    "short": Packing("<i2", "<i8", lambda x: np.clip(x, -(2**15), 2**15 - 1), _copy),
    "whole": Packing("", "", lambda x: x, _copy),
}


@dataclass(frozen=True)
class Column:
    """One modality of a row: its place and packing."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # the tensor's, in numpy's notation
    packing: str
    start: int = 0

    @property
    def kept(self) -> np.dtype:
        return np.dtype(PACKINGS[self.packing].type or self.dtype)

    @cached_property
    def stop(self) -> int:
        return self.start + self.kept.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def pack(self, x: np.ndarray, row: np.ndarray) -> bool:
        """Write x into a row's bytes; returns whether it can be restored bit for bit."""
        packing, kept, again = PACKINGS[self.packing], self._view(row), np.empty_like(x)
        with np.errstate(invalid="ignore"):
            kept[...] = packing.pack(x)
        packing.unpack(kept, again)
        return again.tobytes() == x.tobytes()

    def unpack(self, row: np.ndarray, out: np.ndarray) -> None:
        PACKINGS[self.packing].unpack(self._view(row), out)

    def _view(self, row: np.ndarray) -> np.ndarray:
        return row[self.start : self.stop].view(self.kept).reshape(self.shape)


@dataclass(frozen=True)
class Layout:
    """The layout of a file of `count` rows. A row begins with a byte per column that tells whether it is present."""

    columns: tuple[Column, ...]
    count: int

    @classmethod
    def of(cls, blanks: Mapping[str, Tensor], packings: Mapping[str, str], count: int) -> Layout:
        """The layout for modalities of these tensors' shapes and types."""
        columns: list[Column] = []
        start = _aligned(len(blanks), ALIGNED)
        for name, blank in blanks.items():
            columns.append(Column(name, tuple(blank.shape), blank.numpy().dtype.str, packings[name], start))
            start = _aligned(columns[-1].stop, ALIGNED)
        return cls(tuple(columns), count)

    @classmethod
    def read(cls, file: Path, blanks: Mapping[str, Tensor]) -> Layout | None:
        """The layout of a file; None if it does not exist, is damaged, or has other modalities."""
        try:
            with open(file, "rb") as opened:
                header, size = json.loads(opened.read(HEADER)), os.fstat(opened.fileno()).st_size
            layout = cls.of(blanks, header["packings"], int(header["count"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return layout if layout.size == size else None

    def write(self, file: BinaryIO, keys: Sequence[bytes]) -> None:
        """Create a file without any rows yet. It is sparse: rows take no disk space until they are written."""
        file.write(json.dumps({"packings": self.packings, "count": self.count}).encode().ljust(HEADER))
        file.seek(HEADER + 4 * self.count)
        file.write(b"".join(keys))
        file.truncate(self.size)

    @property
    def packings(self) -> dict[str, str]:
        return {column.name: column.packing for column in self.columns}

    @cached_property
    def width(self) -> int:
        return _aligned(self.columns[-1].stop, ALIGNED)

    @cached_property
    def first(self) -> int:
        return _aligned(HEADER + self.count * (4 + KEY), HEADER)

    @property
    def size(self) -> int:
        return self.first + self.count * self.width

    def row(self, whole: np.ndarray, index: int) -> np.ndarray:
        start = self.first + index * self.width
        return whole[start : start + self.width]

    def sums(self, whole: np.ndarray) -> np.ndarray:
        return whole[HEADER : HEADER + 4 * self.count].view("<u4")

    def keys(self, whole: np.ndarray) -> np.ndarray:
        start = HEADER + 4 * self.count
        return whole[start : start + KEY * self.count].view(f"V{KEY}")

    def put(self, file: BinaryIO, index: int, row: np.ndarray) -> None:
        """Write a row, then its checksum."""
        for start, data in ((self.first + index * self.width, row), (HEADER + 4 * index, checksum(row))):
            file.seek(start)
            file.write(data.tobytes())


def _aligned(place: int, to: int) -> int:
    return -(-place // to) * to


def checksum(row: np.ndarray) -> np.uint32:
    return np.uint32(zlib.crc32(row) or 1)


def packings_of(blanks: Mapping[str, Tensor], sample: Sequence[Batch]) -> dict[str, str]:
    """The narrowest packing of each modality that holds its examples in `sample` exactly."""
    found = {}
    for name, blank in blanks.items():
        dtype, shape = blank.numpy().dtype.str, tuple(blank.shape)
        seen = [np.asarray(x) for batch in sample for x in batch.data[name][there(batch, name)].numpy()]
        for packing, how in PACKINGS.items():
            column = Column(name, shape, dtype, packing)
            row = np.zeros(column.stop, np.uint8)
            if packing == "whole" or (seen and how.of == dtype and all(column.pack(x, row) for x in seen)):
                found[name] = packing
                break
    return found


def there(batch: Batch, name: str) -> Tensor:
    """Which examples of a batch have a modality: bool [B]."""
    return batch.present.get(name, torch.ones(len(batch), dtype=torch.bool))
