"""What is guessed of a plain folder: kinds, classes and sizes of folders as people have them."""

import numpy as np
import pytest
from PIL import Image

from mmfast.errors import MmfastError
from mmfast.guess import guess
from mmfast.guess_text import are_captions, are_measured
from mmfast.texts import minilm

RANDOM = np.random.default_rng(0)


def colour(side=20):
    return RANDOM.integers(0, 256, (side, side, 3), dtype=np.uint8)


def save(root, name, content):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_text(content)
    elif file.suffix == ".npy":
        np.save(file, content)
    else:
        Image.fromarray(content).save(file)


def mask(*values):
    """Pixels of all these values."""
    return np.resize(np.array(values, np.uint8), (20, 20))


def files(root, makers):
    """Eight files for every maker, {"mask/STEM.png": k -> content}, of stems dog/0, cat/1, ..."""
    for name, make in makers.items():
        for k in range(8):
            save(root, name.replace("STEM", f"{'cat' if k % 2 else 'dog'}/{k}"), make(k))


IMAGE = {"image/STEM.png": lambda k: colour()}
SEEN = {"kind": "image", "channels": 3, "size": 16}
TWO = {"kind": "mask", "classes": 2, "size": 16}
PETS = {"kind": "label", "classes": 2, "names": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, {}),
        ({"mask/STEM.png": lambda k: mask(0, 1)}, {"mask": TWO}),
        ({"mask/STEM.png": lambda k: mask(0, 255)}, {"mask": TWO}),
        (
            {"mask/STEM.png": lambda k: mask(*[0, 255] * 50, 128, 3)},
            {"mask": TWO},
        ),
        ({"seg/STEM.png": lambda k: mask(*range(k, 100))}, {"seg": {"kind": "mask", "classes": 100, "size": 16}}),
        ({"parts/STEM.png": lambda k: mask(0, 3, k)}, {"parts": {"kind": "mask", "classes": 8, "size": 16}}),
        (
            {"seg/STEM.png": lambda k: mask(0, 5, 255)},
            {"seg": {"kind": "mask", "classes": 6, "size": 16, "ignore": 255}},
        ),
        (
            {"trimaps/STEM.png": lambda k: mask(0, 1, 255)},
            {"trimaps": {"kind": "mask", "classes": 2, "size": 16, "ignore": 255}},
        ),
        ({"vec/STEM.npy": lambda k: np.zeros(7)}, {"vec": {"kind": "embedding", "dim": 7}}),
        ({"map/STEM.npy": lambda k: np.zeros((5, 2, 2))}, {"map": {"kind": "feature_map", "dim": 5, "cells": 2}}),
        ({"map/STEM.npy": lambda k: np.zeros((5, 3, 2))}, {"map": {"kind": "embedding", "dim": 30}}),
        ({"age/STEM.txt": lambda k: str(k % 4)}, {"age": {"kind": "label", "classes": 4}}),
        (
            {"race/STEM.txt": lambda k: ["elf", " orc\n", "no"][k % 3]},
            {"race": {"kind": "label", "classes": 3, "names": ["elf", "no", "orc"]}},
        ),
    ],
)
def test_the_modalities(tmp_path, more, found):
    files(tmp_path, {**IMAGE, **more})
    guessed = guess(tmp_path, 32)
    label = {} if any(x["kind"] == "label" for x in found.values()) else {"label": PETS}
    assert guessed.anchor == "image" and guessed.modalities == {"image": SEEN, **found, **label}
    assert not guessed.notes and not guessed.folders and guessed.examples == 8


def test_a_long_text_is_no_name_of_a_class(tmp_path):
    """It is told of where the file is read, as no label."""
    files(tmp_path, {**IMAGE, "race/STEM.txt": lambda k: "7" * 5000 if k == 3 else ["elf", "orc", "x" * 100][k % 3]})
    assert guess(tmp_path, 32).modalities["race"] == {"kind": "label", "classes": 3, "names": ["elf", "orc", "x" * 100]}


