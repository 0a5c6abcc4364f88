"""The user's permission is for the option that it was given for, and for that alone."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_run import make

from mmfast import config as configs
from mmfast import trust
from mmfast.build import build_data
from mmfast.cli import main
from mmfast.data.cache import TAG, cache_folder
from mmfast.errors import MmfastError
from mmfast.run import Run


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(trust, "_allowed", set())


def refused(key, name):
    with pytest.raises(MmfastError, match=f"{key} is '{name}', code that a config names"):
        trust.check_code(key, name)


@pytest.mark.parametrize(
    ("said", "key"),
    [
        (("evaluate.features", "a:b"), "evaluate.features"),
        (("evaluate", "{features: 'a:b', samples: 4}"), "evaluate.features"),
        (("train.log_to", "['a:b']"), "train.log_to"),
        (("modalities.label", "{kind: label, network: 'a:b'}"), "modalities.other.network"),
        (("modalities.image.autoencoder.network", "a:b"), "modalities.image.autoencoder.network"),
    ],
)
def test_a_value_permits_code_for_its_own_option(said, key):
    configs.overridden({}, "x", [said])
    trust.check_code(key, "a:b")
    for other in {"evaluate.features", "train.log_to", "modalities.emb.text_encoder"} - {key}:
        refused(other, "a:b")
    refused(key, "a:c")


def test_a_value_that_only_looks_like_code_permits_none():
    configs.load("digits", [("data", "{kind: folder, root: 'os:system'}"), ("modalities.label.names", "['os:system']")])
    for key in ("evaluate.features", "train.log_to", "modalities.label.network", "modalities.image.text_encoder"):
        refused(key, "os:system")
    trust.allow_code("os:system")
    trust.check_code("evaluate.features", "os:system")


@pytest.fixture
def trap(tmp_path, monkeypatch):
    sprung = tmp_path / "sprung"
    (tmp_path / "a_snare.py").write_text(f"open({str(sprung)!r}, 'a').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return sprung


def test_a_sweep_runs_no_code_that_its_run_names(tmp_path, trap, capsys):
    make(tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    raw = configs.load_yaml(file.read_text(), "")
    raw["evaluate"]["features"] = "a_snare:net"
    file.write_text(json.dumps(raw))
    command = ["sweep", str(tmp_path / "run"), "--over", "steps=1", "--samples", "4", "--device", "cpu", "--quiet"]
    assert main(command) == 2 and not trap.exists()
    assert "evaluate.features is 'a_snare:net', code that a config names" in capsys.readouterr().err


@pytest.fixture
def theirs(tmp_path):
    """A config from elsewhere that names a folder of the user's as its cache."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "decoded-photo.rows").write_text("mine")
    for k in range(8):
        (tmp_path / "data" / "image").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), k, np.uint8)).save(tmp_path / "data" / "image" / f"{k}.png")
    file = tmp_path / "theirs.yaml"
    data = {"kind": "folder", "root": str(tmp_path / "data"), "cache": str(tmp_path / "mine"), "cache_gb": 1e-3}
    modalities = {"image": {"kind": "image", "channels": 1, "size": 8}}
    backbone = {"kind": "mlp", "width": 8, "blocks": 1}
    train = {"steps": 1, "batch_size": 4, "sample_every": 0, "tensorboard": False, "device": "cpu"}
    more = {"schedule": {"T": 4}, "sample": {"steps": 1, "count": 1}, "evaluate": {"samples": 0}}
    file.write_text(json.dumps({"data": data, "modalities": modalities, "backbone": backbone, "train": train, **more}))
    return file


def test_a_cache_that_a_config_names_needs_the_users_word_once(theirs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    train = ["train", str(theirs), "--out", str(tmp_path / "run"), "--quiet"]
    for command in (train, ["check", str(theirs), "--quiet"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and f"add --data.cache {tmp_path / 'mine'} once" in err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["decoded-photo.rows"]
    assert not (tmp_path / "run").exists()
    assert main([*train, "--data.cache", str(tmp_path / "mine")]) == 0
    assert len([*(tmp_path / "mine").glob("decoded-*-*.rows")]) == 2
    assert (tmp_path / "mine" / TAG).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    trust._allowed.clear()  # another day: it is a cache now
    assert main(train) == 0
    assert Run(tmp_path / "run").config().data.cache == str(tmp_path / "mine")


def test_a_run_from_elsewhere_has_the_users_cache_in_the_place_of_its_own(theirs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "run").mkdir()
    shutil.copy(theirs, tmp_path / "run" / "config.yaml")
    config = Run.open(tmp_path / "run").config()
    build_data(config).train.__getitems__([0])
    assert len([*(tmp_path / "mine").iterdir()]) == 1 and len([*cache_folder().glob("*.rows")]) == 2
    assert cache_folder() == tmp_path / "home" / "mmfast"


def test_a_config_made_in_python_is_the_users_own(tmp_path):
    found = {"data": {"kind": "folder", "cache": str(tmp_path)}, "modalities": {"image": {"kind": "image"}}}
    assert configs.from_plain(found, "x").data.cache == str(tmp_path)
