"""`mmfast init`: the options of the presets, a network and steps that fit the time, and a config that trains."""

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import flags

from mmfast import config as configs
from mmfast import presets
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.guess import Guess
from mmfast.propose import propose, step_time

IMAGE = {"kind": "image", "channels": 3, "size": 32}
MASK = {"kind": "mask", "classes": 4, "size": 32}
LABEL = {"kind": "label", "classes": 10}
MAP = {"kind": "feature_map", "dim": 8, "cells": 4}
CAPTION = {"kind": "caption", "text_encoder": "minilm"}


def guessed(root="data", examples=4000, **beside):
    return Guess(root, "image", {"image": IMAGE, **beside}, examples=examples)


def timer(seconds, bf16=0.5):
    """A machine on which a step of the presets' network takes so long, and others as their channels squared."""

    def time(config):
        return seconds * (config.backbone.channels / 32) ** 2 * (bf16 if config.train.precision == "bf16" else 1)

    return time


@pytest.mark.parametrize(
    ("preset", "beside"),
    [("image-mask", {"mask": MASK}), ("image-label", {"label": LABEL}), ("image-embedding", {"embedding": MAP})],
)
def test_the_options_are_the_presets(preset, beside):
    made = yaml.safe_load(propose(guessed(**beside), 30, timer(0.48)).text)  # 6,000 steps in four fifths of it
    truth = yaml.safe_load(presets.text(preset))
    for name, spec in truth["modalities"].items():
        own = {key: x for key, x in spec.items() if key not in ("names", "network", "channels", "dim")}
        assert {key: made["modalities"][name].get(key) for key in own} == own
    assert {key: x for key, x in truth["backbone"].items() if key != "head_channels"} == made["backbone"]
    assert made["loss"] == truth["loss"] and made["sample"].get("first") == truth["sample"].get("first")
    for key in (
        "batch_size", "optimizer", "learning_rate", "decay", "ema_decay", "precision", "low_noise", "clean_pass",
        "given_probability",
    ):  # fmt: skip
        expected = configs.load(preset).train
        assert getattr(configs.from_plain(made, "x").train, key) == getattr(expected, key), key
    assert made["train"]["steps"] == 6000 == truth["train"]["steps"]


def test_what_many_examples_lack_is_repeated():
    """Half way between its share and all, from three quarters on not at all; the anchor and the others stay."""
    found = guessed(mask=MASK, label=LABEL, embedding=MAP)
    found.shares |= {"mask": 0.5, "label": 0.05, "embedding": 0.75}
    text = propose(found, 30, timer(0.25)).text
    made = yaml.safe_load(text)["modalities"]
    assert {name: x.get("labelled_share") for name, x in made.items()} == {
        "image": None, "mask": 0.75, "label": 0.53, "embedding": None,
    }  # fmt: skip
    assert [made[name]["loss_weight"] for name in ("mask", "label", "embedding")] == [
        pytest.approx(0.1 / 0.75, rel=1e-2), pytest.approx(0.005 / 0.53, rel=1e-2), 0.05,
    ]  # fmt: skip
    assert text.count("repeated until they are labelled_share of all") == 2


def test_the_three_together():
    made = yaml.safe_load(propose(guessed(mask=MASK, label=LABEL), 30, timer(0.25)).text)
    image, mask, label = made["modalities"].values()
    assert (image["given_probability"], image["given_steps"]) == (0.0, 1) and "given_at_T" not in image
    assert (mask["weight"], mask["loss_weight"]) == ({"kind": "carried", "scale": 1.5}, 0.1)
    assert (label["weight"], label["loss_weight"], label["given_probability"]) == ({"kind": "none"}, 0.005, 0.95)
    assert made["train"]["clean_pass"] == 20.0 and made["sample"]["first"] == ["label"]
    assert made["train"]["optimizer"] == "muon"
    vector = {"kind": "embedding", "dim": 7}
    with_a_vector = yaml.safe_load(propose(guessed(mask=MASK, embedding=vector), 30, timer(0.25)).text)
    assert "optimizer" not in with_a_vector["train"]  # not compared


