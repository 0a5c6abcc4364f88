"""The file of decoded examples, byte by byte: where things lie, how numbers are kept, and what a row's checksum is."""

import io
import json
import warnings
import zlib

import numpy as np
import pytest
import torch

from mmfast.data import Batch
from mmfast.data.decoded import _make_room
from mmfast.data.rows import Layout, checksum, packings_of

BLANKS = {
    "image": torch.zeros(3, 6, 6),
    "mask": torch.zeros(6, 6, dtype=torch.int64),
    "label": torch.tensor(0),
    "vector": torch.zeros(5),
}
PACKINGS = {"image": "pixels", "mask": "short", "label": "short", "vector": "whole"}
COUNT = 10
KEYS = [bytes([k]) * 16 for k in range(COUNT)]


def test_where_things_lie():
    """A byte a column, then each at a multiple of 8: 3 x 36 bytes of pixels, 36 numbers of two, one, and 5 of four."""
    layout = Layout.of(BLANKS, PACKINGS, COUNT)
    assert [(c.name, c.start, c.stop) for c in layout.columns] == [
        ("image", 8, 116), ("mask", 120, 192), ("label", 192, 194), ("vector", 200, 220)
    ]  # fmt: skip
    # 4,096 bytes of header, 4 and 16 a row; then rows of 224 from the next multiple of 4,096 on.
    assert (layout.width, layout.first, layout.size) == (224, 8192, 8192 + 10 * 224)
    assert Layout.of(BLANKS, PACKINGS, 300).first == 12288 and layout.packings == PACKINGS
    whole = np.arange(layout.size, dtype=np.uint64).astype(np.uint8)
    assert layout.row(whole, 3).tobytes() == whole[8192 + 672 : 8192 + 896].tobytes()
    assert layout.sums(whole).tobytes() == whole[4096:4136].tobytes() and layout.sums(whole).dtype == np.dtype("<u4")
    assert [bytes(k) for k in layout.keys(whole)] == [whole[4136 + 16 * k :][:16].tobytes() for k in range(COUNT)]


def test_a_file_as_it_is_begun_and_filled(tmp_path):
    layout, file = Layout.of(BLANKS, PACKINGS, COUNT), io.BytesIO()
    layout.write(file, KEYS)
    content = file.getvalue()
    assert json.loads(content[:4096]) == {"packings": PACKINGS, "count": COUNT}
    assert content[4096:4136] == bytes(40) and content[4136:4296] == b"".join(KEYS)
    row = np.arange(224, dtype=np.uint8)
    with open(tmp_path / "x", "wb+") as file:
        layout.write(file, KEYS)
        layout.put(file, 7, row)
    content = (tmp_path / "x").read_bytes()
    assert len(content) == layout.size
    found = np.frombuffer(content, np.uint8)
    assert layout.sums(found).tolist() == [zlib.crc32(row) if k == 7 else 0 for k in range(COUNT)]
    assert layout.row(found, 7).tolist() == row.tolist() and not layout.row(found, 6).any()
    assert Layout.read(tmp_path / "x", BLANKS) == layout
    # Of others: of other modalities, cut, longer, or none.
    assert Layout.read(tmp_path / "x", {**BLANKS, "more": torch.zeros(1)}) is None
    assert Layout.read(tmp_path / "x", {**BLANKS, "image": torch.zeros(3, 7, 6)}) is None
    for changed in (content[:-1], content + b"x", content[:100], b""):
        (tmp_path / "x").write_bytes(changed)
        assert Layout.read(tmp_path / "x", BLANKS) is None
    assert Layout.read(tmp_path / "y", BLANKS) is None


def test_no_checksum_is_that_of_a_row_that_is_not_there():
    """0 says that: the bytes whose CRC is 0 have 1."""
    row = np.frombuffer(b"\x9d\x0a\xd9\x6d", np.uint8)
    assert zlib.crc32(row) == 0 and checksum(row) == 1
    assert checksum(row[:3]) == zlib.crc32(b"\x9d\x0a\xd9") > 1


def chosen(x, dtype=None):
    x = torch.tensor(x, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return packings_of({"x": torch.zeros_like(x[0])}, [Batch({"x": x[:1]}), Batch({"x": x[1:]})])["x"]


@pytest.mark.parametrize(
    ("x", "dtype", "packing"),
    [
        ([[k / 127.5 - 1] for k in range(256)], torch.float32, "pixels"),
        ([[-1.0], [1.0], [0.5]], torch.float32, "whole"),
        ([[-1.0], [1.0], [257 / 127.5 - 1]], torch.float32, "whole"),
        ([[-1.0], [float("nan")]], torch.float32, "whole"),
        ([[-1.0], [float("inf")]], torch.float32, "whole"),
        ([[-1.0], [1.0]], torch.float64, "whole"),
        ([[-32768], [32767]], torch.int64, "short"),
        ([[-32769], [0]], torch.int64, "whole"),
        ([[0], [32768]], torch.int64, "whole"),
        ([[0], [1]], torch.int32, "whole"),
    ],
)
def test_the_narrowest_type_that_holds_all_that_was_looked_at(x, dtype, packing):
    if packing == "pixels":  # as a picture is read: divided in float32
        x = (np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1))[:, None].tolist()
    assert chosen(x, dtype) == packing


def test_what_was_not_seen_is_kept_whole():
    """Nothing was looked at, or it was missing in all of that, whatever stands in its place."""
    blanks = {"x": torch.zeros(2)}
    batch = Batch({"x": torch.zeros(3, 2)}, {"x": torch.zeros(3, dtype=torch.bool)})
    assert packings_of(blanks, []) == packings_of(blanks, [batch]) == {"x": "whole"}
    some = Batch({"x": torch.tensor([[0.5, 0.5], [1.0, -1.0]])}, {"x": torch.tensor([False, True])})
    assert packings_of(blanks, [some]) == {"x": "pixels"}


def test_what_is_packed_comes_back_or_is_refused():
    layout = Layout.of(BLANKS, PACKINGS, COUNT)
    row, image = np.zeros(layout.width, np.uint8), layout.columns[0]
    x = (np.arange(108, dtype=np.float32) / np.float32(127.5) - np.float32(1)).reshape(3, 6, 6)
    assert image.pack(x, row) and row[8:116].tolist() == list(range(108)) and not row[:8].any() and not row[116:].any()
    out = np.empty_like(x)
    image.unpack(row, out)
    assert out.tobytes() == x.tobytes()
    x[0, 0, 0] = 0.5
    assert not image.pack(x, row)


def test_there_is_room_up_to_the_limit_and_the_longest_unused_go_first(tmp_path):
    """Files of 100 bytes, the first unused for longest; what a new one takes the place of does not count."""
    import os

    def files():
        found = [tmp_path / f"decoded-{k}.rows" for k in range(3)]
        for k, file in enumerate(found):
            file.write_bytes(bytes(100))
            os.utime(file, (k + 1, k + 1))
        return found

    def left(size, limit, earlier=()):
        found = files()
        assert _make_room(tmp_path, size, limit, [found[k] for k in earlier])
        return [k for k, file in enumerate(found) if file.exists()]

    assert left(50, 350) == [0, 1, 2] and left(51, 350) == [1, 2] and left(150, 350) == [1, 2]
    assert left(151, 350) == [2] and left(350, 350) == [] and left(150, 350, earlier=[1]) == [0, 1, 2]
    assert not _make_room(tmp_path, 351, 350, [])
