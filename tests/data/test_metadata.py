"""labels.csv beside the folders: every label is that of its row; what does not fit is an error with its line."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mmfast import config as configs
from mmfast import modalities
from mmfast.build import build_data, with_found
from mmfast.data import folder
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT, guess
from mmfast.survey import brief, survey
from mmfast.texts import ngrams

LABELS = {"a/0": "bee", "a/1": "ape", "b/2": "cow", "b/3": "bee", "b/4": "ape", "b/5": "bee"}


@pytest.fixture
def root(tmp_path):
    for stem in LABELS:
        file = tmp_path / "image" / f"{stem}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(file)
    return tmp_path


def table(root, rows, header="file_name,label", name="labels.csv", encoding="utf-8", end="\n"):
    (root / name).write_bytes(end.join([header, *rows, ""]).encode(encoding))


def config(root, **label):
    parts = {"image": {"kind": "image", "channels": 1, "size": 4}, "label": {"kind": "label", "classes": 3, **label}}
    data = {"kind": "folder", "root": str(root), "test_fraction": 0.4}
    return configs.from_plain({**DRAFT, "data": data, "modalities": parts}, "x")


def read(root, **label):
    """Label by stem, None where it is missing."""
    chosen = config(root, **label)
    data, found = folder.open(chosen.data, chosen.modalities, "image"), {}
    for part in (data.train, data.test):
        batch = part.__getitems__(range(len(part)))
        there = batch.present.get("label", [True] * len(part))
        found |= {s: int(x) if yes else None for s, x, yes in zip(part.stems, batch.data["label"], there, strict=True)}
    return found


NUMBERS = {stem: ["ape", "bee", "cow"].index(label) for stem, label in LABELS.items()}
ROWS = [f"{stem}.png,{label}" for stem, label in LABELS.items()]


@pytest.mark.parametrize(
    ("rows", "how"),
    [
        (ROWS, {}),
        (ROWS[::-1], {"name": "metadata.csv"}),
        ([f"image/{row}" for row in ROWS], {"end": "\r\n"}),
        ([row.replace(".png", "") for row in ROWS], {"encoding": "utf-8-sig"}),
        ([f'"{s}.png","{x}"' for s, x in LABELS.items()], {}),
        ([f" {s}.png , {x} " for s, x in LABELS.items()], {}),
        ([f"./{row}" for row in ROWS], {}),
        ([row.replace("/", "\\") for row in ROWS], {}),
        ([*ROWS[:3], "", *ROWS[3:]], {}),
        ([f"{x},other,{s}.png" for s, x in LABELS.items()], {"header": "label,more,file_name"}),
    ],
)
def test_each_label_is_that_of_its_row(root, rows, how):
    table(root, rows, **how)
    assert read(root) == NUMBERS and read(root, names=["cow", "ape", "bee"]) == {
        stem: ["cow", "ape", "bee"].index(label) for stem, label in LABELS.items()
    }
    found = survey(config(root))
    assert not found.wrong and not found.left_out and found.seen["label"].classes == {"ape": 2, "bee": 3, "cow": 1}
    assert with_found(config(root)).modalities["label"].names == ["ape", "bee", "cow"]
    if "header" in how:
        assert found.notes == [
            f"{root / 'labels.csv'}: the columns more are not modalities, and are left out",
            "label: only held-out examples have cow, of 3 classes; training never sees them",
        ]


def test_numbers_are_classes_and_what_has_no_row_or_cell_is_missing(root):
    table(root, ["a/0.png,2", "a/1.png,0", "b/2.png,"])
    assert read(root) == {"a/0": 2, "a/1": 0, "b/2": None, "b/3": None, "b/4": None, "b/5": None}
    assert brief(config(root))[0] == "6 examples, 1 of them held out; label 2"


def test_a_column_comes_before_the_names_of_folders(root):
    table(root, ROWS)
    assert read(root) == NUMBERS
    (root / "labels.csv").unlink()
    assert read(root, classes=2) == {stem: "ab".index(stem[0]) for stem in LABELS}


WRONG = {
    "misnamed file": ([*ROWS[:2], "b/22.png,cow", *ROWS[3:]], {}, r"line 4: file_name is 'b/22.png'.*you mean 'b/2"),
    "another ending": (["a/0.jpg,ape", *ROWS[1:]], {}, r"line 2: file_name is 'a/0.jpg'; it should be a file of image"),
    "no file": ([",ape", *ROWS], {}, r"line 2: file_name is ''"),
    "twice": ([*ROWS, ROWS[0]], {}, r"line 8: file_name is 'a/0.png', as in line 2; remove one"),
    "twice by another name": ([*ROWS, "image/a/0.png,ape"], {}, r"line 8: .* as in line 2"),
    "misnamed label": ([*ROWS[:3], "b/3.png,wasp", *ROWS[4:]], {"names": ["ape", "bee", "cow"]},
                       r"line 5: 'wasp' is not a label; it should be in 0 .. 2 or one of ape, bee, cow"),
    "too many names": ([*ROWS[:3], "b/3.png,wasp", *ROWS[4:]], {}, r"classes is 3; .*labels.csv names 4 \(ape, bee,"),
    "large number": (["a/0.png,2", "a/1.png,7"], {}, r"line 3: '7' is not a label"),
    "long number": (["a/0.png,2", f"a/1.png,{'7' * 5000}"], {"names": ["a", "b", "c"]}, r"line 3: '7{40}\.\.\.' is no"),
    "short row": (["a/0.png", *ROWS[1:]], {}, r"line 2 has 1 cell; the first line has 2 columns"),
    "long row": ([*ROWS[:5], "b/5.png,bee,x"], {}, r"line 7 has 3 cells"),
    "open quote": ([*ROWS[:5], '"b/5.png,bee'], {}, r"line \d cannot be read as CSV"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_an_error_with_its_line(root, name):
    rows, label, words = WRONG[name]
    table(root, rows)
    with pytest.raises(MmfastError, match=f"labels.csv {words}" if words.startswith("line") else words) as error:
        read(root, **label)
    assert "\n" not in str(error.value) and str(error.value) in survey(config(root, **label)).wrong


@pytest.mark.parametrize("length", [80, 81])
def test_a_long_name_is_shown_in_part(root, length):
    table(root, ["z" * length + ",ape"])
    line = survey(config(root)).wrong[0]
    assert repr("z" * 80 + "..." * (length > 80)) in line


def test_a_similar_name_is_looked_for_once(root):
    """It takes seconds in a large folder, and most often all names are wrong in one way."""
    table(root, [row.replace("/", "/1") for row in ROWS])
    wrong = survey(config(root)).wrong
    assert ["did you mean" in line for line in wrong] == [True] + [False] * 5


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("file_name,lable", "has the columns lable; one should be a modality: label"),
        ("file_name;label", "columns file_name;label; they should differ, be separated by commas, and one should be"),
        ("file,label", "and one should be file_name"),
        ("file_name,label,label", "they should differ"),
        ("", "and one should be file_name"),
    ],
)
def test_the_first_line(root, header, words):
    table(root, [], header)
    with pytest.raises(MmfastError, match=words):
        read(root)


def test_other_tables(root):
    table(root, ROWS)
    (root / "labels.csv").write_bytes("file_name,label\na/0.png,caf\xe9".encode("latin-1"))
    with pytest.raises(MmfastError, match=r"labels.csv cannot be read as a table: it is not UTF-8 text"):
        read(root)
    table(root, ROWS)
    table(root, ROWS, name="metadata.csv")
    with pytest.raises(MmfastError, match=r"holds labels.csv and metadata.csv; remove all but one"):
        read(root)
    (root / "metadata.csv").unlink()
    (root / "label").mkdir()
    (root / "label" / "x.txt").write_text("1")
    with pytest.raises(MmfastError, match=r"labels.csv has a column label, and .*label its files; remove one"):
        read(root)
    table(root, [f"{stem}.png,1" for stem in LABELS], "file_name,mask")
    parts = {"image": {"kind": "image", "channels": 1, "size": 4}, "mask": {"kind": "mask", "size": 4}}
    chosen = configs.from_plain({"data": {"kind": "folder", "root": str(root)}, "modalities": parts}, "x")
    with pytest.raises(MmfastError, match=r"line 2: '1' is a cell of a table, which cannot be converted to kind mask"):
        folder.open(chosen.data, chosen.modalities, "image")


def test_a_label_file_of_no_image_is_an_error_where_an_image_has_none(root):
    for stem, label in NUMBERS.items():
        file = root / "label" / f"{stem if stem != 'b/3' else 'b/03'}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(label))
    with pytest.raises(MmfastError, match=r"b/03.txt is not a label of any image, and .*b/3.png has none; name each"):
        read(root)
    (root / "label" / "b/03.txt").rename(root / "label" / "b/3.txt")
    (root / "label" / "b/99.txt").write_text("1")  # of an image that was removed, say
    assert read(root) == NUMBERS
    assert [path.name for paths in survey(config(root)).left_out.values() for path in paths] == ["99.txt"]


def test_a_table_is_seen_where_there_is_no_config(root):
    table(root, [f"{row},{k / 7}" for k, row in enumerate(ROWS)], "file_name,label,weight")
    found = guess(root, 32)
    assert found.modalities["label"] == modalities_of_a_label() and found.anchor == "image"
    assert any("weight" in note for note in found.notes)
    raw = {"anchor": "image", "data": found.data(), "modalities": found.modalities, **DRAFT}
    assert not survey(configs.from_plain(raw, "x")).wrong


def modalities_of_a_label():
    assert "label" in modalities.KINDS
    return {"kind": "label", "classes": 3, "names": ["ape", "bee", "cow"]}


def test_captions_may_be_a_column(tmp_path):
    for k in range(8):
        (tmp_path / "image").mkdir(exist_ok=True)
        Image.new("L", (4, 4), k).save(tmp_path / "image" / f"{k}.png")
    rows = [f'{k},"a cat, or {k % 2}"\n' for k in range(7)]
    (tmp_path / "metadata.csv").write_text("file_name,caption\n" + "".join(rows) + "7,\n")
    parts = {
        "image": {"kind": "image", "channels": 1, "size": 4},
        "caption": {"kind": "caption", "text_encoder": "ngrams"},
    }
    data = {"kind": "folder", "root": str(tmp_path), "cache_gb": 0}
    chosen = with_found(configs.from_plain({**DRAFT, "data": data, "modalities": parts}, "x"))
    assert chosen.modalities["caption"].captions == ["a cat, or 0", "a cat, or 1"]
    opened = build_data(chosen)
    for part in (opened.train, opened.test):
        batch = part.__getitems__(range(len(part)))
        for k, stem in enumerate(part.stems):
            there = "caption" not in batch.present or bool(batch.present["caption"][k])
            assert there == (stem != "7")
            if there:
                assert torch.equal(batch.data["caption"][k], ngrams([f"a cat, or {int(stem) % 2}"])[0])


def test_a_table_of_another_name_is_said_to_be_one(root):
    table(root, ROWS, name="attributes.csv")
    (root / "other.txt").write_text("x")
    left = survey(config(root)).left_out
    assert [
        path.name for path in left["table, which would have to be named labels.csv, metadata.csv or metadata.jsonl"]
    ] == ["attributes.csv"]
    assert [path.name for path in left["not a folder of a modality"]] == ["other.txt"]


NUMBERS_OF = {"kind": "table", "columns": ["x", "the y"], "weight": {"kind": "none"}}


def rows_of(root, **spec):
    raw = {"image": {"kind": "image", "channels": 1, "size": 4}, "numbers": {**NUMBERS_OF, **spec}}
    data = {"kind": "folder", "root": str(root), "test_fraction": 0.4}
    return with_found(configs.from_plain({**DRAFT, "data": data, "modalities": raw}, "x"))


def test_numbers_may_be_columns(root):
    """A row of them for each example; one with an empty cell is missing. Mean and scale are the training rows'."""
    values = {stem: (k / 4, -3.5 * k) for k, stem in enumerate(LABELS)}
    lines = [f"{stem}.png,{x},{'' if stem == 'b/3' else y},bee" for stem, (x, y) in values.items()]
    table(root, lines, "file_name,x,the y,label")
    chosen = rows_of(root)
    data, seen = build_data(chosen), {}
    for part in (data.train, data.test):
        batch = part.__getitems__(range(len(part)))
        there = batch.present.get("numbers", torch.ones(len(part), dtype=torch.bool))
        seen |= {s: x.tolist() for s, x, yes in zip(part.stems, batch.data["numbers"], there, strict=True) if yes}
    assert seen == {stem: list(pair) for stem, pair in values.items() if stem != "b/3"}
    train = np.array([values[stem] for stem in data.train.stems if stem != "b/3"])
    spec = chosen.modalities["numbers"]
    assert spec.means == train.mean(0).tolist() and spec.scales == train.std(0).tolist()
    assert rows_of(root, means=[1.0, 2.0]).modalities["numbers"].means == [1.0, 2.0]
    # What else there is goes unused, and a cell that is no number is an error with its line.
    assert "the columns label are not modalities" in " ".join(survey(chosen).notes)
    table(root, [*lines[:2], lines[2].replace("0.5", "half"), *lines[3:]], "file_name,x,the y,label")
    with pytest.raises(MmfastError, match=r"labels.csv line 4: column 'x' is 'half'; it should be a number"):
        build_data(rows_of(root))


def test_the_note_on_numbers_is_a_modality_that_works(root):
    table(root, [f"{stem}.png,{k / 3}" for k, stem in enumerate(LABELS)], "file_name,depth")
    guessed = guess(root, 32)
    (note,) = [note for note in guessed.notes if "numbers" in note]
    added = yaml.safe_load("{" + note.split("`")[1] + "}")
    raw = {"anchor": guessed.anchor, "data": guessed.data(), "modalities": {**guessed.modalities, **added}, **DRAFT}
    found = survey(configs.from_plain(raw, "x"))
    assert not found.wrong and found.seen["numbers"].there == len(LABELS)
