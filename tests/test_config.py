"""Configs: defaults, then the file, then the command line; each kind with its own options."""

import dataclasses
import re

import pytest
import yaml
from omegaconf import OmegaConf

from mmfast import config as configs
from mmfast import presets
from mmfast.cli import main, overrides
from mmfast.config_source import LONGEST, folder_of
from mmfast.errors import MmfastError
from mmfast.generate import settings
from mmfast.modalities.caption import CaptionSpec


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("modalities: {image: {kind: image, size: 16}}\ntrain: {steps: 7, learning_rate: 0.5}\n")
    config = configs.load(str(file), overrides(["--train.steps", "9", "--seed=4", "--modalities.image.channels", "1"]))
    assert (config.train.steps, config.train.learning_rate, config.seed) == (9, 0.5, 4)
    assert config.train.batch_size == configs.Config().train.batch_size
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


def test_a_runs_config_has_no_defaults_of_presets_that_are_newer(tmp_path):
    """An option that did not exist when the run was made is as it was without it."""
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(x for x in configs.to_yaml(configs.load("image-label")).splitlines() if "loss_" not in x))
    assert "loss_weight" not in file.read_text()
    assert configs.load(str(file)).modalities["label"].loss_weight == 0.06
    assert configs.load_again(str(file)).modalities["label"].loss_weight == 1.0


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
    with pytest.raises(MmfastError, match=r"x\.yaml is not UTF-8 text .*; save it as UTF-8"):
        configs.load(str(file))


def test_changes_have_the_keys_of_either_config():
    """What only one of two configs has is None in the other: a modality, an entry of a dict."""
    a = configs.load("digits", [("sample.offset", "{mask: 0.1}")])
    b = configs.load("digits", [("sample.offset", "{label: 0.2}"), ("modalities.extra", "{kind: label, classes: 3}")])
    found = configs.changes(a, b)
    assert (found["sample.offset.mask"], found["sample.offset.label"]) == ("0.1 -> None", "None -> 0.2")
    assert found["modalities.extra.kind"] == "None -> 'label'" and found["modalities.extra.classes"] == "None -> 3"
    assert all(key.startswith(("sample.offset.", "modalities.extra.")) for key in found)
    back = configs.changes(b, a)
    assert back["modalities.extra.kind"] == "'label' -> None" and back.keys() == found.keys()
    texts = [f"caption {k}" for k in range(25)]
    a, b = (dataclasses.replace(a, modalities={"c": CaptionSpec(captions=x)}) for x in (texts, texts[:3]))
    assert configs.changes(a, b) == {"modalities.c.captions": f"a list of 25 -> {texts[:3]!r}"}


def test_what_may_change_in_a_run():
    free = ["train.steps", "train.accumulation", "train.device", "train.shard", "train.compile", "train.cuda_graphs",
            "train.workers", "train.log_every", "train.sample_every", "train.checkpoint_every", "train.tensorboard",
            "sample.steps", "sample.offset.mask", "evaluate.samples", "modalities.mask.given_steps"]  # fmt: skip
    bound = ["train.batch_size", "train.learning_rate", "train.stepsize", "seed", "data.root",
             "modalities.mask.classes", "modalities.a.b.given_steps", "schedule.T", "resample.steps", "loss.target",
             "train"]  # fmt: skip
    assert configs.fixed(dict.fromkeys([*free, *bound])) == bound


def broken(said, *changes, preset="digits"):
    with pytest.raises(MmfastError, match=said):
        configs.load(preset, changes)


def test_options_that_do_not_go_together():
    bridges = [(f"modalities.{name}.weight", "{kind: bridge}") for name in ("label", "mask")]
    low = ("train.low_noise.share", "0.1")
    broken(r"train\.low_noise\.share needs space=own", ("space", "shared"), *bridges, low)
    assert configs.load("digits", [low]).train.low_noise.share == 0.1
    clean = ("train.clean_pass", "0.5")
    broken(r"train\.clean_pass is 0\.5; it should be 0 with told=false", clean, ("told", "false"))
    assert configs.load("digits", [clean]).train.clean_pass == 0.5
    broken(r"evaluate\.samples is 1; it should be 0 for no evaluation, or at least 2", ("evaluate.samples", "1"))
    assert [configs.load("digits", [("evaluate.samples", n)]).evaluate.samples for n in "02"] == [0, 2]
    size, parts = ("train.batch_size", "6"), "train.accumulation"
    broken(r"train\.accumulation is 4; it should divide train\.batch_size, 6", size, (parts, "4"))
    assert [configs.load("digits", [size, (parts, n)]).train.accumulation for n in "236"] == [2, 3, 6]
    graphs, compiled, shard = (f"train.{name}" for name in ("cuda_graphs", "compile", "shard"))
    for other in ((parts, "2"), (compiled, "true")):
        broken(r"train\.cuda_graphs is true; it needs train\.accumulation=1 and", (graphs, "true"), size, other)
    for other in (graphs, compiled):
        broken(r"train\.shard is true; it needs train\.cuda_graphs=false and", (shard, "true"), (other, "true"))
    for key in (graphs, shard):
        assert configs.load("digits", [(key, "true")])
    assert configs.load("digits", [size, (parts, "2"), (compiled, "true")])


