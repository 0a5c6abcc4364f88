"""Decoded examples are kept: the same bits as decoded anew, each decoded once, whatever happens to files and cache."""

import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import modalities
from mmfast.config import changes, fixed
from mmfast.config import load as load_config
from mmfast.data import decoded as module
from mmfast.data import example_files, folder
from mmfast.data.rows import Layout
from mmfast.errors import MmfastError
from mmfast.training.examples import loader

SIZE, COUNT = 6, 12


def specs(**more):
    kinds = {
        "image": ("image", {"channels": 3, "size": SIZE}),
        "mask": ("mask", {"classes": 4, "size": SIZE, "ignore": 255}),
        "label": ("label", {"classes": 3}),
        "vector": ("embedding", {"dim": 5}),
    }
    return {
        name: modalities.kind(kind).Spec(**{**options, **more.get(name, {})}) for name, (kind, options) in kinds.items()
    }


def fill(root, seed=0, stems=range(COUNT), sixteen=False):
    rng = np.random.default_rng(seed)
    for k in stems:
        for name in ("image", "mask", "label", "vector"):
            (root / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        if sixteen:
            pixels = rng.integers(0, 65536, (9, 7), dtype=np.uint16)
        Image.fromarray(pixels).save(root / "image" / f"{k:02}.png")
        if k % 3:
            mask = rng.choice(np.array([0, 1, 3, 255], np.uint8), (9, 7))
            Image.fromarray(mask).save(root / "mask" / f"{k:02}.png")
        (root / "label" / f"{k:02}.txt").write_text(str(k % 3))
        np.save(root / "vector" / f"{k:02}.npy", rng.normal(size=5))


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "data")
    return tmp_path / "data"


def opened(root, gb=1.0, more=None, **options):
    spec = folder.Spec(root=str(root), cache=str(root.parent / "cache"), cache_gb=gb, test_fraction=0.3, **options)
    return folder.open(spec, specs(**(more or {})), "image")


def whole(part):
    return part.__getitems__(range(len(part)))


def same(a, b):
    assert [*a.data] == [*b.data] and [*a.present] == [*b.present]
    for name in a.data:
        assert a.data[name].dtype == b.data[name].dtype and torch.equal(a.data[name], b.data[name]), name
    for name in a.present:
        assert torch.equal(a.present[name], b.present[name])


@pytest.fixture
def decoded(monkeypatch):
    """The stems of the examples that were decoded, in order."""
    stems, read = [], example_files.Files.__getitems__

    def seen(self, indices):
        stems.extend(self.stems[i] for i in indices)
        return read(self, indices)

    monkeypatch.setattr(example_files.Files, "__getitems__", seen)
    return stems


@pytest.mark.parametrize("sixteen", [False, True])
def test_what_is_kept_is_what_was_decoded(root, decoded, sixteen):
    fill(root, sixteen=sixteen)
    plain, rows = opened(root, gb=0), [2, 0, 2, 1]
    expected = [(whole(part), part.__getitems__(rows)) for part in (plain.train, plain.test)]
    assert not (root.parent / "cache").exists()
    data = opened(root)
    for turn in range(3):  # decoded; kept in this process; found by another opening
        decoded.clear()
        for part, (every, some) in zip((data.train, data.test), expected, strict=True):
            same(whole(part), every)
            same(part.__getitems__(rows), some)
        assert len(decoded) == (0 if turn else COUNT)
        data = opened(root) if turn else data
    assert len([*(root.parent / "cache").glob("*.rows")]) == 2


def test_pixels_take_a_byte_and_classes_two(root):
    part = opened(root).train
    kept = {c.name: c.kept.itemsize * c.shape[0] * (c.shape[-1] if len(c.shape) > 1 else 1) for c in part.layout.columns
            if c.shape}  # fmt: skip
    assert kept == {"image": 3 * SIZE, "mask": 2 * SIZE * SIZE, "vector": 4 * 5}


