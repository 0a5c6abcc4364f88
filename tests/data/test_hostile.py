"""A folder of odd files, tests/support/odd_files.py: each is read to its right value, or named by one line; check and
train agree on each."""

import re
import unicodedata
import warnings

import numpy as np
import pytest
from odd_files import CLASSES, LEFT_OUT, MAP, RGB, RIGHT, SIDE, TWO, UNSEEN, VECTOR, WRONG, array, raw, saved

from mmfast import config as configs
from mmfast.data import folder
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT
from mmfast.survey import survey
from mmfast.training import train

MODALITIES = {
    "image": {"kind": "image", "channels": 3, "size": SIDE},
    "mask": {"kind": "mask", "classes": 3, "size": SIDE, "ignore": 255},
    "two": {"kind": "mask", "classes": 2, "size": SIDE},
    "label": {"kind": "label", "classes": 3, "names": ["ape", "na\u00efve bee", "cow"]},
    "vector": {"kind": "embedding", "dim": 4},
    "map": {"kind": "feature_map", "dim": 2, "cells": 2},
}
PLAIN = {
    "image": (".png", saved(RGB)), "mask": (".png", saved(CLASSES)), "two": (".png", saved(TWO * 255)),
    "label": (".txt", raw(b"0")), "vector": (".npy", array(VECTOR)), "map": (".npy", array(MAP)),
}  # fmt: skip
FEW = {
    "train": {"steps": 2, "sample_every": 0, "tensorboard": False, "device": "cpu", "warmup": 0},
    "sample": {"steps": 1, "count": 1},
    "evaluate": {"samples": 0},
    "schedule": {"T": 4},
}


def put(root, name, stem, ending, make):
    (root / name).mkdir(parents=True, exist_ok=True)
    make(root / name / f"{stem}{ending}")


def fill(root, table):
    """An example for each odd file, with nothing else but an image, and some examples that have everything."""
    for k in range(12):
        for name, (ending, make) in PLAIN.items():
            put(root, name, f"whole {k}", ending, make)
    for kind, (name, ending, make, _) in table.items():
        if name != "image":
            put(root, "image", kind, *PLAIN["image"])
        put(root, name, kind, ending, make)


def config(root, on_error="stop", count=200):
    data = {
        "kind": "folder",
        "root": str(root),
        "on_error": on_error,
        "test_fraction": 0.2,
        "cache": str(root / ".cache"),
    }
    few = {**FEW, "train": {**FEW["train"], "batch_size": count}}
    return configs.from_plain({**DRAFT, **few, "data": data, "modalities": MODALITIES}, "x")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By verdict: the root, the survey of it, and a part and row by stem."""
    found = {}
    for verdict, table in (("right", RIGHT), ("wrong", WRONG)):
        root = tmp_path_factory.mktemp(verdict) / "data"
        fill(root, table)
        for kind, (name, ending, make) in (LEFT_OUT | UNSEEN).items() if verdict == "right" else ():
            put(root, name, kind, ending, make)
        chosen = config(root)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = folder.open(chosen.data, chosen.modalities, "image")
            rows = {stem: (part, k) for part in (data.train, data.test) for k, stem in enumerate(part.stems)}
            found[verdict] = (root, survey(chosen), rows)
    return found


def test_there_are_enough():
    assert len(RIGHT) + len(WRONG) >= 120


@pytest.mark.parametrize("kind", RIGHT)
def test_the_right_value(folders, kind):
    modality, _, _, right = RIGHT[kind]
    _, _, rows = folders["right"]
    part, row = rows[unicodedata.normalize("NFC", kind)]
    for _ in range(2):  # decoded, and as it was kept
        batch = part.__getitems__([row])
        assert modality not in batch.present
        x = batch.data[modality][0]
        expected = np.asarray(right, np.float64)
        if modality == "image":
            expected = np.moveaxis(expected / 127.5 - 1, -1, 0)
        assert x.shape == expected.shape
        tolerance = 2 / 127.5 if "jpeg" in kind or "phone" in kind else 2e-6
        assert np.abs(x.double().numpy() - expected).max() <= tolerance


@pytest.mark.parametrize("kind", WRONG)
def test_one_line_with_the_files_name(folders, kind):
    modality, ending, _, words = WRONG[kind]
    root, found, rows = folders["wrong"]
    part, row = rows[unicodedata.normalize("NFC", kind)]
    with pytest.raises(MmfastError, match=words) as error:
        part.__getitems__([row])
    line, file = str(error.value), str(root / modality / f"{kind}{ending}")
    assert file in line and "\n" not in line and len(line) < 500 + len(file)
    assert line in found.wrong  # the very line that check has, and that training stops with


def test_check_finds_nothing_else(folders):
    root, right, _ = folders["right"]
    left_out = {path for paths in right.left_out.values() for path in paths}
    assert left_out == {root / name / f"{kind}{ending}" for kind, (name, ending, _) in LEFT_OUT.items()}
    assert not right.wrong and right.train + right.test == len(RIGHT) + 12
    _, wrong, _ = folders["wrong"]
    assert len(wrong.wrong) == len(WRONG)


@pytest.mark.slow
def test_training_agrees(folders, tmp_path, capsys):
    root, _, _ = folders["right"]
    train(config(root), str(tmp_path / "right"), quiet=True)
    assert "left out" not in capsys.readouterr().err
    root, found, rows = folders["wrong"]
    with pytest.raises(MmfastError) as error:
        train(config(root), str(tmp_path / "wrong"), quiet=True)
    assert str(error.value) in found.wrong and not (tmp_path / "wrong").exists()
    train(config(root, "skip"), str(tmp_path / "skip"), quiet=True)
    said = re.findall(r"mmfast: (.*); it is left out", capsys.readouterr().err)
    assert len(said) == len({*said}) and {*said} <= {*found.wrong}
    larger = max((part for part, _ in rows.values()), key=len)
    of_training = [kind for kind in WRONG if rows[kind][0] is larger]
    assert len(of_training) > len(WRONG) / 2
    assert all(any(f"{kind}{WRONG[kind][1]}" in line for line in said) for kind in of_training)
