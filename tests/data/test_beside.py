"""What mmfast writes is never an example: no contact sheet and no run lies among the pictures that are read."""

import json

import numpy as np
import pytest
from PIL import Image

from mmfast.cli import main

SIZE = 8


@pytest.fixture
def photos(tmp_path):
    for name in ("ape", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(6):
            Image.fromarray(np.full((SIZE, SIZE, 3), 9 * k, np.uint8)).save(tmp_path / "photos" / name / f"{k}.png")
    return tmp_path / "photos"


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_contact_sheet_is_not_written_among_the_pictures(photos, tmp_path, capsys, monkeypatch):
    before = files(photos)
    monkeypatch.chdir(photos / "ape")
    for _ in range(2):
        assert main(["check", "..", "--quiet"]) == 0
        out = capsys.readouterr().out
        assert "..: 12 examples" in out and "classes: ape 6, bee 6" in out
        assert "no contact sheet: --sheet is check-" in out and "lies among the data in" in out
    assert files(photos) == before
    assert main(["check", "..", "--quiet", "--sheet", "sheet.png"]) == 2
    assert "--sheet is sheet.png, which lies among the data" in capsys.readouterr().err
    assert files(photos) == before
    monkeypatch.chdir(tmp_path)
    assert main(["check", "photos", "--quiet"]) == 0 and (tmp_path / "check-photos.png").exists()


@pytest.mark.parametrize("root", ["photos", "link"])
def test_a_run_is_not_made_among_the_pictures(photos, tmp_path, capsys, monkeypatch, root):
    (tmp_path / "link").symlink_to(photos)
    config = {
        "data": {"kind": "folder", "root": root, "folders": {"image": "."}, "cache_gb": 0},
        "modalities": {"image": {"kind": "image", "channels": 3, "size": SIZE}},
        "backbone": {"kind": "mlp", "width": 8, "blocks": 1},
        "train": {"steps": 1, "batch_size": 4, "sample_every": 0, "tensorboard": False, "device": "cpu"},
        "schedule": {"T": 4},
        "sample": {"steps": 1, "count": 1},
        "evaluate": {"samples": 0},
    }
    (tmp_path / "my.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    before = files(photos)
    for out in ("photos/runs/x", "photos", "photos/ape", "link/x"):
        assert main(["train", "my.yaml", "--out", out, "--quiet"]) == 2
        assert f"--out is {out}, which lies among the data in {tmp_path}/{root}" in capsys.readouterr().err
    assert files(photos) == before
    for out in ("runs", "photos/.runs"):  # what is hidden is no example
        assert main(["train", "my.yaml", "--out", out, "--quiet"]) == 0
    assert main(["check", "my.yaml", "--quiet"]) == 0 and "12 examples" in capsys.readouterr().out


def test_a_run_beside_the_folders_of_the_modalities_is_in_nobodys_way(photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    photos.rename(tmp_path / "data" / "image")
    monkeypatch.chdir(tmp_path / "data")
    assert main(["check", ".", "--quiet"]) == 0 and "contact sheet: check-" in capsys.readouterr().out
    assert main(["check", ".", "--quiet"]) == 0 and ": 12 examples" in capsys.readouterr().out


def test_an_empty_label_is_no_class(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos.rename(tmp_path / "image")
    (tmp_path / "data").mkdir()
    (tmp_path / "image").rename(tmp_path / "data" / "image")
    for k in range(6):
        for name in ("ape", "bee"):
            (tmp_path / "data" / "label" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / "label" / name / f"{k}.txt").write_text("" if k == 3 else f"{name}\n")
    assert main(["check", "data", "--quiet"]) == 2
    out = capsys.readouterr().out
    assert "label, 2 classes" in out and "data/label/ape/3.txt: '' is not a label" in out