def test_a_changed_file_is_decoded_and_no_other(root, decoded):
    data = opened(root)
    for part in (data.train, data.test):
        whole(part)
    stem = data.train.stems[3]
    changed = np.full((9, 7, 3), 7, np.uint8)
    Image.fromarray(changed).save(root / "image" / f"{stem}.png")
    fill(root, seed=1, stems=[50])  # one more, held out or not
    plain = opened(root, gb=0)
    expected = [whole(plain.train), whole(plain.test)]
    decoded.clear()
    data = opened(root)
    for part, truth in zip((data.train, data.test), expected, strict=True):
        same(whole(part), truth)
    assert sorted(decoded) == [stem, "50"]
    row = data.train.stems.index(stem)
    assert torch.equal(data.train.__getitems__([row]).data["image"], torch.full((1, 3, SIZE, SIZE), 7 / 127.5 - 1))
    names = [file.name.split("-")[1] for file in (root.parent / "cache").glob("*.rows")]
    assert len(names) == len(set(names)) == 2  # the earlier files are gone


def test_a_file_of_the_same_size_and_time_but_other_content_is_seen(root):
    path = root / "label" / f"{opened(root).train.stems[0]}.txt"
    whole(opened(root).train)
    about = path.stat()
    time.sleep(0.02)
    path.write_text("1" if path.read_text() != "1" else "2")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert int(opened(root).train.__getitems__([0]).data["label"]) == int(path.read_text())


def test_the_root_may_be_named_from_anywhere(root, decoded, monkeypatch):
    whole(opened(root).train)
    decoded.clear()
    monkeypatch.chdir(root.parent)
    spec = folder.Spec(root="data", cache="cache", test_fraction=0.3)
    whole(folder.open(spec, specs(), "image").train)
    assert not decoded


def test_other_options_read_anew(root):
    data = opened(root)
    whole(data.train)
    other = opened(root, more={"image": {"channels": 1}})
    assert other.train.__getitems__([0]).data["image"].shape == (1, 1, SIZE, SIZE)
    assert opened(root, more={"image": {"loss_weight": 3.0}}).train.file == data.train.file
    assert len([*(root.parent / "cache").glob("*.rows")]) == 4