def test_shared_channels_have_weights_that_they_accept():
    plain = {"image": {"kind": "image"}, "label": {"kind": "label"}, "mask": {"kind": "mask", "weight": {"scale": 2.0}}}
    found = configs.from_plain({"space": "shared", "modalities": plain}, "here").modalities
    assert (found["label"].weight.kind, found["label"].weight.scale, found["label"].loss_weight) == ("bridge", 1.0, 1.0)
    assert (found["mask"].weight.kind, found["mask"].weight.scale) == ("bridge", 2.0)
    assert configs.from_plain({"modalities": plain}, "here").modalities["label"].weight.kind == "none"


def test_probabilities_of_a_modality_may_add_up_to_one_and_no_more():
    shares = [(f"modalities.mask.{name}_probability", x) for name, x in (("unknown", "0.3"), ("own_time", "0.3"))]
    assert configs.load("digits", [*shares, ("modalities.mask.given_probability", "0.4")])
    broken("add up to 1.01; they should add up to at most 1", *shares, ("modalities.mask.given_probability", "0.41"))
    usual = ("modalities.mask.given_probability", "null")
    broken("add up to 1.2; they should add up to at most 1", *shares, usual, ("train.given_probability", "0.6"))


def test_offsets_that_no_model_can_have():
    broken(r"sample\.offset is 'masks'; .*did you mean 'mask'", ("sample.offset", "{masks: 0.1}"))
    broken(r"sample\.offset has image, the anchor", ("sample.offset", "{image: 0.1}"))
    broken(r"sample\.offset\.mask is 1\.0; it should be a share", ("sample.offset", "{mask: 1.0}"))
    for way in (("told", "false"), ("space", "shared")):
        bridges = [(f"modalities.{name}.weight", "{kind: bridge}") for name in ("label", "mask")]
        broken(r"sample\.offset needs space=own and told=true", way, *bridges, ("sample.offset", "{mask: 0.1}"))


@pytest.mark.parametrize("value", ["0.2", "none", "null"])
def test_one_value_for_an_option_that_has_keys_of_its_own(value):
    shown = re.escape(repr(yaml.safe_load(value)))
    for key, keys in {"train.low_noise": "share, until, weight", "modalities.mask.weight": "kind, scale"}.items():
        broken(f"{key} is {shown}; it should be a mapping with the keys {keys}", (key, value))


def test_configs_that_are_none(tmp_path):
    file = tmp_path / "x.yaml"
    for text, said in (
        ("- a", "x.yaml holds a ListConfig; it should hold keys"),
        ("anchor: image", "x.yaml has no modalities; it should name at least the anchor, 'image'"),
        ("anchor: photo\nmodalities: {image: {kind: image}}", "anchor is 'photo'"),
        ("modalities: {image: {size: 8}}", r"modalities\.image\.kind is missing; it should be one of"),
        ("modalities: {image: {kind: imag}}", r"modalities\.image\.kind is 'imag'; .*did you mean 'image'"),
        ("modalities: {image: 3}", r"modalities\.image is 3; it should be a mapping from names to options"),
        ("optimizes: 3\nmodalities: {image: {kind: image}}", "x.yaml: key is 'optimizes'"),
    ):
        file.write_text(text)
        broken(said, preset=str(file))
    broken("config .*none.yaml cannot be read: No such file", preset=str(tmp_path / "none.yaml"))
    broken("config is 'digit'; .*did you mean 'digits'", preset="digit")
    file.write_bytes(b"#" * (LONGEST + 1))
    broken("x.yaml cannot be read: it has more than 4194304 bytes", preset=str(file))


@pytest.mark.parametrize("key", ["train..steps", ".train", "train.", ".", ""])
def test_a_key_with_an_empty_word_is_no_option(key):
    said = f"--{key} is not an option's name; it should be words separated by dots, such as --train.steps"
    with pytest.raises(MmfastError) as found:
        configs.load("digits", [(key, "3")])
    assert str(found.value) == said


def test_paths_are_relative_to_the_folder_of_a_file_and_for_a_preset_to_the_current_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "my.yaml").touch()
    (tmp_path / "link.yaml").symlink_to(tmp_path / "there" / "my.yaml")
    real = str((tmp_path / "there").resolve())
    assert folder_of(str(tmp_path / "there" / "my.yaml")) == folder_of(str(tmp_path / "link.yaml")) == real
    assert folder_of("digits") == ""


@pytest.mark.parametrize(
    "kind, key, most",
    [("unet", "blocks", 100), ("adm", "blocks", 100), ("diffusers", "layers_per_block", 100), ("dit", "blocks", 1000),
     ("mlp", "blocks", 1000)],
)  # fmt: skip
def test_a_network_of_endless_layers_is_refused_before_it_is_built(kind, key, most):
    """Blocks are built one by one, so that a million of them look like a hang."""
    given = f"{{kind: {kind}, {key}: {most}}}"
    assert getattr(configs.load("digits", [("backbone", given)]).backbone, key) == most
    with pytest.raises(MmfastError, match=f"^backbone.{key} is {most + 1}; it should be at most {most}$"):
        configs.load("digits", [("backbone", given.replace(f": {most}", f": {most + 1}"))])
