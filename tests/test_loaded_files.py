"""A run in Python: what samples say and show, files that hold what was drawn, and runs that cannot be loaded."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from loaded_run import MASK, SIZE, X, make
from PIL import Image

import mmfast
from mmfast import MmfastError, config
from mmfast.cli import main
from mmfast.data import folder as folders
from mmfast.files import load_tensors, save_tensors
from mmfast.samples import Samples


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make(tmp_path_factory.mktemp("loaded"))


@pytest.fixture(scope="module")
def run(place):
    return mmfast.load(place / "run", "cpu")


def test_the_command_line_draws_and_saves_the_same(run, place, tmp_path, capsys):
    npz, folder = tmp_path / "x.npz", tmp_path / "new" / "out"
    argv = ["sample", str(place / "run"), "--given", "label=cats,dogs", "--n", "2", "--seed", "3", "--quiet"]
    argv += ["--sampler", "dpmpp_2m", "--eta", "0.5"]
    assert main([*argv, "--npz", str(npz), "--save", str(folder), "--out", str(tmp_path / "x.png")]) == 0
    truth = run.sample(2, label="cats,dogs", seed=3, sampler="dpmpp_2m", eta=0.5)
    arrays = np.load(npz)
    assert all(np.array_equal(arrays[name], x.numpy()) for name, x in truth.data.items())
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(truth.grid()))
    files = {x.relative_to(folder): x.read_bytes() for x in folder.rglob("*") if x.is_file()}
    again = truth.save(tmp_path / "again")
    assert files == {x.relative_to(again): x.read_bytes() for x in again.rglob("*") if x.is_file()}
    capsys.readouterr()
    assert main([*argv, "--save", str(folder)]) == 2
    assert "--save" in capsys.readouterr().err
    assert files == {x.relative_to(folder): x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def test_files_hold_what_was_drawn(run, tmp_path):
    drawn = run.sample(3, label=[2, 0, 1], mask=MASK, seed=1, sampler="ddim", eta=0.5, guidance_scale={"label": 2.0},
                       spacing=2.5)  # fmt: skip
    folder = drawn.save(tmp_path / "out")
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == [0, 1, 2]
    assert [line["modalities"]["label"]["value"] for line in lines] == ["owls", "cats", "dogs"]
    for i, line in enumerate(lines):
        assert (line["seed"], line["steps"], line["given"]) == (1, 2, ["label", "mask"])
        assert (line["sampler"], line["eta"], line["guidance_scale"]) == ("ddim", 0.5, {"label": 2.0})
        assert line["spacing"] == 2.5
        files = {name: folder / what["file"] for name, what in line["modalities"].items()}
        assert files.keys() == drawn.data.keys() and files["photo"] == folder / "photo" / f"{i:03d}.png"
        pixels = (drawn.data["photo"][i].permute(1, 2, 0).double().numpy() + 1) * 127.5
        assert np.abs(np.asarray(Image.open(files["photo"])) - pixels).max() <= 0.5 + 1e-4
        assert np.array_equal(np.asarray(Image.open(files["mask"])), MASK)  # numbers, `ignore` among them
        assert files["label"].read_text() == ["owls", "cats", "dogs"][i]
        assert np.array_equal(np.load(files["embedding"]), drawn.data["embedding"][i].numpy())
    read = config.load(str(run.run.config_file))
    specs = {name: spec for name, spec in read.modalities.items() if name != "hidden"}
    data = folders.open(folders.Spec(root=str(folder)), specs, "photo")
    batches = [part.__getitems__(range(len(part))).data for part in (data.train, data.test)]
    assert sorted(torch.cat([b["label"] for b in batches]).tolist()) == [0, 1, 2]
    assert (torch.cat([b["mask"] for b in batches]) == X["mask"]).all()


def test_classes_beyond_a_byte_are_kept(run):
    from mmfast.modalities import SpaceShape, kind

    mask = kind("mask")
    spec = mask.Spec(classes=301, size=2)
    x = torch.tensor([[0, 300], [256, 7]])
    picture = mask("mask", spec, SpaceShape(2, 2)).plain(x)
    assert np.array_equal(np.asarray(picture), x.numpy()) and torch.equal(mask.from_picture(picture, spec, "x"), x)


def test_nothing_is_overwritten_or_left_half_written(run, tmp_path, monkeypatch):
    drawn = run.sample(2, steps=1)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(MmfastError, match="already exists; nothing is overwritten"):
            drawn.save(tmp_path / name)
    with pytest.raises(MmfastError, match=r"^save's folder is 3; it should be a path, as a str or a Path$"):
        drawn.save(3)
    with pytest.raises(MmfastError, match=r"^save's folder is 'a\\x00b'; it should be a path"):
        drawn.save("a\0b")
    (tmp_path / "empty").mkdir()
    assert drawn.save(tmp_path / "empty") == tmp_path / "empty" and len(list((tmp_path / "empty").iterdir())) == 6
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(MmfastError, match="No space left"):
            drawn.save(tmp_path / "none")
    assert {x.name for x in tmp_path.iterdir()} == {"file", "full", "empty"}
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "x").read_text() == "mine"


def test_what_samples_say_and_show(run):
    drawn = run.sample(2, label="dogs", seed=7, guidance_scale=1.5)
    assert drawn.title == "given label=dogs: the rest generated; seed 7, 2 steps, guidance 1.5"
    assert drawn.labels == drawn["label"] == ["dogs", "dogs"] and "2 of photo" in repr(drawn)
    picture = Image.open(io.BytesIO(drawn._repr_png_()))
    assert picture.size == drawn.grid().size and drawn.grid(1).height > drawn.grid(2).height
    assert [x.size for x in drawn.images] == [(SIZE, SIZE)] * 2 and drawn.images[0].mode == "RGB"
    assert [x["label"] for x in drawn] == ["dogs", "dogs"] and [*drawn][1]["photo"].size == (SIZE, SIZE)
    assert run.sample(1, first="label", steps=2).title.endswith(
        "label first, the rest given it; seed 0, 2 steps, guidance 1"
    )
    run.config.modalities["label"].given_steps = 1
    assert run.sample(1, first=["label"]).title.endswith("seed 0, 1 step, guidance 1")  # no step draws the label
    run.model.part("label").spec.class_counts = []
    assert run.sample(1, first=["label"]).title.endswith("seed 0, 2 then 1 steps, guidance 1")
    run.config.modalities["label"].given_steps = None
    assert isinstance(drawn, Samples) and "photo, mask" in repr(run)


def test_the_best_weights_are_loaded(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    with pytest.raises(MmfastError, match=r"has no best weights, ema.best.safetensors"):
        mmfast.load(tmp_path / "run", "cpu", "best")
    tensors, metadata = load_tensors(tmp_path / "run/ema.safetensors")
    name = next(name for name, x in tensors.items() if x.is_floating_point())
    save_tensors(tmp_path / "run/ema.best.safetensors", {**tensors, name: tensors[name] + 1}, metadata)
    best, last = (mmfast.load(tmp_path / "run", weights=weights).model.state_dict() for weights in ("best", "last"))
    assert torch.equal(best[name].cpu(), tensors[name] + 1) and torch.equal(last[name].cpu(), tensors[name])


def test_what_cannot_be_loaded(tmp_path, place):
    for folder, said in ((tmp_path, "holds no run"), (3, "load's folder is a int")):
        with pytest.raises(MmfastError, match=said):
            mmfast.load(folder)
    with pytest.raises(MmfastError, match=r"^device is 'gpu'"):
        mmfast.load(place / "run", "gpu")
    with pytest.raises(MmfastError, match="samples' modality is 'lable'"):
        mmfast.load(place / "run").sample(1, steps=1)["lable"]