def test_how_many_have_each_modality(tmp_path):
    """Of the anchor's examples: files that belong to none do not count. Folders that are classes are in all."""
    files(tmp_path, {**IMAGE, "mask/STEM.png": lambda k: mask(0, 1)})
    for k in (1, 2, 5):
        (tmp_path / f"mask/{'cat' if k % 2 else 'dog'}/{k}.png").unlink()
    save(tmp_path, "mask/cat/stray.png", mask(0, 1))
    save(tmp_path, "labels.csv", "file_name,age\ndog/0.png,old\ncat/1.png,\ndog/2.png,new\n")
    guessed = guess(tmp_path, 32)
    assert guessed.shares == {"mask": 5 / 8, "age": 2 / 8}
    assert list(guessed.modalities) == ["image", "mask", "age"]


def test_the_size_is_near_the_pictures_and_at_most_what_is_said(tmp_path):
    for side, most, size in ((20, 32, 16), (28, 32, 32), (500, 32, 32), (500, 64, 64), (500, 8, 8), (5, 64, 8)):
        save(tmp_path / str(side), "image/0.png", colour(side))
        assert guess(tmp_path / str(side), most).modalities["image"]["size"] == size
    assert guess(tmp_path / "500", 32, 48).modalities["image"]["size"] == 48


def test_grey_pictures_have_one_channel_in_whatever_mode_they_are(tmp_path):
    for name, content in (("L", mask(3, 99)), ("RGB", np.repeat(mask(3, 99)[..., None], 3, 2)), ("mixed", colour())):
        save(tmp_path / name, "image/0.png", content)
        save(tmp_path / name, "image/1.png", mask(3, 99))
    assert [guess(tmp_path / x, 32).modalities["image"]["channels"] for x in ("L", "RGB", "mixed")] == [1, 1, 3]


def test_folders_of_classes_alone_are_one_modality(tmp_path):
    files(tmp_path, {"STEM.png": lambda k: colour()})
    guessed = guess(tmp_path, 32)
    assert guessed.modalities == {"image": SEEN, "label": PETS} and guessed.folders == {"image": "."}
    assert guessed.data() == {"kind": "folder", "root": str(tmp_path), "folders": {"image": "."}}


def test_one_folder_of_any_name_that_holds_classes(tmp_path):
    files(tmp_path, {"pets/STEM.png": lambda k: colour()})
    guessed = guess(tmp_path, 32)
    assert guessed.anchor == "pets" and guessed.modalities == {"pets": SEEN, "label": PETS} and not guessed.folders


def test_grey_pictures_of_few_values_are_masks_beside_their_images_alone(tmp_path):
    """Letters in black and white in folders that are their classes, which were masks of nothing."""
    black, grey = {"kind": "image", "channels": 1, "size": 16}, {"kind": "mask", "classes": 2, "size": 16}
    files(tmp_path / "classes", {"STEM.png": lambda k: mask(0, 255)})
    found = guess(tmp_path / "classes", 32)
    assert found.modalities == {"image": black, "label": PETS} and not found.notes
    files(tmp_path / "one", {"letters/STEM.png": lambda k: mask(0, 255)})
    assert guess(tmp_path / "one", 32).modalities == {"letters": black, "label": PETS}
    # Of some classes alone the pictures have many values.
    for k in range(6):
        save(tmp_path / "mixed", f"{'ab'[k % 2]}/{k}.png", mask(0, 255) if k % 2 else mask(*range(0, 250)))
    assert set(guess(tmp_path / "mixed", 32).modalities) == {"image", "label"}
    files(tmp_path / "masks", {"pets/STEM.png": lambda k: colour(), "regions/STEM.png": lambda k: mask(0, 255)})
    assert guess(tmp_path / "masks", 32).modalities == {"pets": SEEN, "regions": grey, "label": PETS}
    files(tmp_path / "named", {"masks/STEM.png": lambda k: mask(0, 255)})
    with pytest.raises(MmfastError, match="holds no pictures"):
        guess(tmp_path / "named", 32)


def test_pictures_alone(tmp_path):
    for k in range(3):
        save(tmp_path, f"{k}.png", colour())
    assert guess(tmp_path, 32).modalities == {"image": SEEN}


