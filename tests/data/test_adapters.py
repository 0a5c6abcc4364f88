"""Data sets of torchvision and of Hugging Face, by value: beside what the other package itself gives."""

import multiprocessing
import os
import sys
import types

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from mmfast import config as configs
from mmfast.build import build_data, with_found
from mmfast.data import huggingface, torchvision
from mmfast.data.items import Items
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT
from mmfast.survey import brief, survey
from mmfast.texts import ngrams
from mmfast.training import train
from mmfast.training.examples import loader

SIZE, COUNT = 4, 30
FEW = {
    "train": {"steps": 1, "batch_size": 8, "sample_every": 0, "tensorboard": False, "device": "cpu"},
    "sample": {"steps": 1, "count": 1},
    "evaluate": {"samples": 0},
    "schedule": {"T": 4},
}
IMAGE, LABEL = {"kind": "image", "channels": 3, "size": SIZE}, {"kind": "label", "classes": 3}


def config(data, modalities=None):
    return configs.from_plain(
        {**DRAFT, **FEW, "data": data, "modalities": modalities or {"image": IMAGE, "label": LABEL}}, "x"
    )


def pixels(picture):
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


@pytest.fixture(autouse=True)
def opened_anew():
    yield
    torchvision._load.cache_clear()
    huggingface._load.cache_clear()


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
        ({"fields": {"image": 1, "label": 0}}, "example 0 of torchvision's FakeData, image is|of which no"),
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


def test_an_example_without_its_anchor_is_none(stand_in, capsys):
    stand_in[3]["img"] = None
    [line] = survey(config(hub())).wrong
    assert line.startswith("example 3 of pets, split train has no image, the anchor, which every example needs")
    left = build_data(config(hub(on_error="skip", test="test"))).train
    assert "image" not in left.__getitems__(range(len(left))).present and left.unreadable.tolist().count(True) == 1


def test_classes_that_are_called_by_other_numbers_keep_their_names(stand_in):
    names = stand_in.features["label"].names
    for own, found in ((["1", "2", "3"], ["1", "2", "3"]), (["0", "1", "2"], []), (["00", "", "2"], [])):
        names[:] = own
        assert with_found(config(hub())).modalities["label"].names == found


def test_classes_in_another_order_are_refused(stand_in, monkeypatch):
    label = {**LABEL, "names": ["bee", "ape", "cow"]}
    with pytest.raises(MmfastError, match=r"label\.names is bee, ape, cow; the data's order is ape, bee, cow"):
        with_found(config(hub(), {"image": IMAGE, "label": label}))
    renamed = with_found(config(hub(), {"image": IMAGE, "label": {**LABEL, "names": ["Affe", "Biene", "Kuh"]}}))
    assert renamed.modalities["label"].names == ["Affe", "Biene", "Kuh"]
    other = Table(stand_in)
    other.features = {**stand_in.features, "label": types.SimpleNamespace(names=["cow", "bee", "ape"])}
    load = lambda path, name, split: other if split == "test" else stand_in  # noqa: E731
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", load)
    with pytest.raises(MmfastError, match=r"the classes of split 'test' are .*cow.*others than those of 'train'"):
        build_data(config(hub(test="test")))


def test_captions_are_texts_of_a_column(stand_in):
    stand_in[4]["more"], stand_in[5]["more"] = " a cat ", None
    caption = {"kind": "caption", "text_encoder": "ngrams"}
    chosen = config(hub(columns={"image": "img", "caption": "more"}, test="test"), {"image": IMAGE, "caption": caption})
    assert with_found(chosen).modalities["caption"].captions == ["a cat", "x"]
    batch = build_data(chosen).train.__getitems__([0, 4, 5])
    assert torch.equal(batch.data["caption"][:2], ngrams(["x", "a cat"]))
    assert batch.present["caption"].tolist() == [True, True, False]


class Table(list):
    """A stand-in for a data set of `datasets`: rows, with features."""

    features = types.MappingProxyType({})

    def select_columns(self, names):
        return [{name: row[name] for name in names} for row in self]

    def cast_column(self, name, feature):
        assert feature.decode is False
        return self


def rows(seed=0):
    import io

    rng = np.random.default_rng(seed)
    for k in range(12):
        picture = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
        file = io.BytesIO()
        picture.save(file, "PNG")
        yield picture, {"img": {"bytes": file.getvalue(), "path": None}, "label": k % 3, "more": "x"}


@pytest.fixture
def stand_in(monkeypatch):
    """The package `datasets`, as far as it is used here, and the rows of a data set called pets."""
    module, table = types.ModuleType("datasets"), Table(row for _, row in rows())
    module.__version__ = "4.1.0"

    class ImageFeature:
        def __init__(self, decode=True):
            self.decode = decode

    class DatasetDict(dict):
        pass

    names = types.SimpleNamespace(names=["ape", "bee", "cow"])
    table.features = {"img": ImageFeature(), "label": names, "more": None}

    def load_dataset(path, name, split):
        if path != "pets" or split not in ("train", "test"):
            raise ValueError(f"no data set {path}\nwith split {split}")
        return table

    module.Image, module.DatasetDict, module.load_dataset = ImageFeature, DatasetDict, load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return table


def hub(**more):
    return {"kind": "huggingface", "path": "pets", "columns": {"image": "img"}, **more}


