"""Data sets of torchvision, by value: beside what the other package itself gives; and what is so with any package."""

import multiprocessing
import os
import sys

import numpy as np
import pytest
import torch
from adapters import COUNT, IMAGE, LABEL, SIZE, config, counted, everything, pixels, same
from adapters import opened_anew as opened_anew  # for every test here
from PIL import EpsImagePlugin, Image

from mmfast.build import build_data, with_found
from mmfast.data import torchvision
from mmfast.errors import MmfastError
from mmfast.survey import brief, survey
from mmfast.training import train
from mmfast.training.examples import loader


def fake(**more):
    size = {"size": COUNT, "image_size": [3, SIZE, SIZE], "num_classes": 3}
    return {"kind": "torchvision", "name": "FakeData", "train": size, **more}


def test_each_example_is_torchvisions():
    datasets = pytest.importorskip("torchvision.datasets")
    truth = [*datasets.FakeData(COUNT, (3, SIZE, SIZE), 3)]
    other = [*datasets.FakeData(5, (3, SIZE, SIZE), 3, random_offset=100)]
    data = build_data(
        config(fake(test={"size": 5, "image_size": [3, SIZE, SIZE], "num_classes": 3, "random_offset": 100}))
    )
    for part, expected in ((data.train, truth), (data.test, other)):
        assert len(part) == len(expected)
        batch = part.__getitems__(list(range(len(part)))[::-1])
        for k, (picture, label) in enumerate(expected[::-1]):
            torch.testing.assert_close(batch.data["image"][k], pixels(picture), atol=1e-6, rtol=0)
            assert int(batch.data["label"][k]) == label
    halves = build_data(config(fake(test_fraction=0.3, flip=True)))
    assert halves.flip and len(halves.train) + len(halves.test) == COUNT and 3 <= len(halves.test) <= 16
    found = torch.cat([part.__getitems__(range(len(part))).data["image"] for part in (halves.train, halves.test)])
    assert sorted(map(hash, (tuple(x.flatten().tolist()) for x in found))) == sorted(
        hash(tuple(pixels(picture).flatten().tolist())) for picture, _ in truth
    )


def pets(root, corrupt=False):
    """A folder as that of Oxford's pets, with trimaps of 1 .. 3."""
    rng, truth = np.random.default_rng(0), {}
    for folder in ("images", "annotations/trimaps"):
        (root / "oxford-iiit-pet" / folder).mkdir(parents=True)
    lines = []
    for k in range(12):
        name = f"{['Abyssinian', 'beagle', 'great_pyrenees'][k % 3]}_{k}"
        picture = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
        mask = rng.integers(1, 4, (SIZE, SIZE), dtype=np.uint8)
        picture.save(root / "oxford-iiit-pet/images" / f"{name}.jpg", format="PNG")
        Image.fromarray(mask).save(root / "oxford-iiit-pet/annotations/trimaps" / f"{name}.png")
        truth[k] = (pixels(picture), mask, k % 3)
        lines.append(f"{name} {k % 3 + 1} 1 1\n")
    (root / "oxford-iiit-pet/annotations/trainval.txt").write_text("".join(lines))
    return truth


def pet_config(root, **more):
    arguments = {"split": "trainval", "target_types": ["category", "segmentation"]}
    parts = {"image": IMAGE, "mask": {"kind": "mask", "classes": 4, "size": SIZE}, "label": LABEL}
    fields = {"image": 0, "label": 1, "mask": 2}
    data = {"kind": "torchvision", "name": "OxfordIIITPet", "root": str(root), "train": arguments, "fields": fields}
    return config({**data, **more}, parts)


def test_pictures_masks_and_names_of_classes(tmp_path):
    pytest.importorskip("torchvision")
    truth = pets(tmp_path)
    chosen = with_found(pet_config(tmp_path))
    assert chosen.modalities["label"].names == ["Abyssinian", "Beagle", "Great Pyrenees"]
    data = build_data(chosen)
    rows = [*data.train.rows.tolist(), *data.test.rows.tolist()]
    assert sorted(rows) == [*range(12)]
    for part in (data.train, data.test):
        batch = part.__getitems__(range(len(part)))
        for k, row in enumerate(part.rows.tolist()):
            picture, mask, label = truth[row]
            assert torch.allclose(batch.data["image"][k], picture, atol=1e-6)
            assert np.array_equal(batch.data["mask"][k], mask) and int(batch.data["label"][k]) == label
    assert not survey(pet_config(tmp_path)).wrong
    train(chosen, str(tmp_path / "run"), quiet=True)
    broken = tmp_path / "oxford-iiit-pet/images/beagle_4.jpg"
    broken.write_bytes(broken.read_bytes()[:70])
    [line] = survey(pet_config(tmp_path)).wrong
    assert line.startswith("example 4 of torchvision's OxfordIIITPet") and "\n" not in line


