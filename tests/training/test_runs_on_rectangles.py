"""Runs on pictures that are no squares, from training to samples; and a square trains as it did."""

import hashlib
import json

import pytest
import torch
from PIL import Image
from rectangles import H, W, config, fill, parts, wide_run
from safetensors.torch import load_file

from mmfast.build import build_data, build_model, load_run
from mmfast.cli import main
from mmfast.from_run import take_weights
from mmfast.generate import generate
from mmfast.metrics.features import extractor
from mmfast.training import train, trainer

# Of the digits preset as it was before there were rectangles: a hash of the weights' names and shapes, and after five
# steps the sums of the sizes of some weights that begin as zeros.
NAMES, FIVE_STEPS = (
    "8d2d64b74186a20c",
    {
        "backbone.blocks.0.outer.weight": 203.7505999,
        "backbone.blocks.3.outer.weight": 211.6122041,
        "out.weight": 0.45183957,
        "time_of.mask.2.weight": 108.3295654,
    },
)


@pytest.mark.slow
def test_a_square_trains_as_it_did(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    # Dropout was seeded so then: nothing else has changed.
    monkeypatch.setattr(trainer, "seed_of", lambda seed, start: seed ^ start << 20)
    few = {"train.steps": 5, "train.batch_size": 8, "train.warmup": 1, "evaluate.samples": 0, "train.sample_every": 0}
    few |= {"train.validate_every": 0, "train.tensorboard": "false", "train.device": "cpu"}
    given = [text for key, value in few.items() for text in (f"--{key}", str(value))]
    assert main(["train", "digits", "--out", str(tmp_path / "run"), "--quiet", *given]) == 0
    weights = load_file(tmp_path / "run" / "model.safetensors")
    shapes = repr(sorted((name, list(x.shape)) for name, x in weights.items()))
    assert hashlib.sha256(shapes.encode()).hexdigest()[:16] == NAMES
    # Five steps of Adam tell the rounding of an older torch's kernels: 0.8 per cent with 2.4.
    error = 1e-3 if hasattr(torch, "accelerator") else 2e-2
    for name, expected in FIVE_STEPS.items():
        assert float(weights[name].double().abs().sum()) == pytest.approx(expected, rel=error), name


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_samples_have_the_size_also_given_in_part(tmp_path, kind):
    made = wide_run(tmp_path, kind)
    model = build_model(made)
    assert model.shape == (3, H, W)
    drawn = generate(model, made, 2)
    assert drawn["image"].shape == (2, 3, H, W) and drawn["mask"].shape == (2, H, W)
    truth = build_data(made).test.__getitems__([0]).data["image"]
    known = torch.zeros(3, H, W, dtype=torch.bool)
    known[:, 2:5, 9:] = True
    inside = generate(model, made, 1, {"image": truth}, known={"image": known})["image"]
    torch.testing.assert_close(inside[0][known], truth[0][known], atol=1e-5, rtol=0)
    assert not torch.allclose(inside[0][~known], truth[0][~known], atol=1e-2)


def test_halves_of_the_examples_are_mirrored_along_the_width(tmp_path):
    from mmfast.training.augment import mirrored

    made = wide_run(tmp_path)
    batch = build_data(made).train.__getitems__(range(8))
    seen = mirrored(build_model(made), batch, 0, torch.arange(8))
    kinds = set()
    for k in range(8):
        flipped = torch.equal(seen.data["image"][k], batch.data["image"][k].flip(2))
        assert flipped or torch.equal(seen.data["image"][k], batch.data["image"][k])
        assert torch.equal(seen.data["mask"][k], batch.data["mask"][k].flip(1) if flipped else batch.data["mask"][k])
        kinds.add(flipped)
    assert kinds == {True, False}


@pytest.mark.slow
def test_another_run_goes_on_with_its_weights(tmp_path):
    made = wide_run(tmp_path, "unet")
    train(made, str(tmp_path / "run"), quiet=True)
    more = config(parts() | {"class": {"kind": "label", "classes": 2}}, "unet", data={"kind": "digits"})
    model, old = build_model(more), load_run(tmp_path / "run", "cpu")[2]
    assert take_weights(model, more, tmp_path / "run").fresh == ("class",)
    assert torch.equal(model.out.weight, old.out.weight)
    x, given = torch.randn(2, model.channels, H, W), torch.zeros(2, 4)
    with torch.no_grad():
        theirs = old(x[:, : old.channels], old.times(torch.tensor([3, 7]), given[:, :3]), {}).anchor
        ours = model.eval()(x, model.times(torch.tensor([3, 7]), given), {}).anchor
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_features_of_a_network_are_averaged_over_rectangles():
    images = torch.rand(2, 3, H, W)
    found = extractor("pixels").maps(images, [2, 4])
    expected = images.reshape(2, 3, 2, H // 2, 4, W // 4).mean((3, 5))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_the_whole_way_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "data", count=20, width=64, height=36)
    assert main(["init", "data", "--out", "wide.yaml", "--minutes", "0.05", "--quiet"]) == 0
    assert "[24, 40]" in (tmp_path / "wide.yaml").read_text()
    assert main(["check", "wide.yaml", "--sheet", "sheet.png", "--quiet"]) == 0
    assert "24 x 40 (height x width)" in capsys.readouterr().out
    few = ["--train.steps", "4", "--train.sample_every", "4", "--evaluate.samples", "4", "--sample.steps", "2"]
    assert main(["train", "wide.yaml", "--out", "run", "--quiet", *few]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["samples"] == 4
    assert main(["sample", "run", "--n", "2", "--save", "drawn", "--given", "label=a", "--quiet"]) == 0
    assert Image.open(tmp_path / "drawn" / "image" / "000.png").size == (40, 24)
    assert Image.open(tmp_path / "drawn" / "mask" / "001.png").size == (40, 24)
    assert main(["report", "run"]) == 0
    assert "24 x 40 (height x width) pixels" in (tmp_path / "run" / "report.html").read_text()