def test_what_the_encoder_can_read_has_a_pass_without_noise():
    """Several kinds have it as in any-to-any; beside what only the decoder can read, images are given instead."""
    six = configs.load("any-to-any")
    for kinds in ({"label": LABEL, "mask": MASK}, {"mask": MASK, "embedding": MAP, "caption": CAPTION}):
        made = propose(guessed(**kinds), 30, timer(0.25)).config
        assert made.train.clean_pass == six.train.clean_pass
        assert made.modalities["image"].given_probability == 0.0
        for name in kinds:
            for key in ("loss_weight", "reads"):
                assert getattr(made.modalities[name], key) == getattr(six.modalities[name], key)
        assert made.modalities["mask"].given_probability == six.modalities["mask"].given_probability
    vector = {"kind": "embedding", "dim": 3}
    for kinds, given in (({"mask": MASK, "vector": vector}, 0.85), ({"caption": CAPTION}, None), ({}, None)):
        made = propose(guessed(**kinds), 30, timer(0.25)).config
        assert made.train.clean_pass == 0.0 and made.modalities["image"].given_probability == given
        assert {spec.reads for spec in made.modalities.values() if spec.kind == "mask"} <= {"decoder"}


def test_a_mask_is_read_off_the_encoder_if_that_has_a_grid():
    made = yaml.safe_load(propose(guessed(mask=MASK), 30, timer(0.25)).text)
    image, mask = made["modalities"].values()
    assert mask["reads"] == "encoder" and made["train"]["clean_pass"] == 20.0
    assert (image["given_probability"], image["given_steps"]) == (0.0, 1) and "given_at_T" not in image
    small = Guess("", "image", {"image": {**IMAGE, "size": 8}, "mask": {**MASK, "size": 8}}, examples=4000)
    made = yaml.safe_load(propose(small, 30, lambda config: 0.01).text)
    image, mask = made["modalities"].values()
    assert made["backbone"]["kind"] == "mlp" and "reads" not in mask and "clean_pass" not in made["train"]
    assert (image["given_probability"], image["given_at_T"]) == (0.85, 1.0)
    small.modalities["mask"] = LABEL
    made = yaml.safe_load(propose(small, 30, lambda config: 0.01).text)
    assert made["backbone"]["kind"] == "mlp" and made["train"]["clean_pass"] == 0.25


def test_captions():
    """Their options are those of the preset that has them, but for its pass without noise, which weighs its loss."""
    proposal = propose(guessed(caption=CAPTION), 30, timer(0.25))
    made, truth = (yaml.safe_load(text) for text in (proposal.text, presets.text("any-to-any")))
    assert made["modalities"]["caption"] == truth["modalities"]["caption"] | {"loss_weight": 0.02}
    assert truth["train"]["clean_pass"] > 0 and "clean_pass" not in made["train"]
    assert made["train"]["optimizer"] == "muon" and "first" not in made["sample"]
    assert "# The encoder reads it, and only the decoder is told it; a generated one is the nearest" in proposal.text


@pytest.mark.parametrize("bf16", [0.5, 3.0])
@pytest.mark.parametrize(
    ("seconds", "width"),  # of a step at 32 channels in fp32, in 30 minutes: 1,440 s of training
    [(0.2, 32), (1.4, 32), (1.5, 16), (9.0, 16), (0.1, 48), (0.05, 64), (0.02, 96), (0.001, 128)],
)
def test_the_network_and_the_steps_fit_the_time(seconds, width, bf16):
    faster = min(1, bf16)
    made = propose(guessed(mask=MASK), 30, timer(seconds / faster, bf16))
    config, step = made.config, seconds * (width / 32) ** 2
    assert config.backbone.channels == width and made.step == pytest.approx(step)
    assert config.train.precision == config.sample.precision == ("bf16" if bf16 < 1 else "fp32")
    assert 0.9 * 1440 < config.train.steps * step <= 1440 or config.train.steps == 200_000
    assert made.training == pytest.approx(config.train.steps * step / 60) and made.training < made.total <= 30
    assert 10 <= config.evaluate.samples <= 1000


def test_a_memory_of_a_twelfth_of_the_steps():
    for minutes in (1, 30, 600):
        config = propose(guessed(mask=MASK), minutes, timer(0.5)).config
        assert 1 / (1 - config.train.ema_decay) == pytest.approx(config.train.steps / 12, rel=0.03)


@pytest.mark.parametrize(
    ("minutes", "steps", "samples"), [(5e-324, 20, 10), (1e308, 200_000, 1000), (float("inf"), 200_000, 1000)]
)
def test_any_time_has_a_config(minutes, steps, samples):
    config = propose(guessed(mask=MASK), minutes, timer(0.5)).config
    assert (config.train.steps, config.evaluate.samples) == (steps, samples)