def test_folders_that_are_numbers_keep_them(tmp_path):
    for number in (0, 3, 11):
        for k in range(3):
            save(tmp_path, f"photos/{number}/{k}.png", colour())
    assert guess(tmp_path, 32).modalities["label"] == {"kind": "label", "classes": 12}


def test_what_is_left_out_is_said(tmp_path):
    masks = {"mask/other/STEM.png": lambda k: mask(0, 1), "seg/STEM.png": lambda k: mask(*range(0, 201, 20))}
    others = {"captions/STEM.txt": lambda k: f"text {k}", "depth/STEM.png": lambda k: colour()}
    files(tmp_path, {**IMAGE, **others, **masks})
    guessed = guess(tmp_path, 32)
    assert guessed.modalities == {"image": SEEN, "label": PETS}
    assert guessed.notes == [
        "captions: 8 different texts, which are not classes",
        "depth: more pictures, which are not masks; image has the images",
        "mask: no file has the path and name of one in image",
        "seg: masks with values up to 200, which are no class numbers",
    ]


def test_a_folder_whose_name_cannot_be_a_modality(tmp_path):
    files(tmp_path, {"1 photos/STEM.png": lambda k: colour(), "masks (old)/STEM.png": lambda k: mask(0, 1)})
    guessed = guess(tmp_path, 32)
    assert guessed.anchor == "image" and {*guessed.modalities} == {"image", "mask", "label"}
    assert guessed.folders == {"image": "1 photos", "mask": "masks (old)"}


def test_files_that_cannot_be_read_do_not_end_it(tmp_path):
    files(tmp_path, {**IMAGE, "mask/STEM.png": lambda k: mask(0, 1), "label/STEM.txt": lambda k: str(k % 2),
                     "vec/STEM.npy": lambda k: np.zeros(3)})  # fmt: skip
    for file in ("image/dog/0.png", "mask/dog/0.png", "label/dog/0.txt", "vec/dog/0.npy"):
        (tmp_path / file).write_bytes(b"\xff\xfe\x00")
    assert {x["kind"] for x in guess(tmp_path, 32).modalities.values()} == {"image", "mask", "label", "embedding"}


def test_a_folder_without_pictures(tmp_path):
    save(tmp_path, "notes/x.txt", "hello")
    with pytest.raises(MmfastError, match="holds no pictures"):
        guess(tmp_path, 32)
    with pytest.raises(MmfastError, match="is not a folder"):
        guess(tmp_path / "none", 32)


def test_of_many_files_those_from_all_over_are_looked_at(tmp_path):
    """Of 64 in a folder of any name: the first 20 have one value, as a picture of one grey has."""
    for k in range(64):
        save(tmp_path, f"image/{k:02}.png", colour())
        save(tmp_path, f"parts/{k:02}.png", mask(0, 1) if k >= 20 else mask(7))
    assert guess(tmp_path, 32).modalities == {"image": SEEN, "parts": {"kind": "mask", "classes": 8, "size": 16}}


@pytest.mark.parametrize(("most", "classes"), [(72, 73), (79, 80), (80, None)])
def test_numbers_beyond_the_usual_are_classes_where_they_are_dense(tmp_path, most, classes):
    """Less than four times as many as there are: 20 here, and more than 64 is not few."""
    files(tmp_path, {**IMAGE, "seg/STEM.png": lambda k: mask(*range(2, 21), most)})
    guessed = guess(tmp_path, 32)
    assert guessed.modalities.get("seg") == (classes and {"kind": "mask", "classes": classes, "size": 16})
    assert guessed.notes == ([] if classes else ["seg: masks with values up to 80, which are no class numbers"])


