"""Configs: defaults, then the file, then the command line; each kind with its own options."""

import pytest
from omegaconf import OmegaConf

from mmfast import config as configs
from mmfast import presets
from mmfast.cli import main, overrides
from mmfast.errors import MmfastError
from mmfast.generate import settings


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("modalities: {image: {kind: image, size: 16}}\ntrain: {steps: 7, learning_rate: 0.5}\n")
    config = configs.load(str(file), overrides(["--train.steps", "9", "--seed=4", "--modalities.image.channels", "1"]))
    assert (config.train.steps, config.train.learning_rate, config.seed) == (9, 0.5, 4)
    assert config.train.batch_size == configs.TrainSpec().batch_size
    assert (config.modalities["image"].size, config.modalities["image"].channels) == (16, 1)


def test_another_kind_drops_the_options_of_the_old_one():
    config = configs.load("digits", [("backbone.kind", "unet"), ("backbone.channels", "16")])
    assert type(config.backbone).__module__ == "mmfast.backbones.unet" and config.backbone.channels == 16
    same = configs.load("digits", [("backbone.kind", "mlp")])
    assert same == configs.load("digits")


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_survives_being_written_and_read(tmp_path, name):
    config = configs.load(name)
    file = tmp_path / "config.yaml"
    file.write_text(configs.to_yaml(config))
    assert configs.load(str(file)) == config and not configs.changes(config, configs.load(str(file)))


def test_changes_name_the_keys_with_both_values():
    a, b = configs.load("digits"), configs.load("digits", [("train.steps", "5"), ("modalities.label.loss_weight", "9")])
    steps, weight = a.train.steps, a.modalities["label"].loss_weight
    found = configs.changes(a, b)
    assert found == {"train.steps": f"{steps} -> 5", "modalities.label.loss_weight": f"{weight} -> 9.0"}


def test_help_names_every_option(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for key in ("train.steps", "train.batch_size", "seed", "schedule.T", "backbone.channels", "modalities.NAME.classes",
                "modalities.NAME.weight.scale", "data.root", "sample.sampler", "digits"):  # fmt: skip
        assert key in shown
    for command in ("presets", "sample", "eval", "info"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert "usage: mmfast" in capsys.readouterr().out


def test_info_says_which_backends_there_are_and_why_not(capsys):
    import json

    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backends"]["reference"]["available"] is True
    assert all(backend["detail"] for backend in found["backends"].values())
    assert main(["info"]) == 0
    assert "reference" in capsys.readouterr().out


def test_where_something_is_given_its_own_steps_are_taken_the_fewest_of_several():
    config = configs.load("image-mask", [("modalities.mask.given_steps", "7")])
    steps = [settings(config, given)["steps"] for given in ((), ("mask",), ("image",), ("mask", "image"))]
    assert steps == [config.sample.steps, 7, 1, 1]
    short = configs.load("image-mask", [("modalities.mask.given_steps", "7"), ("schedule.T", "4")])
    assert settings(short, ("mask",))["steps"] == 4
    with pytest.raises(MmfastError, match=r"modalities\.mask\.given_steps"):
        configs.load("image-mask", [("modalities.mask.given_steps", "0")])


@pytest.mark.parametrize("name", ["type", "values", "half", "training", "parameters", "seg/map", "a.b", "", "7", "x y"])
def test_names_that_a_modality_cannot_have(name):
    raw = OmegaConf.create({"anchor": "image", "modalities": {"image": {"kind": "image"}, name: {"kind": "label"}}})
    with pytest.raises(MmfastError, match=f"{name!r} cannot be a modality's name"):
        configs.resolve(raw)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_config_is_utf_8_whatever_the_locale(tmp_path, encoding):
    file = tmp_path / "x.yaml"
    text = "anchor: image\nmodalities: {image: {kind: image}, label: {kind: label, classes: 1, names: [caf\u00e9]}}\n"
    file.write_bytes(text.encode(encoding))
    assert configs.load(str(file)).modalities["label"].names == ["caf\u00e9"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_config_of_another_encoding_is_an_error(tmp_path, encoding):
    file = tmp_path / "x.yaml"
    file.write_bytes("anchor: caf\u00e9".encode(encoding))
    with pytest.raises(MmfastError, match=r"x\.yaml is no text in UTF-8 .*; save it as UTF-8"):
        configs.load(str(file))
