"""Kinds of modality from outside the package: installed by an entry point, they train as the package's own do."""

import json
import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Job
from tiny import TINY, flags

from mmfast import MmfastError, data, kinds, modalities
from mmfast import config as configs
from mmfast.build import build_data
from mmfast.cli import main
from mmfast.modalities.base import SpaceShape

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
KINDS = ROOT / "examples" / "kinds"
CONFIG = """
data: {kind: folder, root: data}
anchor: photo
modalities:
  photo: {kind: image, channels: 1, size: 8}
  depth: {kind: depth, size: 8, near: 1, far: 16}
  sound: {kind: spectrogram, size: 8}
"""


def install(folder, **groups):
    """What pip leaves of a package: its entry points, by group."""
    about = folder / "more_kinds-0.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: more-kinds\nVersion: 0.1\n")
    lines = [
        f"[mmfast.{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in groups.items()
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return folder


def points():
    return tomllib.loads((KINDS / "pyproject.toml").read_text())["project"]["entry-points"]["mmfast.modalities"]


def fill(root):
    random = np.random.default_rng(0)
    for name in ("photo", "depth", "sound"):
        (root / name).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (12, 12), dtype=np.uint8)).save(root / "photo" / f"{i}.png")
        np.save(root / "depth" / f"{i}.npy", random.uniform(1, 16, (10, 14)))
        with wave.open(str(root / "sound" / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((random.normal(size=4000) * 3000).astype("<i2").tobytes())


def commands(folder, path, *lines):
    """The command lines, one after another, where the packages on the path are installed; in a process of its own."""
    os.chdir(folder)
    sys.path[:0] = path
    return max(main(line) for line in lines)


@pytest.mark.slow
def test_two_kinds_from_a_package_train_and_are_sampled(tmp_path):
    """With no word about code, since their user has installed them."""
    fill(tmp_path / "data")
    (tmp_path / "c.yaml").write_text(CONFIG)
    path = [str(install(tmp_path / "site", modalities=points())), str(KINDS)]
    more = flags([*TINY, ("train.steps", "2"), ("train.batch_size", "4")])
    train = ["train", "c.yaml", "--out", "run", "--quiet", *more]
    sample = ["sample", "run", "--given", "depth=data/depth/0.npy", "--n", "2", "--save", "s", "--quiet"]
    Job(1, tmp_path / "logs", commands, tmp_path, path, train, sample).done()
    metres, level = np.load(tmp_path / "s/depth/000.npy"), np.load(tmp_path / "s/sound/000.npy")
    assert metres.shape == level.shape == (8, 8) and metres.min() >= 0.999 and metres.max() <= 16.001
    assert level.min() >= -80 and level.max() <= 0
    assert "depth" in json.loads((tmp_path / "s/samples.jsonl").read_text().splitlines()[0])["given"]
    # Without the package, as here, the run says which kind it lacks.
    with pytest.raises(MmfastError, match=r"modalities.depth.kind is 'depth'; it should be one of"):
        configs.load(str(tmp_path / "run" / "config.yaml"))


@pytest.fixture
def found(monkeypatch):
    monkeypatch.syspath_prepend(str(KINDS))
    import mmfast_depth
    import mmfast_spectrogram

    return mmfast_depth, mmfast_spectrogram


def test_a_depth_map_is_read_on_a_logarithmic_scale(found, tmp_path):
    depth, _ = found
    spec = depth.DepthSpec(size=2, near=1.0, far=16.0)
    np.save(tmp_path / "d.npy", np.array([[9, 1, 2, 9], [9, 4, 16, 9]], float))
    x = depth.Depth.read(tmp_path / "d.npy", spec)
    assert torch.allclose(x, torch.tensor([[[-1.0, -0.5], [0.0, 1.0]]]), atol=1e-6)
    part = depth.Depth("depth", spec, SpaceShape(2, 2))
    assert np.allclose(part.plain(x), [[1, 2], [4, 16]], rtol=1e-5)
    np.save(tmp_path / "d.npy", np.zeros((4, 4)))
    with pytest.raises(MmfastError, match=r"d.npy holds \[4, 4\]; it should hold distances \[H, W\] above 0"):
        depth.Depth.read(tmp_path / "d.npy", spec)


def test_a_sine_is_loud_at_its_frequency(found, tmp_path):
    _, sound = found
    at = np.arange(16000)
    wave_of = (0.5 * 2**15 * np.sin(2 * np.pi * 1375 / 8000 * at)).astype("<i2")  # of 256 bins the 88th
    with wave.open(str(tmp_path / "s.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(wave_of.tobytes())
    spec = sound.SpectrogramSpec(size=256)
    x = sound.Spectrogram.read(tmp_path / "s.wav", spec)
    level = sound.Spectrogram("s", spec, SpaceShape(256, 256)).plain(x)
    assert level[:, 128].argmax() == 87 and abs(level[87, 128] + 6.02) < 0.1  # half of full scale
    assert level[200, 128] == -80
    np.save(tmp_path / "s.npy", level)
    assert torch.allclose(sound.Spectrogram.read(tmp_path / "s.npy", spec), x, atol=1e-6)


class Point:
    """An entry point."""

    def __init__(self, name, load):
        self.name, self.value, self.load = name, f"x:{name}", load


def broken():
    raise ImportError("No module named 'deep'")


def test_what_cannot_be_loaded_is_told_of_when_it_is_asked_for(monkeypatch):
    """And a kind that there is already is not replaced; whatever else is installed works on."""
    mine = type("Mine", (modalities.Modality,), {"kind": "image"})
    points = [Point("broken", broken), Point("image2", lambda: mine), Point("other", lambda: print)]
    monkeypatch.setattr(modalities.importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(modalities, "FAILED", {})
    image = modalities.KINDS["image"]
    raw = {"anchor": "x", "modalities": {"x": {"kind": "image"}, "y": {"kind": "broken"}}}
    with pytest.raises(MmfastError, match="'broken' is installed, but cannot be loaded: No module named 'deep'"):
        configs.from_plain(raw, "test")
    assert modalities.KINDS["image"] is image
    assert modalities.FAILED["image2"] == "x:image2 calls itself 'image', a kind that already exists"
    assert modalities.FAILED["other"] == "x:other is not a subclass of Modality"
    del raw["modalities"]["y"]
    assert configs.from_plain(raw, "test").anchor == "x"


SHADES = """
from dataclasses import dataclass
import torch
from mmfast.data import Data
from mmfast.data.base import InMemory
from mmfast.options import option

@dataclass
class Spec:
    kind: str = "shades"
    count: int = option(64, "number of training examples", min=1)

def open(spec, modalities, anchor):
    images = torch.linspace(-1, 1, spec.count)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    part = InMemory({"image": images})
    return Data(part, part)
"""
PLAIN = """
from dataclasses import dataclass
from mmfast.backbones import mlp

@dataclass
class Spec(mlp.Spec):
    kind: str = "plain"

Backbone = mlp.Backbone
"""


@pytest.mark.slow
def test_a_data_set_and_a_backbone_from_a_package_train_and_are_sampled(tmp_path):
    site = install(tmp_path / "site", data={"shades": "shades"}, backbones={"plain": "plain", "gone": "no_such_module"})
    (site / "shades.py").write_text(SHADES)
    (site / "plain.py").write_text(PLAIN)
    (tmp_path / "c.yaml").write_text(
        "data: {kind: shades, count: 12}\nanchor: image\nmodalities:\n  image: {kind: image, channels: 1, size: 8}\n"
        "backbone: {kind: plain, width: 16, blocks: 1, features: 4}\n"
        "train: {steps: 2, batch_size: 4, sample_every: 0, tensorboard: false}\nevaluate: {samples: 0}\n"
    )
    train = ["train", "c.yaml", "--out", "run", "--quiet"]
    sample = ["sample", "run", "--n", "2", "--save", "s", "--quiet"]
    job = Job(1, tmp_path / "logs", commands, tmp_path, [str(site)], train, sample, ["train", "--help"])
    job.done()
    assert (tmp_path / "s" / "image" / "001.png").exists()
    told = "".join(file.read_text() for file in (tmp_path / "logs").iterdir())
    assert "data, kind shades" in told and "backbone, kind plain" in told and "kind gone" not in told


def test_a_kind_that_is_a_module_is_added_by_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "its_shades.py").write_text(SHADES)
    monkeypatch.setitem(data.KINDS, "shades", "its_shades")
    raw = {"data": {"kind": "shades", "count": 5}, "modalities": {"image": {"kind": "image", "channels": 1, "size": 8}}}
    config = configs.from_plain(raw, "test")
    assert config.data.count == 5 and len(build_data(config).train) == 5
    with pytest.raises(MmfastError, match=r"data.count is 0"):
        configs.from_plain({**raw, "data": {"kind": "shades", "count": 0}}, "test")
    with pytest.raises(MmfastError, match=r"data.kind is 'shade'; it should be one of .*; did you mean 'shades'\?"):
        configs.from_plain({**raw, "data": {"kind": "shade"}}, "test")


def test_a_module_that_is_no_kind_is_told_of_when_it_is_asked_for(tmp_path, monkeypatch):
    """What an installed package calls by the name of a kind of mmfast's own is ignored."""
    points = [Named("digits", "mine"), Named("gone", "no_such.module"), Named("half", "its_half")]
    monkeypatch.setattr(kinds.importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "its_half.py").write_text("Spec = dict\n")
    found = kinds.ModuleKinds("mmfast.data", data.__path__, "data.kind", ("Spec", "open"), data.HELPERS)
    assert found.module("digits").__name__ == "mmfast.data.digits"
    assert {*found} == {*data.KINDS} | {"gone", "half"} and "base" not in found
    with pytest.raises(MmfastError, match=r"is 'gone', but its module no_such.module cannot be imported: No module"):
        found.module("gone")
    with pytest.raises(MmfastError, match=r"data.kind is 'half', but its module its_half does not define open$"):
        found.module("half")
    with pytest.raises(MmfastError, match=r"data.kind is 'none'; it should be one of"):
        found.module("none")


class Named:
    """An entry point that only names its module."""

    def __init__(self, name, value):
        self.name, self.value = name, value