def test_larger_images_have_more_levels_down_to_the_same_grid():
    for size, patch, levels in ((16, 1, 3), (32, 2, 3), (64, 2, 4), (128, 2, 5)):
        found = Guess("x", "image", {"image": IMAGE | {"size": size}}, examples=100)
        backbone = propose(found, 30, timer(0.2)).config.backbone
        assert (backbone.patch, len(backbone.multipliers)) == (patch, levels)
        assert size / patch / 2 ** (levels - 1) == 4
    small = Guess("x", "image", {"image": IMAGE | {"size": 8}}, examples=100)
    assert propose(small, 30, lambda config: 0.1).config.backbone.kind == "mlp"


def test_the_text_is_the_config(tmp_path):
    """Names that YAML would take for something else; and a long list of them."""
    names = ["no", "1e3", "a, b", "a: b", "#x", "{x}", "null", "caf\u00e9", "'", "01", " x"]
    label = {"kind": "label", "classes": len(names), "names": names}
    made = propose(guessed(tmp_path / "my data, 'old'", label=label), 30, timer(0.48), command=" my data")
    file = tmp_path / "my.yaml"
    file.write_text(made.text, encoding="utf-8")
    assert configs.load(str(file)) == made.config
    assert made.config.modalities["label"].names == names
    assert made.config.data.root == str(tmp_path / "my data, 'old'")
    assert made.text.startswith(
        "# Written by `mmfast init my data`, for 4,000 examples.\n# 0.24 s per step on this machine"
    )
    assert (
        len(made.text.splitlines()) < 45 and sum(line.lstrip().startswith("#") for line in made.text.splitlines()) == 4
    )


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Sixteen images of two classes with their masks."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for k in range(16):
        for kind, pixels in (("image", random.integers(0, 256, (9, 9, 3))), ("mask", random.integers(0, 2, (9, 9)))):
            file = tmp_path / "data" / kind / ("ape" if k % 2 else "bee") / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return tmp_path / "data"


FEW = [("train.steps", "1"), ("evaluate.samples", "0"), ("sample.count", "2"), ("sample.steps", "1"),
       ("backbone.width", "16"), ("train.batch_size", "4"), ("train.tensorboard", "false")]  # fmt: skip


@pytest.mark.slow
def test_three_commands(data, capsys, monkeypatch):
    """init, check, train: nothing written but the config, the sheet and the run."""
    monkeypatch.setattr("mmfast.propose.step_time", lambda config: step_time(config, seconds=0.0, least=1))
    assert main(["init", "data", "--minutes", "1"]) == 0
    said = capsys.readouterr()
    assert "image, mask, label of 16 examples" in said.out and "channels, bf16" in said.err
    config = configs.load("my.yaml")
    assert config.modalities["label"].names == ["ape", "bee"] and config.data.root == str(data)
    assert "root: data," in (data.parent / "my.yaml").read_text()
    assert sorted(x.name for x in data.parent.iterdir()) == ["data", "my.yaml"]
    assert main(["check", "my.yaml", "--quiet"]) == 0
    assert main(["train", "my.yaml", "--out", "run", "--quiet", *flags(FEW)]) == 0
    before = (data.parent / "my.yaml").read_text()
    assert main(["init", "data"]) == 2 and "my.yaml, which already exists" in capsys.readouterr().err
    assert (data.parent / "my.yaml").read_text() == before


def test_what_is_refused(data, capsys):
    (data / "image/ape/3.png").write_bytes(b"no picture")
    for argv, words in (
        (["data", "--minutes", "0"], "--minutes is 0; it should be more than 0"),
        (["data", "--size", "0"], "--size is 0"),
        (["data", "--out", "x.txt"], "should end in .yaml or .yml"),
        (["none"], "is not a folder"),
        (["data", "--quiet"], "3.png cannot be read as a picture"),
    ):
        assert main(["init", *argv]) == 2
        assert words in capsys.readouterr().err
    assert not list(data.parent.glob("*.yaml"))


def test_a_step_is_timed_as_it_is_trained(data, monkeypatch):
    """The median of the steps after two, by a clock of which each step takes a second more than the one before it."""
    config = configs.from_plain(
        {"data": {"kind": "folder", "root": str(data)}, "modalities": {"image": {"kind": "image", "size": 8}},
         "backbone": {"kind": "mlp", "width": 8, "blocks": 1, "features": 4}, "train": {"batch_size": 4, "steps": 1}},
        "x",
    )  # fmt: skip
    clock = iter([t for k in range(1, 50) for t in (100 * k, 101 * k)])
    monkeypatch.setattr("mmfast.propose.time.perf_counter", lambda: next(clock))
    assert step_time(config, seconds=0, least=5) == 5  # steps 3 .. 7
    with pytest.raises(MmfastError, match="holds no image files"):
        (data / "image").rename(data / "images")
        step_time(config)