def test_the_first_vector_that_can_be_read_and_holds_something_says_its_shape(tmp_path):
    """In order: no array, a number alone, an array of nothing, and then vectors."""
    broken = {0: np.float64(3), 1: "no array", 2: np.zeros((0, 3))}
    for k in range(6):
        save(tmp_path, f"image/{k}.png", colour())
        save(tmp_path, f"vec/{k}.npy", np.zeros(7) if k > 2 else np.zeros(1))
        if k in broken:
            (tmp_path / f"vec/{k}.npy").unlink()
            np.save(tmp_path / f"vec/{k}.npy", broken[k]) if k != 1 else (tmp_path / "vec/1.npy").write_text(broken[1])
    assert guess(tmp_path, 32).modalities["vec"] == {"kind": "embedding", "dim": 7}
    for k in range(3, 6):
        (tmp_path / f"vec/{k}.npy").write_text("no array")
    guessed = guess(tmp_path, 32)
    assert "vec" not in guessed.modalities and guessed.notes == ["vec: no file can be read as a vector or a map"]


def test_texts_of_a_few_examples_are_no_classes_if_each_has_its_own(tmp_path):
    """As classes count those that have one: a caption for four of eight, or a number for three, names none."""
    files(tmp_path, {**IMAGE, "caption/STEM.txt": lambda k: f"picture {k}"})
    for k in range(4):
        (tmp_path / f"caption/{'cat' if k % 2 else 'dog'}/{k}.txt").unlink()
    rows = "".join(f"{'cat' if k % 2 else 'dog'}/{k}.png,{k / 7}\n" for k in range(3))
    save(tmp_path, "labels.csv", f"file_name,score\n{rows}")
    guessed = guess(tmp_path, 32)
    assert guessed.modalities == {"image": SEEN, "label": PETS}
    assert [note for note in guessed.notes if "not classes" in note] == [
        "caption: 4 different texts, which are not classes",
        f"{tmp_path / 'labels.csv'}: the columns score, which are numbers, not classes; to use them, add a modality "
        "such as `numbers: {kind: table, columns: [score], weight: {kind: none}, loss_weight: 0.02}`",
    ]


@pytest.mark.parametrize(
    ("texts", "measured"),
    [(["0.5", "1"], True), (["1", "2.0"], False), (["1e-3"], True), (["0.5", "old"], False), ([], False),
     (["nan", "0.5"], True), (["inf"], False), (["NA", "1.5"], True), (["nan"], False), (["-1", "1"], False),
     ([str(x) for x in range(63)], False), ([str(7 * x) for x in range(50)], True),
     ([str(x - 5) for x in range(50)], True)],
)  # fmt: skip
def test_numbers_that_are_not_whole_measure_something(texts, measured):
    assert are_measured(texts) is measured


@pytest.mark.parametrize("installed", [True, False])
def test_sentences_are_captions_and_no_classes(tmp_path, monkeypatch, installed):
    """More than twenty of them, most of three words or more."""
    monkeypatch.setattr(minilm, "installed", lambda: installed)
    for k in range(30):
        save(tmp_path, f"image/{k}.png", colour(8 + k))
        save(tmp_path, f"texts/{k}.txt", f"a picture of {k} things")
    guessed = guess(tmp_path, 32)
    more = {"texts": {"kind": "caption", "text_encoder": "minilm"}} if installed else {}
    assert guessed.modalities == {"image": {**SEEN, "size": guessed.modalities["image"]["size"]}, **more}
    assert [note.startswith("texts: 30 different texts, which are captions; to use") for note in guessed.notes] == [
        True for _ in range(not installed)
    ]
    assert not are_captions({f"a picture {k}" for k in range(20)}) and not are_captions({f"x {k}" for k in range(99)})


def test_masks_of_colours_have_a_class_for_each(tmp_path):
    """In a folder that is named as one of masks; not if there are too many colours."""
    rgb = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    files(tmp_path, {**IMAGE, "masks/STEM.png": lambda k: rgb[np.arange(256).reshape(16, 16) % (3 if k < 7 else 4)]})
    found = {"kind": "mask", "classes": 4, "size": 16, "colours": ["#000000", "#0000ff", "#090807", "#ff0000"]}
    guessed = guess(tmp_path, 32)
    assert guessed.modalities["masks"] == found and not guessed.notes
    many = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    files(tmp_path, {"masks/STEM.png": lambda k: many})
    guessed = guess(tmp_path, 32)
    assert "masks" not in guessed.modalities and len(guessed.notes) == 1
