"""What texts are taken for, at the limits: classes, captions, numbers or splits."""

import pytest

from mmfast.guess_remarks import remarks
from mmfast.guess_text import are_captions, classes, of_files, of_folders, of_texts
from mmfast.texts import minilm


def texts(count, words=3):
    return {" ".join([f"x{k}"] * words) for k in range(count)}


@pytest.mark.parametrize(
    ("found", "captions"),
    [
        (texts(20), False),
        (texts(21), True),
        (texts(40, words=2), False),
        (texts(20) | texts(20, words=2), False),  # just half of them have three words
        (texts(21) | texts(20, words=2), True),
    ],
)
def test_captions_are_many_texts_of_several_words(found, captions):
    assert are_captions(found) is captions


@pytest.mark.parametrize(
    ("found", "examples", "expected"),
    [
        (["b", "a"], 2, {"kind": "label", "classes": 2, "names": ["a", "b"]}),
        (["b", "a", "c"], 5, None),  # two would be enough for two examples each
        (["b", "a", "c"], 6, {"kind": "label", "classes": 3, "names": ["a", "b", "c"]}),
        (["a"], 9, None),
        (["0", "7"], 9, {"kind": "label", "classes": 8}),
        (["0", "cat"], 9, {"kind": "label", "classes": 2, "names": ["0", "cat"]}),
        (["0", "000000007"], 9, {"kind": "label", "classes": 8}),
        (["0", "0000000007"], 9, {"kind": "label", "classes": 2, "names": ["0", "0000000007"]}),
        (["0", "00"], 9, {"kind": "label", "classes": 2, "names": ["0", "00"]}),
        (["0", "1000"], 9, {"kind": "label", "classes": 2, "names": ["0", "1000"]}),
        (["0", "999"], 9, {"kind": "label", "classes": 1000}),
        (map(str, range(5000, 6001)), 9999, None),
    ],
)
def test_classes(found, examples, expected):
    assert classes(found, examples) == expected


def test_notes_count_the_texts(monkeypatch):
    monkeypatch.setattr(minilm, "installed", lambda: False)
    assert of_texts({"a"}, 9) == (None, "1 text, which is not classes")
    assert of_texts({"a", "b", "c"}, 4) == (None, "3 different texts, which are not classes")
    assert of_texts(set(), 4) == (None, "0 different texts, which are not classes")
    assert of_texts(texts(1234), 2000)[1].startswith("1,234 different texts, which are captions; to use them, install")
    assert of_texts({"a", "b", "c" * 101}, 9)[0] == {"kind": "label", "classes": 2, "names": ["a", "b"]}


def test_files_that_cannot_be_read_count_only_if_none_can(tmp_path):
    for k in range(6):
        (tmp_path / f"{k}.txt").write_text("ab"[k % 2])
    paths = sorted(tmp_path.iterdir())
    whole = {"kind": "label", "classes": 2, "names": ["a", "b"]}
    assert of_files(paths) == (whole, "")
    paths[0].write_bytes(b"\xff")
    paths[1].write_text("")
    assert of_files(paths) == (whole, "")
    for path in paths:
        path.write_text("")
    assert of_files(paths) == (None, "0 different texts, which are not classes")
    for path in paths:
        path.write_bytes(b"\xff")
    options, note = of_files(paths)
    assert options is None and note.startswith(
        f"6 texts, none of which can be read ({paths[0]} cannot be read as a text"
    )


@pytest.mark.parametrize(
    ("stems", "names"),
    [
        (["a/0", "a/1", "b/0", "b/1"], ["a", "b"]),
        (["a/0", "a/1", "a/2", "a/3", "b/0", "b/1", "b/2", "1"], None),
        (["train/0", "train/1"], None),
        (["train/0", "cat/1", "train/1", "cat/0"], ["cat", "train"]),
        (["train/0", "test/1", "train/1", "test/0"], None),
        (["train/a/0", "train/b/0", "test/a/0", "test/b/1"], ["a", "b"]),
        (["train/a/0", "train/b/0", "train/b/1", "train/a/1"], ["a", "b"]),
        (["train/a/0", "train/b/0", "test/a/0", "test/1"], None),
        (["a/train/0", "a/test/0", "b/train/0", "b/test/0"], ["a", "b"]),
    ],
)
def test_folders(stems, names):
    expected = None if names is None else {"kind": "label", "classes": len(names), "names": names}
    assert of_folders(stems) == (expected, "")


@pytest.mark.parametrize(
    ("folders", "parts"),
    [(["test", "train"], "train: train, test: test"), (["dev", "training"], "train: train, test: validation"),
     (["test", "val"], "train: test, test: validation"), (["test", "train", "validation"], "train: train, test: test")],
)  # fmt: skip
def test_folders_that_are_splits(tmp_path, folders, parts):
    stems = [f"{x}/{k}" for x in folders for k in range(4)]
    (remark,) = remarks(stems, tmp_path, alone=True)
    assert remark == (
        f"the folders {', '.join(folders)} are splits of a data set: their examples are pooled, and tables in them are "
        f"not read; to keep them apart, use `data: {{kind: huggingface, path: {tmp_path}, {parts}}}`"
    )
    (remark,) = remarks(stems, tmp_path, alone=False)  # it would not read the other modalities
    assert remark.endswith("tables in them are not read")


def test_a_table_in_the_only_split_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    assert [*remarks(["train/0", "train/1"], tmp_path, alone=True)] == []
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n")
    (remark,) = remarks(["train/0", "train/1"], tmp_path, alone=True)
    assert remark == f"the table in {tmp_path}/train is not read; `mmfast check {tmp_path}/train` reads it"


def test_pictures_named_as_the_masks_of_others_are_remarked_on(tmp_path):
    stems = [
        "a/0",
        "a/0_mask",
        "a/1",
        "a/1_mask",
        "2_mask",
        "3",
        "4_maskless",
        "x/5",
        "5_mask",
        "6",
        "6_small",
        "7",
        "7_mask/8",
    ]
    (remark,) = remarks(stems, tmp_path, alone=True)
    assert remark == (
        f"2 pictures in {tmp_path} that end in _mask are read as images; if they are the masks of those without it, "
        "move them to a folder `mask`, and leave _mask out of their names"
    )
    assert [*remarks(["0", "0_segmentation"], tmp_path, alone=True)] and not [*remarks(["0", "1"], tmp_path, True)]
