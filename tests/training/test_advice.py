"""What is said before the first step: options without effect, and what would be missing after the last."""

import os
import platform

import pytest
import torch
from tiny import TINY, flags

from mmfast import config as configs
from mmfast.build import build_model
from mmfast.cli import main
from mmfast.training.advice import slow_here, without_effect

MLP = ("backbone", "{kind: mlp, width: 16, blocks: 1, features: 4}")
LABEL, MASK = "modalities.label", "modalities.mask"
LOW = ("train.low_noise.share", "0.25")


def said(*pairs, preset="digits"):
    config = configs.load(preset, [MLP, *pairs])
    return list(without_effect(build_model(config), config))


CASES = {
    "low noise where the mask is always seen": (
        [LOW, (f"{LABEL}.unknown_probability", "0.3")],
        "train.low_noise applies only to examples in which nothing but image is seen, and examples with mask never "
        "are: give them an unknown_probability, or leave it out",
    ),
    "a time of nothing": (
        [(f"{LABEL}.weight", "{kind: none}"), (f"{LABEL}.own_time_probability", "0.3")],
        "modalities.label.own_time_probability is 0.3, but label leaves no trace in z_t (weight none) that could have "
        "a time of its own",
    ),
    "at T, and never given": (
        [("modalities.image.given_probability", "0")],
        "modalities.image.given_at_T is 0.5, but image is given in no training example",
    ),
    "not told": (
        [("told", "false")],
        "told is false, so nothing is given in training; without effect: modalities.image.given_at_T 0.5, "
        "modalities.label.given_probability 0.4",
    ),
    "a clean pass that nobody reads": (
        [("train.clean_pass", "0.5"), (f"{LABEL}.reads", "decoder")],
        "train.clean_pass is 0.5, but no head reads the encoder",
    ),
    "a learned encoder of the anchor": (
        [("modalities.image.encoder", "learned")],
        "modalities.image.encoder is learned, but image is the anchor, which is not encoded",
    ),
    "the scale of no weight": (
        [(f"{LABEL}.weight", "{kind: none, scale: 2}")],
        "modalities.label.weight.scale is 2, but its kind is none; give it another kind",
    ),
    "attention where there is no grid": (
        [("backbone", "{kind: unet, channels: 16, multipliers: [1, 1], attention: [8, 2, 4]}")],
        "backbone.attention has 8, but no level has a grid of that size; they have 4, 2",
    ),
    "groups of one number": (
        [("backbone", "{kind: unet, channels: 16, multipliers: [1, 1, 2], norm: group}")],
        "backbone.norm is group, and the last level has 32 channels of one pixel, each a group of its own, of which "
        "nothing is left: give --backbone.norm layer, or fewer backbone.multipliers",
    ),
    "eta": ([("sample.eta", "0.5")], "sample.eta is 0.5, but the sampler ddpm takes none"),
    "weights of no network": (
        [("evaluate.lpips_weights", "x.ckpt")],
        "evaluate.lpips_weights is given without evaluate.lpips, which specifies the network that they are for",
    ),
}


@pytest.mark.parametrize(("pairs", "line"), CASES.values(), ids=CASES)
def test_what_has_no_effect_is_said(pairs, line):
    assert said(*pairs) == [line]


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [LOW, (f"{LABEL}.unknown_probability", "0.3"), (f"{MASK}.unknown_probability", "0.3")],
        [LOW, (f"{MASK}.unknown_probability", "0.3"), (f"{LABEL}.weight", "{kind: none}")],
        [("sample.eta", "0.5"), ("sample.sampler", "ddim")],
        [(f"{MASK}.own_time_probability", "0.3")],
        [(f"{LABEL}.encoder", "learned")],
        [("backbone", "{kind: unet, channels: 16, multipliers: [1, 1, 4], norm: group}")],
        [("backbone", "{kind: unet, channels: 16, multipliers: [1, 2], norm: group}")],
        [("backbone", "{kind: unet, channels: 16, multipliers: [1, 1, 2], attention: [4, 1]}")],
    ],
    ids=[
        "the preset",
        "all unknown",
        "a label that leaves no trace",
        "ddim",
        "a time of its own",
        "encoder",
        "groups",
        "pixels",
        "levels",
    ],
)
def test_of_what_has_one_nothing_is_said(pairs):
    assert said(*pairs) == []


@pytest.mark.parametrize("preset", ["image-label", "image-mask", "masked-image", "image-embedding", "any-to-any"])
def test_the_presets_have_none(preset):
    config = configs.load(preset, [("backbone.channels", "16")])
    assert list(without_effect(build_model(config), config)) == []


def test_it_is_said_once_and_training_goes_on(tmp_path, capsys):
    words = ["train", "digits", "--quiet", "--out", str(tmp_path / "run"), *flags([*TINY, ("train.steps", "1")])]
    assert main([*words, "--sample.eta", "0.5"]) == 0
    assert capsys.readouterr().err == "mmfast: sample.eta is 0.5, but the sampler ddpm takes none\n"


MISSING = {
    "misspelt features": ({"features": "vgg61"}, "feature extractor is 'vgg61'; it should be one of pixels, "),
    "a file that is not there": (
        {"features": "vgg16", "features_weights": "no.ckpt"},
        f"weights is '{os.path.abspath('no.ckpt')}'; it should be a file",
    ),
    "weights of pixels": ({"features_weights": __file__}, f"weights is '{__file__}'; pixels have none: leave it out"),
    "LPIPS of nothing": ({"lpips": "alex"}, "evaluate.lpips is 'alex', but no modality hides parts of an image"),
    "code that is not there": (
        {"features": "no_such_module:net"},
        "evaluate.features is 'no_such_module:net', which cannot be imported: No module named",
    ),
}


@pytest.mark.parametrize(("options", "says"), MISSING.values(), ids=MISSING)
def test_what_the_evaluation_lacks_is_said_before_there_is_a_run(tmp_path, capsys, options, says):
    pairs = [*TINY, ("train.steps", "1"), ("evaluate.samples", "4")]
    pairs += [(f"evaluate.{name}", x) for name, x in options.items()]
    words = ["train", "digits", "--quiet", "--out", str(tmp_path / "run"), *flags(pairs)]
    assert main([*words, "--allow-code", "no_such_module:net"]) == 2
    assert capsys.readouterr().err.startswith(f"mmfast: error: {says}") and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "machine, capability, device, precision, slow",
    [
        ("x86_64", "AVX2", "cpu", "bf16", True),
        ("AMD64", "DEFAULT", "cpu", "bf16", True),
        ("x86_64", "AVX512", "cpu", "bf16", False),
        ("x86_64", "AVX2", "cpu", "fp32", False),
        ("x86_64", "AVX2", "cuda", "bf16", False),
        ("aarch64", "DEFAULT", "cpu", "bf16", False),
    ],
)
def test_a_precision_that_the_processor_lacks_is_told_of(monkeypatch, machine, capability, device, precision, slow):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    lines = list(slow_here(configs.load("digits", [("train.precision", precision)]), torch.device(device)))
    assert len(lines) == slow
    assert not lines or (
        f"bf16, which this processor ({capability})" in lines[0] and "--train.precision fp32" in lines[0]
    )


def test_a_run_begins_with_what_is_slow_here(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    argv = ["train", "digits", "--out", str(tmp_path / "run"), *flags(TINY), "--train.steps", "1"]
    assert main([*argv, "--train.precision", "bf16", "--train.device", "cpu"]) == 0
    assert "mmfast: train.precision is bf16, which this processor (AVX2)" in capsys.readouterr().err
