"""The presets as the command line tells of them: a line each, a copy that trains the same, the values in --help."""

import re
from pathlib import Path

import pytest
import yaml

import mmfast
from mmfast import config as configs
from mmfast import presets
from mmfast.cli import main

FILES = sorted((Path(mmfast.__file__).parent / "presets").glob("*.yaml"))


def shown(capsys, *argv):
    assert main(argv) == 0
    return capsys.readouterr().out


def test_the_list_names_each_with_what_it_trains_and_its_data(capsys):
    lines = shown(capsys, "presets").splitlines()
    assert len(lines) == 2 * len(FILES) and [line.split()[0] for line in lines[::2]] == [file.stem for file in FILES]
    for file, what, data in zip(FILES, lines[::2], lines[1::2], strict=True):
        head = file.read_text().splitlines()
        assert head[0] == "# " + what.split(maxsplit=1)[1] and head[0].endswith(".")
        assert head[1].removeprefix("# Data: ") == data.strip().removeprefix("data: ") and len(head[1]) > 20
        assert max(map(len, (what, data))) <= 140
        kind = yaml.safe_load(file.read_text())["data"]["kind"]
        assert kind in ("digits", "fashion", "sprites", "folder", "table")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_preset_that_is_printed_is_the_preset(tmp_path, capsys, file):
    copy = tmp_path / "copy.yaml"
    copy.write_text(shown(capsys, "presets", file.stem))
    assert copy.read_text() == file.read_text()
    assert configs.load(str(copy)) == configs.load(file.stem)


def test_a_name_that_is_none(capsys):
    assert main(["presets", "image-masks"]) == 2
    assert "did you mean 'image-mask'?" in capsys.readouterr().err


def values(text):
    """Option -> its value as the help shows it."""
    return dict(re.findall(r"^  --(\S+) .*\[(.*)\]$", text, re.M))


def test_help_for_a_preset_shows_its_values_and_no_other_kind(capsys):
    found = values(shown(capsys, "train", "image-mask", "--help", "--train.steps", "77"))
    mask = yaml.safe_load((Path(mmfast.__file__).parent / "presets" / "image-mask.yaml").read_text())["modalities"][
        "mask"
    ]
    assert found["modalities.mask.weight.scale"] == str(mask["weight"]["scale"]) == "1.5"
    assert found["modalities.mask.loss_weight"] == str(mask["loss_weight"])
    assert found["modalities.image.given_steps"] == "1" and found["modalities.mask.given_steps"] == "null"
    assert found["modalities.image.given_at_T"] == "null" and found["train.clean_pass"] == "20.0"
    assert (found["train.steps"], found["backbone.patch"], found["loss.target"]) == ("77", "2", "x0")
    assert not any("NAME" in key or key.startswith("modalities.label") for key in found)
    assert found["train.low_noise.share"] == "0.0" and "backbone.width" not in found


MEASURED = {
    "image-mask": {"image": (0.0, None, 1.0, None), "mask": (None, None, 0.1, "encoder")},
    "masked-image": {"masked": (0.3, 0.0, 0.1, "encoder")},
    "image-embedding": {"image": (0.0, None, 1.0, None), "embedding": (None, None, 0.2, "encoder")},
    "any-to-any": {
        "image": (0.0, None, 1.0, None),
        "mask": (0.25, None, 0.1, "encoder"),
        "label": (0.4, None, 0.005, "encoder"),
        "embedding": (None, None, 0.05, "encoder"),
        "caption": (None, None, 0.002, "encoder"),
        "masked": (0.6, 0.0, 0.03, "encoder"),
    },
}


@pytest.mark.parametrize("preset", MEASURED)
def test_a_preset_has_the_options_that_were_measured(preset):
    """As the notes of its page say. Whatever a preset leaves out, such as given_at_T, is the kind's default."""
    config = configs.load(preset)
    for name, wanted in MEASURED[preset].items():
        spec = config.modalities[name]
        found = (spec.given_probability, spec.given_at_T, spec.loss_weight, getattr(spec, "reads", None))
        assert found == wanted, name
    assert config.train.clean_pass == 20.0
    drawn = {"image-mask": (1.5, 0.0), "masked-image": (3.0, 0.0), "image-embedding": (1.5, 1.0)}
    assert (config.sample.spacing, config.sample.eta) == drawn.get(preset, (1.0, 0.0))
    assert config.loss.target == "x0"
    assert config.loss.min_snr_gamma == {"masked-image": 5.0}.get(preset)
    steps = {name: spec.given_steps for name, spec in config.modalities.items() if spec.given_steps}
    assert steps == {"image-mask": {"image": 1}, "masked-image": {"masked": 2}, "image-embedding": {"image": 1},
                     "any-to-any": {"image": 1, "masked": 25}}[preset]  # fmt: skip


def test_help_without_one_shows_the_defaults_of_every_kind(capsys):
    found = values(shown(capsys, "train", "--help"))
    assert found["train.steps"] == "100000" and found["modalities.NAME.loss_weight"] == "1.0"
    assert {"backbone.width", "backbone.patch", "modalities.NAME.classes", "data.cache"} <= found.keys()
    assert all(name in shown(capsys, "train", "--help") for name in presets.names())


def test_the_docs_say_what_the_presets_add():
    """docs/configuration.md: the rows "(`preset`)", each with the options of the modality, the image and training."""
    page = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text("utf-8")
    rows = re.findall(r"^\| [^|]*\(`([a-z-]+)`\)[^|]*\|(.*)\|(.*)\|(.*)\|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == ["image-label", "image-mask", "image-embedding", "masked-image"]
    for preset, *cells in rows:
        config = configs.load(preset)
        image, other = config.modalities.values()
        for cell, spec in zip(cells, (other, image, config.train), strict=True):
            for key, value in re.findall(r"`(\w+): ([^`]*)`", cell):
                assert str(getattr(spec, key)) in (value, f"{value}.0"), (preset, key)