def check_rows(data, expected):
    for part in (data.train, data.test):
        batch = part.__getitems__(range(len(part)))
        numbers = part.rows.tolist() if hasattr(part, "rows") else range(len(part))
        for k, row in enumerate(numbers):
            assert torch.allclose(batch.data["image"][k], pixels(expected[row]), atol=1e-6)
            assert int(batch.data["label"][k]) == row % 3


def test_rows_of_a_data_set_of_hugging_face(stand_in, tmp_path):
    pictures = [picture for picture, _ in rows()]
    chosen = with_found(config(hub()))
    assert chosen.modalities["label"].names == ["ape", "bee", "cow"]
    check_rows(build_data(chosen), pictures)
    check_rows(build_data(config(hub(test="test"))), pictures)
    counts = chosen.modalities["label"].class_counts
    assert counts == build_data(chosen).train.rows.remainder(3).bincount().tolist()
    assert sum(with_found(config(hub(test="test"))).modalities["label"].class_counts) == len(pictures)
    train(chosen, str(tmp_path / "run"), quiet=True)
    stand_in[3]["label"] = None
    batch = build_data(config(hub(test="test"))).train.__getitems__([2, 3])
    assert batch.present["label"].tolist() == [True, False]
    stand_in[3]["label"], stand_in[5]["img"] = 0, {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0", "path": "x.png"}
    [line] = survey(config(hub())).wrong
    assert line.startswith("example 5 of pets, split train cannot be read as a picture: it is none of PNG")
    pictures[5].save(tmp_path / "there.png")
    stand_in[5]["img"] = {"bytes": None, "path": str(tmp_path / "there.png")}
    check_rows(build_data(config(hub(test="test"))), pictures)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"path": "pet"}, "data.path 'pet', split 'train', cannot be opened: no data set pet with split train"),
        ({"train": "all"}, "split 'all', cannot be opened"),
        ({"path": ""}, "data.path is empty"),
        ({"columns": {}}, "a column is 'image'; it should be one of img, label, more"),
        ({"columns": {"imag": "img"}}, r"data\.columns' modality is 'imag'"),
    ],
)
def test_what_does_not_fit_hugging_face(stand_in, data, words):
    with pytest.raises(MmfastError, match=words) as error:
        build_data(config({**hub(), **data}))
    assert "\n" not in str(error.value)


def test_a_folder_that_the_package_saved_has_one_split_or_several(stand_in, tmp_path, monkeypatch):
    """With the package's stand-in: `test_the_package_itself` needs the package."""
    module, pictures = sys.modules["datasets"], [picture for picture, _ in rows()]
    for name, several in (("one", False), ("two", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("dataset_dict.json" if several else "dataset_info.json")).touch()
    saved = {str(tmp_path / "one"): stand_in, str(tmp_path / "two"): module.DatasetDict(train=stand_in, test=stand_in)}
    monkeypatch.setattr(module, "load_from_disk", saved.__getitem__, raising=False)
    check_rows(build_data(config(hub(path=str(tmp_path / "one")))), pictures)
    check_rows(build_data(config(hub(path=str(tmp_path / "two"), test="test"))), pictures)
    with pytest.raises(MmfastError, match="data: the split is 'valid'; it should be one of train, test"):
        build_data(config(hub(path=str(tmp_path / "two"), test="valid")))


def test_an_earlier_version_is_refused_for_it_may_run_code(stand_in):
    sys.modules["datasets"].__version__ = "3.6.0"
    with pytest.raises(MmfastError, match=r"needs datasets 4 or later, not 3\.6\.0"):
        build_data(config(hub()))


def test_the_package_itself(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [picture for picture, _ in rows()]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ape", "bee", "cow"])})
    table = datasets.Dataset.from_dict({"img": pictures, "label": [k % 3 for k in range(12)]}, features=features)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "two"))
    for path, more in (("one", {}), ("two", {"test": "test"})):
        chosen = with_found(config(hub(path=str(tmp_path / path), **more)))
        assert chosen.modalities["label"].names == ["ape", "bee", "cow"]
        check_rows(build_data(chosen), pictures)
    with pytest.raises(MmfastError, match="the split is 'valid'; it should be one of train, test"):
        build_data(config(hub(path=str(tmp_path / "two"), test="valid")))


def counted(monkeypatch):
    """The numbers of the examples that are read, in order."""
    found, read = [], Items._read

    def seen(self, index):
        found.append(index)
        return read(self, index)

    monkeypatch.setattr(Items, "_read", seen)
    return found


def everything(data):
    return [part.__getitems__(range(len(part))).data for part in (data.train, data.test)]


def same(a, b):
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


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


def test_datasets_examples_are_decoded_once(stand_in, tmp_path, monkeypatch):
    """By its fingerprint; of a table without one nothing is kept."""
    plain = everything(build_data(config(hub(cache=str(tmp_path / "cache")))))
    assert not (tmp_path / "cache").exists()
    stand_in._fingerprint = "f1"
    huggingface._load.cache_clear()
    first = everything(build_data(config(hub(cache=str(tmp_path / "cache")))))
    read = counted(monkeypatch)
    assert same(plain, first) and same(plain, everything(build_data(config(hub(cache=str(tmp_path / "cache"))))))
    assert not read
    stand_in._fingerprint = "f2"
    everything(build_data(config(hub(cache=str(tmp_path / "cache")))))
    assert {*read} == {*range(12)}


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
