"""Data sets of Hugging Face, by value: beside what the other package itself gives."""

import sys
import types

import numpy as np
import pytest
import torch
from adapters import IMAGE, LABEL, SIZE, config, counted, everything, pixels, same
from adapters import opened_anew as opened_anew  # for every test here
from PIL import Image

from mmfast.build import build_data, with_found
from mmfast.data import huggingface
from mmfast.errors import MmfastError
from mmfast.survey import survey
from mmfast.texts import ngrams
from mmfast.training import train


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
    with pytest.raises(MmfastError, match=r"the classes of split 'test' are .*cow.*not those of 'train'"):
        build_data(config(hub(test="test")))


def test_captions_are_texts_of_a_column(stand_in):
    stand_in[4]["more"], stand_in[5]["more"] = " a cat ", None
    caption = {"kind": "caption", "text_encoder": "ngrams"}
    chosen = config(hub(columns={"image": "img", "caption": "more"}, test="test"), {"image": IMAGE, "caption": caption})
    assert with_found(chosen).modalities["caption"].captions == ["a cat", "x"]
    batch = build_data(chosen).train.__getitems__([0, 4, 5])
    assert torch.equal(batch.data["caption"][:2], ngrams(["x", "a cat"]))
    assert batch.present["caption"].tolist() == [True, True, False]


def test_classes_may_be_texts(stand_in):
    """Sorted, they are the names, in the run as well; texts of numbers are these classes."""
    called = ["cow", "ape ", "bee"]
    for k, row in enumerate(stand_in):
        row["more"] = called[k % 3] if k > 1 else " " if k else None
    stand_in.features["more"] = types.SimpleNamespace(dtype="string")
    columns = {"image": "img", "label": "more"}
    found = with_found(config(hub(columns=columns))).modalities["label"]
    assert found.names == ["ape", "bee", "cow"] and sum(found.class_counts) == len(build_data(config(hub())).train) - 2
    opened = build_data(with_found(config(hub(columns=columns, test="test"))))
    batch = opened.train.__getitems__(range(12))
    assert batch.data["label"][2:].tolist() == [[2, 0, 1][k % 3] for k in range(2, 12)]
    assert batch.present["label"].tolist() == [False] * 2 + [True] * 10
    with pytest.raises(
        MmfastError, match=r"label.classes is 4; the column more has 3 different texts \(ape, bee, cow\)"
    ):
        with_found(config(hub(columns=columns), {"image": IMAGE, "label": {**LABEL, "classes": 4}}))
    for k, row in enumerate(stand_in):
        row["more"] = str(k % 3)
    opened = with_found(config(hub(columns=columns, test="test")))
    assert opened.modalities["label"].names == []
    assert build_data(opened).train.__getitems__(range(12)).data["label"].tolist() == [k % 3 for k in range(12)]


class Table(list):
    """A stand-in for a data set of `datasets`: rows, with features."""

    features = types.MappingProxyType({})

    def select_columns(self, names):
        return Table({name: row[name] for name in names} for row in self)

    def cast_column(self, name, feature):
        assert feature.decode is False
        self.features = {**self.features, name: feature}
        return self

    def flatten(self):
        return Table({f"{name}.path": x["path"] for name, x in row.items() if isinstance(x, dict)} for row in self)

    def __getitem__(self, index):
        part = super().__getitem__(index)
        return {name: [row[name] for row in part] for name in part[0]} if isinstance(index, slice) else part


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


def test_a_picture_that_a_row_names_by_its_path_is_read_again_when_it_changes(stand_in, tmp_path, monkeypatch):
    """The fingerprint is that of the path alone."""
    pictures = [picture for picture, _ in rows()]
    pictures[5].save(tmp_path / "there.png")
    stand_in._fingerprint = "f3"
    stand_in[5]["img"] = {"bytes": None, "path": str(tmp_path / "there.png")}
    chosen = config(hub(cache=str(tmp_path / "cache"), test="test"))
    check_rows(build_data(chosen), pictures)
    monkeypatch.setattr(huggingface, "ROWS", 5)  # any number of rows at a time are the same rows
    read = counted(monkeypatch)
    check_rows(build_data(chosen), pictures)
    assert not read
    pictures[5] = pictures[6]
    pictures[5].save(tmp_path / "there.png")
    check_rows(build_data(chosen), pictures)
    assert {*read} == {5}


def test_the_package_reads_a_changed_picture_again(tmp_path):
    """A folder of pictures, of which `datasets` keeps the paths alone."""
    pytest.importorskip("datasets")
    pictures = [picture for picture, _ in rows()]
    (tmp_path / "pets").mkdir()
    for k, picture in enumerate(pictures):
        picture.save(tmp_path / "pets" / f"{k:02}.png")
    modalities = {"image": IMAGE}
    data = {"kind": "huggingface", "path": str(tmp_path / "pets"), "test": "train", "cache": str(tmp_path / "cache")}
    chosen = config(data, modalities)
    for changed in ((), (5,), (0, 11)):
        for k in changed:
            pictures[k] = pictures[6]
            pictures[k].save(tmp_path / "pets" / f"{k:02}.png")
        batch = build_data(chosen).train.__getitems__(range(12))
        assert torch.allclose(batch.data["image"], torch.stack([pixels(x) for x in pictures]), atol=1e-6)