def test_torchvision_runs_no_program_on_a_picture(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    pets(tmp_path / "data")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\necho 10.0\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it has not been looked for yet
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "data/oxford-iiit-pet/images/beagle_4.jpg", format="EPS")
    [line] = survey(pet_config(tmp_path / "data", cache_gb=0)).wrong
    assert line.startswith("example 4 of torchvision's OxfordIIITPet") and not (tmp_path / "ran").exists()
    assert EpsImagePlugin.gs_binary is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere data sets of other packages go without workers")
def test_workers_read_what_cannot_be_sent_to_them(monkeypatch):
    """Where Python would begin them anew, as it does from 3.14 on, they would not know what is permitted either."""
    pytest.importorskip("torchvision")
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        chosen = config(fake(cache_gb=0))
        chosen.train.workers, chosen.train.steps = 1, 2
        data = build_data(chosen).train
        [first, second] = loader(chosen, data, 0)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    chosen.train.workers = 0
    for batch, expected in zip((first, second), loader(chosen, data, 0), strict=True):
        assert torch.equal(batch.data["image"], expected.data["image"])


def test_files_in_circles_of_links_are_looked_at_once(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_text("1")
    before = torchvision._files(str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / "a" / "b" / name).symlink_to(tmp_path)  # two, whose ways double at every turn
    assert torchvision._files(str(tmp_path)) == before
    (tmp_path / "a" / "x").write_text("22")
    assert torchvision._files(str(tmp_path)) != before


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "FakeDat"}, "data.name is 'FakeDat'; .*did you mean 'FakeData'"),
        ({"name": "ImageFolder"}, r"folders are read by data\.kind=folder"),
        ({"name": "VisionDataset_"}, "data.name is"),
        ({"train": {"sise": 3}}, "an argument of FakeData is 'sise'; .*did you mean 'size'"),
        ({"name": "CIFAR10", "train": {"train": True}}, "CIFAR10 cannot be opened in .*not found or corrupted"),
        ({"fields": {"image": 0, "label": 7}}, "an example of FakeData has 2 parts, from 0 on: Image, int"),
        ({"fields": {"image": 0}}, r"data\.fields has no label"),
        ({"fields": {"imag": 0}}, r"data\.fields' modality is 'imag'"),
        ({"fields": {"image": 1, "label": 0}}, "example 0 of torchvision's FakeData, image is|cannot be converted"),
    ],
)  # fmt: skip
def test_what_does_not_fit_torchvision(data, words):
    pytest.importorskip("torchvision")
    chosen = config(fake(**data))
    with pytest.raises(MmfastError, match=words) as error:
        build_data(chosen)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "module", "words"),
    [
        ({"kind": "torchvision", "name": "MNIST"}, "torchvision", r"needs torchvision, .*'mmfast\[torchvision\]'"),
        ({"kind": "huggingface", "path": "x"}, "datasets", r"needs datasets, .*'mmfast\[huggingface\]'"),
    ],
)
def test_without_the_package_it_says_which(monkeypatch, kind, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MmfastError, match=words):
        build_data(config(kind))


def test_torchvisions_examples_are_decoded_once(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    pets(tmp_path / "data")
    options = {"cache": str(tmp_path / "cache")}
    plain = everything(build_data(pet_config(tmp_path / "data", cache_gb=0)))
    first = everything(build_data(pet_config(tmp_path / "data", **options)))
    read = counted(monkeypatch)
    again = everything(build_data(pet_config(tmp_path / "data", **options)))
    assert not read and same(plain, first) and same(plain, again)
    picture = tmp_path / "data/oxford-iiit-pet/images/beagle_4.jpg"
    Image.new("RGB", (SIZE, SIZE), "red").save(picture, format="PNG")
    changed = everything(build_data(pet_config(tmp_path / "data", **options)))
    assert {*read} == {*range(12)} and not same(plain, changed)


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_what_cannot_be_read_is_left_out(tmp_path, capsys, cache_gb):
    """And no held-out example stands for one to train on."""
    pytest.importorskip("torchvision")
    truth = pets(tmp_path / "data")
    for k in (1, 4):
        (tmp_path / f"data/oxford-iiit-pet/images/beagle_{k}.jpg").write_bytes(b"no picture")
    options = {"cache": str(tmp_path / "cache"), "cache_gb": cache_gb, "test_fraction": 0.4}
    with pytest.raises(MmfastError, match=r"example [14] of torchvision's OxfordIIITPet"):
        everything(build_data(pet_config(tmp_path / "data", **options, on_error="stop")))
    chosen = pet_config(tmp_path / "data", **options, on_error="skip")
    data = build_data(chosen)
    for part in (data.train, data.test):
        rows = part.rows.tolist()
        images = part.__getitems__(range(len(part))).data["image"]
        for k in range(len(rows)):
            stands_in = next(x for x in rows[k:] + rows[:k] if x not in (1, 4))
            torch.testing.assert_close(images[k], truth[stands_in][0], atol=1e-6, rtol=0)
    assert "it is left out (data.on_error: skip)" in capsys.readouterr().err
    found = survey(chosen)
    assert not found.wrong and len(found.unreadable) == 2 and "OxfordIIITPet" in found.unreadable[0]
    assert any("2 of the examples cannot be read" in line for line in brief(chosen))
