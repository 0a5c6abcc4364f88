"""metadata.jsonl beside the pictures says what a CSV file of the same rows says; what is wrong names its line."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmfast import config as configs
from mmfast.build import build_data
from mmfast.data.metadata import Table, find_table, read_table
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT, guess
from mmfast.survey import survey
from mmfast.texts import minilm

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=6))
def test_the_same_as_csv(tmp_path_factory, rows):
    """Every text, quotes, commas and line ends among them: cells in the same order, though by other lines."""
    root = tmp_path_factory.mktemp("tables")
    columns = ("file_name", "text", "a b")
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([columns, *rows])
    lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=len(rows) % 2 == 0) for row in rows]
    (root / "metadata.jsonl").write_text("\n".join(["", *lines, "  "]), encoding="utf-8")
    truth, found = read_table(root / "metadata.csv"), read_table(root / "metadata.jsonl")

    def cells(table: Table, name: str) -> list[str]:
        return [table.columns.get(name, {}).get(line, "") for line in table.names]

    assert [*found.names] == list(range(2, len(rows) + 2)) and [*found.names.values()] == [*truth.names.values()]
    assert all(cells(found, name) == cells(truth, name) for name in columns[1:])


def test_values_that_are_no_texts(tmp_path):
    row = {"file_name": "0.png", "n": 3, "x": 0.5, "yes": True, "none": None, "of": [1, "\u00e9"], "t": " e\u0301 ",
           "nan": float("nan")}  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"file_name": "1.png", "late": "1"}))
    table = read_table(tmp_path / "metadata.jsonl")
    assert table.names == {1: "0.png", 2: "1.png"}
    assert table.columns == {
        "n": {1: "3"}, "x": {1: "0.5"}, "yes": {1: "true"}, "none": {}, "of": {1: '[1, "\u00e9"]'}, "t": {1: "\u00e9"},
        "nan": {}, "late": {2: "1"},
    }  # fmt: skip
    assert table.nested == {"of": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file_name": "0.png"}\n{"file_name": "1.png"', r"line 2 cannot be read as JSON: "),
        ("[" * 200_000, r"line 1 cannot be read as JSON: "),
        ('\n["0.png"]', r"line 2 should be an object with a text named file_name"),
        ('{"text": "x"}', r"line 1 should be an object with a text named file_name"),
        (
            '{"file_name": "0.png", "text": "a cat \\ud83d"}',
            r"line 1 cannot be read as JSON: .* surrogates not allowed",
        ),
        ('{"file_name": 7}', r"line 1 should be an object with a text named file_name"),
    ],
)
def test_what_is_wrong_names_its_line(tmp_path, text, words):
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(MmfastError, match=f"metadata.jsonl {words}"):
        read_table(tmp_path / "metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff")
    with pytest.raises(MmfastError, match=r"metadata.jsonl cannot be read as a table: it is not UTF-8 text"):
        read_table(tmp_path / "metadata.jsonl")


def test_one_table_only(tmp_path):
    assert find_table(tmp_path) is None
    for name in ("metadata.jsonl", "labels.csv"):
        (tmp_path / name).write_text("")
    with pytest.raises(MmfastError, match=r"holds labels.csv and metadata.jsonl; remove all but one"):
        find_table(tmp_path)


def test_a_column_of_captions_is_guessed(tmp_path, monkeypatch):
    """Hugging Face's layout: pictures, and a metadata.jsonl that names each with its text."""
    monkeypatch.setattr(minilm, "installed", lambda: True)
    rows = []
    for k in range(30):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            tmp_path / f"{k}.png"
        )
        boxes = {"of": [[k, 1, 2, 3]]}
        rows.append({"file_name": f"{k}.png", "text": f"a picture of {k} things", "score": k / 7, "boxes": boxes})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = guess(tmp_path, 32)
    assert found.modalities["text"] == {"kind": "caption", "text_encoder": "minilm"} and found.shares == {"text": 1.0}
    assert [note.partition("jsonl: ")[2][:50] for note in found.notes] == [
        "the column boxes, which has lists or objects",
        "the columns score, which are numbers, not classes;",
    ]
    boxes = {"kind": "caption", "text_encoder": "ngrams"}
    chosen = configs.from_plain(
        {"data": found.data(), "modalities": {**found.modalities, "boxes": boxes}, **DRAFT}, "x"
    )
    assert survey(chosen).wrong[0].endswith("line 1: boxes is a list or an object; it should be a text or a number")


def test_splits_of_pictures_with_masks_are_not_sent_where_masks_are_lost(tmp_path):
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
            for k in range(4):
                picture = Image.new("RGB" if kind == "images" else "L", (8, 8), (k, 9, 0) if kind == "images" else 0)
                picture.putpixel((k, k), (1, 2, 3) if kind == "images" else 255)
                picture.save(tmp_path / kind / split / f"{k}.png")
    found = guess(tmp_path, 32)
    assert {x["kind"] for x in found.modalities.values()} == {"image", "mask"}
    (remark,) = found.remarks
    assert remark.endswith("their examples are pooled, and tables in them are not read")


def test_classes_below_splits_are_the_labels(tmp_path):
    """train/cat, test/dog and so on: the folders below the splits name the classes."""
    for k, folder in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        (tmp_path / folder).mkdir(parents=True)
        for n in range(4):
            Image.new("RGB", (8, 8), (50 * k, n, 0)).save(tmp_path / folder / f"{n}.png")
    found = guess(tmp_path, 32)
    assert found.modalities["label"] == {"kind": "label", "classes": 2, "names": ["cat", "dog"]}
    chosen = configs.from_plain({"data": found.data(), "modalities": found.modalities, **DRAFT}, "x")
    data = build_data(chosen)
    seen = [part.__getitems__([k]).data for part in (data.train, data.test) for k in range(len(part))]
    pairs = {(round((float(x["image"][0, 0, 0, 0]) + 1) * 127.5), int(x["label"][0])) for x in seen}
    assert pairs == {(0, 0), (50, 1), (100, 0), (150, 1)}


def test_the_splits_of_a_data_set_are_no_classes(tmp_path):
    for split in ("train", "test"):
        for k in range(6):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / split / f"{k}.png")
    found = guess(tmp_path, 32)
    assert [*found.modalities] == ["image"] and found.examples == 12
    (note,) = found.remarks
    assert found.notes == [] and note.startswith("the folders test, train are splits of a data set: their examples")
    assert note.endswith(f"`data: {{kind: huggingface, path: {tmp_path}, train: train, test: test}}`")