@pytest.mark.parametrize("harm", ["bit", "cut", "header", "gone", "empty"])
def test_a_damaged_cache_costs_time_alone(root, harm):
    expected = whole(opened(root, gb=0).train)
    part = opened(root).train
    whole(part)
    content = bytearray(part.file.read_bytes())
    if harm == "bit":
        content[part.layout.first + 5 * part.layout.width + part.layout.columns[0].start + 3] ^= 1
    elif harm == "header":
        content[:20] = b"x" * 20
    part.file.unlink()
    if harm != "gone":
        part.file.write_bytes(content[: {"cut": len(content) // 2, "empty": 0}.get(harm)])
    for _ in range(2):
        same(whole(opened(root).train), expected)


def test_a_folder_that_cannot_be_kept_in_is_said_once(root, capsys, monkeypatch):
    (root.parent / "cache").write_text("a file")
    data = opened(root)
    assert "cannot be kept" in capsys.readouterr().err
    assert len(whole(data.train)) == len(data.train)
    (root.parent / "cache").unlink()
    data = opened(root)
    data.train.file.unlink()  # another process has made room for its own
    same(whole(data.train), whole(opened(root, gb=0).train))


def test_a_full_disk_stops_the_keeping_and_nothing_else(root, capsys, monkeypatch):
    data = opened(root)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(data.train.layout), "put", full)
    for _ in range(2):
        same(whole(data.train), whole(opened(root, gb=0).train))
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_the_longest_unused_make_room_and_too_much_is_not_kept(root, tmp_path, capsys):
    size = sum(part.file.stat().st_size for part in (opened(root).train, opened(root).test)) / 1e9
    cache = root.parent / "cache"
    for file in cache.glob("*.rows"):
        os.utime(file, (1, 1))
    fill(tmp_path / "more", seed=3)
    spec = folder.Spec(root=str(tmp_path / "more"), cache=str(cache), cache_gb=1.5 * size, test_fraction=0.3)
    data = folder.open(spec, specs(), "image")
    files = {data.train.file, data.test.file}
    assert files <= {*cache.glob("*.rows")} and len([*cache.glob("*.rows")]) < 4
    assert not capsys.readouterr().err
    assert not hasattr(opened(root, gb=size / 100).train, "file")
    assert "decoded examples need 0.0 gigabytes, but there is room for" in capsys.readouterr().err


def _read(part, rows, found):
    found.put({name: x.numpy() for name, x in part.__getitems__(rows).data.items()})


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_share_it(root, start):
    """Each is handed the examples, pickled where it does not begin as a copy."""
    expected, part = whole(opened(root, gb=0).train), opened(root).train
    part.__getitems__([0])
    assert len(pickle.dumps(part)) < 30_000
    context = multiprocessing.get_context(start)
    found = context.Queue()
    for _ in range(2):
        process = context.Process(target=_read, args=(part, list(range(len(part))), found))
        process.start()
        batch = found.get(timeout=100)
        process.join()
        assert all(np.array_equal(batch[name], expected.data[name].numpy()) for name in batch)
    assert (part.layout.sums(np.memmap(part.file, np.uint8, "r")) > 0).all()  # what they decoded is there for all


def test_workers_of_training_decode_once(root, decoded):
    config = load_config("digits", [("train.batch_size", str(COUNT)), ("train.workers", "2")])
    part = opened(root).train
    batches = loader(config, part, 0)
    truth = {tuple(x.flatten().tolist()) for x in whole(opened(root, gb=0).train).data["image"]}
    for _ in range(3):
        assert {tuple(x.flatten().tolist()) for x in next(batches).data["image"]} <= truth
    del batches
    decoded.clear()
    whole(opened(root).train)
    assert not decoded


def test_what_a_run_may_change_of_how_it_reads():
    for key, values in (("cache_gb", (1, 2)), ("on_error", ("stop", "skip")), ("flip", ("true", "false"))):
        old, new = (load_config("image-mask", [("data", f"{{kind: folder, root: x, {key}: {x}}}")]) for x in values)
        assert [*changes(old, new)] == [f"data.{key}"] and fixed(changes(old, new)) == ["data.flip"] * (key == "flip")


def test_an_error_stays_one_and_the_rest_is_kept(root, decoded):
    part = opened(root, gb=0).train
    path = root / "image" / f"{part.stems[2]}.png"
    path.write_bytes(path.read_bytes()[:60])
    part = opened(root).train
    for _ in range(2):
        with pytest.raises(MmfastError, match=path.name):
            part.__getitems__([0, 1, 2])
        assert len(part.__getitems__([0, 1])) == 2


def test_a_row_is_compared_with_its_checksum_once_in_a_process(root, monkeypatch):
    part = opened(root).train
    expected, compared = whole(part), []
    checksum = module.checksum
    monkeypatch.setattr(module, "checksum", lambda row: compared.append(1) or checksum(row))
    part = opened(root).train
    for _ in range(3):
        same(whole(part), expected)
    assert len(compared) == len(part) and "trusted" not in repr(part)


def test_earlier_files_that_are_damaged_or_kept_in_other_types(root):
    """Rows of a damaged one do not count, and the bytes of a row stand only in a file of its own types."""
    part = opened(root).train
    batch, prefix = whole(part), part.file.stem.rpartition("-")[0]
    other = Layout.of(part.blanks, {**part.layout.packings, "image": "whole"}, len(part))
    with open(part.file.with_name(f"{prefix}-1.rows"), "wb+") as file:
        other.write(file, [bytes(key) for key in part.layout.keys(np.memmap(part.file, np.uint8, "r"))])
        for k in range(len(part)):
            row = np.zeros(other.width, np.uint8)
            for n, column in enumerate(other.columns):
                row[n] = bool(batch.present[column.name][k]) if column.name in batch.present else 1
                assert column.pack(batch.data[column.name][k].numpy(), row)
            other.put(file, k, row)
    part.file.with_name(f"{prefix}-2.rows").write_bytes(b"x" * 5000)
    fill(root, seed=1, stems=range(20, 60))
    plain, data = opened(root, gb=0), opened(root)
    for _ in range(2):
        same(whole(data.train), whole(plain.train))
        data = opened(root)
    assert [*root.parent.joinpath("cache").glob(f"{prefix}-*")] == [data.train.file]
