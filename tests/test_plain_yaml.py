"""Configs read as they are written: against a table, and PyYAML where the two should agree."""

import os

import pytest
import yaml

from mmfast import config as configs
from mmfast import presets
from mmfast.config_source import read
from mmfast.errors import MmfastError
from mmfast.plain_yaml import load_value, load_yaml

AS_IT_IS = ["0123", "010", "2024-01-01", "yes", "no", "on", "1_000", "12:30", "a #b", "#x", "1e3", "0x10", "0b1",
            "a: b", "my/data", "=", "<<", "*x", "&x", "!x", "- x", "| x", "> x", "%x", "@x", "`x", "? x"]  # fmt: skip


@pytest.mark.parametrize("text", AS_IT_IS)
def test_text_stays_text_on_the_command_line(text):
    assert load_value(text, "x") == text
    assert configs.load("digits", [("train.device", text)]).train.device == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("100", 100), ("-3", -3), ("0", 0), ("1.5", 1.5), ("1.0e-4", 1e-4), (".5", 0.5), ("true", True), ("False", False),
     ("null", None), ("~", None), ("", None), (" 7 ", 7), ("[1, no]", [1, "no"]), ("{kind: none}", {"kind": "none"}),
     ("'010'", "010"), ('"a"', "a"), ("-.inf", float("-inf"))],
)  # fmt: skip
def test_values(text, value):
    found = load_value(text, "x")
    assert found == value and type(found) is type(value)


def test_names_in_a_file(tmp_path):
    file = tmp_path / "x.yaml"
    names = "[no, yes, 2019, 010, 12:30, 2024-01-01, off]"
    file.write_text(f"modalities: {{image: {{kind: image}}, label: {{kind: label, classes: 7, names: {names}}}}}\n")
    found = configs.load(str(file)).modalities["label"].names
    assert found == ["no", "yes", "2019", "010", "12:30", "2024-01-01", "off"]


@pytest.mark.parametrize("name", presets.names())
def test_presets_are_as_pyyaml_reads_them(name):
    text = read(name)
    assert load_yaml(text, name) == yaml.safe_load(text)
    written = configs.to_yaml(configs.load(name))
    assert load_yaml(written, name) == yaml.safe_load(written)


@pytest.mark.parametrize("texts", [AS_IT_IS, ["1e-3", "~", "null", "true", "1.5", "7", "", " x", "é", "a\nb"]])
def test_what_pyyaml_writes_comes_back(texts):
    assert load_yaml(yaml.safe_dump(texts), "x") == texts


def test_aliases_tags_and_interpolation_are_refused(monkeypatch):
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12))
    monkeypatch.setenv("SECRET", "s3cret")
    for text, match in (
        (bomb, "aliases"),
        ("a: !!python/object/apply:os.getcwd []", r"tags \(!!python/object/apply:os.getcwd\) are not supported"),
        ("a: !!map [b]", r"tags \(!!map\) are not supported"),
        ("a: !!str 1", r"tags \(!!str\) are not supported"),
        ("!mine {a: 1}", r"tags \(!mine\) are not supported; write the value alone in line 1"),
        *((f"a: {x}", "x is not valid YAML: tags") for x in ("!!set {b}", "!!int '5'", "!!binary aGk=", "! b")),
        ("data: {root: '${oc.env:SECRET}'}", "write the value itself"),
        ("a: [" * 5000, "x cannot be read as YAML"),
        ("a: " + "7" * 5000, "x cannot be read as YAML"),
        ("a: b: c", "x is not valid YAML"),
    ):
        with pytest.raises(MmfastError, match=match) as error:
            load_yaml(text, "x")
        assert "\n" not in str(error.value) and "s3cret" not in str(error.value)
    with pytest.raises(MmfastError, match="write the value itself"):
        configs.load("digits", [("data.cache", "${oc.env:SECRET}")])


@pytest.mark.parametrize("text", ["seed: 1\ntrain: {}\nseed: 2", "train: {steps: 1, 'steps': 2}", "[{a: 1, a: 1}]"])
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(
        MmfastError, match=r"x is not valid YAML: the key '(seed|steps|a)' appears twice, first in line 1"
    ):
        load_yaml(text, "x")
    assert load_yaml("a: {b: 1}\nc: {b: 2}", "x") == {"a": {"b": 1}, "c": {"b": 2}}


PLAIN = {"data": {"kind": "folder"}, "modalities": {"image": {"kind": "image"}}}


@pytest.mark.parametrize(
    "name",
    ["0123", "2024-01-01", "yes", "1_000", "12:30", "a #b", "#x", "null", "~", "true", "TRUE", "1.50", "+5", "[a]"],
)
def test_a_text_of_the_command_line_is_as_it_stands_there(name):
    path = f"{os.getcwd()}/{name}"
    assert configs.from_plain(PLAIN, "x", [("data.root", name)]).data.root == path
    assert configs.from_plain(PLAIN, "x", [("data.root", f"'{name}'")]).data.root == path
    key, wanted = "modalities.image.autoencoder.network", name if ":" in name else path
    assert configs.from_plain(PLAIN, "x", [(key, name)]).modalities["image"].autoencoder.network == wanted
    later = [("data.root", name), ("data", "{kind: folder, root: other}")]
    assert configs.from_plain(PLAIN, "x", later).data.root == f"{os.getcwd()}/other"


@pytest.mark.parametrize("text", ["", "''"])
def test_no_text_on_the_command_line_is_the_empty_one(text):
    raw = {**PLAIN, "evaluate": {"features_weights": "x.safetensors"}}
    assert configs.from_plain(raw, "x", [("evaluate.features_weights", text)]).evaluate.features_weights == ""


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("data: {kind: folder, root: 1.50}", "data.root"),
        ("data: {kind: folder, folders: {image: true}}", "data.folders"),
        (
            "modalities: {image: {kind: image}, label: {kind: label, classes: 2, names: [yes, true]}}",
            "modalities.label.names",
        ),
    ],
)
def test_a_file_has_quotes_where_a_text_is_wanted_that_is_none(text, key):
    with pytest.raises(MmfastError, match=rf"{key} is (1\.5|true), which YAML does not read as text; put it in quotes"):
        configs.from_plain({**PLAIN, **load_yaml(text, "x")}, "x")


@pytest.mark.parametrize("text", ["1e5", "1.0e5", "100000", "+100000", "1E+5"])
def test_whole_numbers_may_have_an_exponent(text):
    assert configs.from_plain(PLAIN, "x", [("train.steps", text)]).train.steps == 100_000
    assert configs.from_plain({**PLAIN, **load_yaml(f"train: {{steps: {text}}}", "x")}, "x").train.steps == 100_000


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ape", ["ape"]),
        ("ape, bee,0123", ["ape", "bee", "0123"]),
        ("1.50,true,null", ["1.50", "true", "null"]),
        ("[ape, 'b,c']", ["ape", "b,c"]),
        ("'b,c'", ["b,c"]),
        ("[]", []),
    ],
)
def test_lists_need_no_brackets_on_the_command_line(text, names):
    assert configs.from_plain(PLAIN, "x", [("train.log_to", text)]).train.log_to == names


def test_a_list_of_one_may_be_the_one():
    """In a file a comma is a part of the text."""
    for text, found in (("first: image", ["image"]), ("first: [image]", ["image"])):
        assert configs.from_plain({**PLAIN, "sample": load_yaml(f"{{{text}}}", "x")}, "x").sample.first == found
    raw = {**PLAIN, "train": {"log_to": "a,b"}, "backbone": {"kind": "unet", "multipliers": 4}}
    found = configs.from_plain(raw, "x")
    assert found.train.log_to == ["a,b"] and found.backbone.multipliers == [4]
    assert configs.from_plain(PLAIN, "x", [("backbone.multipliers", "1,2,4")]).backbone.multipliers == [1, 2, 4]


def test_what_is_no_yaml_is_named_by_its_file_and_line():
    with pytest.raises(MmfastError, match=r"^my.yaml is not valid YAML: the key 'a' .* in line 2, column 1: a: 2 \^$"):
        load_yaml("a: 1\na: 2\n", "my.yaml")


def test_no_digit_of_a_seed_is_lost():
    most = 2**63 - 1
    assert configs.from_plain(PLAIN, "x", [("seed", str(most))]).seed == most
    assert configs.from_plain({**PLAIN, "seed": str(most)}, "x").seed == most


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("modalities.image.autoencoder.keep", "2", "autoencoder.keep is 2; it should be true or false"),
        ("train.steps", "1.5", r"train.steps is 1.5; it should be a whole number"),
        ("train.steps", "ten", r"train.steps is 'ten'; it should be a whole number"),
        ("train.learning_rate", "fast", r"train.learning_rate is 'fast'; it should be a number"),
        ("train.low_noise.share", "x", r"train.low_noise.share is 'x'; it should be a number"),
        ("train.compile", "maybe", r"train.compile is 'maybe'; it should be true or false"),
        ("backbone.multipliers", "1,x", r"backbone.multipliers is \['1', 'x'\]; it should be a list of whole numbers"),
        ("backbone.multipliers", "[1,x]", r"backbone.multipliers is \[1, 'x'\]; it should be a list of whole numbers"),
        ("sample.offset", "{mask: x}", r"sample.offset is {'mask': 'x'}; it should be a number for each name"),
        ("told", "2", "told is 2; it should be true or false"),
        ("modalities.image.weight.scale", ".nan", "weight.scale is NaN; it should be a number"),
        ("train.skip_above", "nan", "train.skip_above is NaN"),
    ],
)
def test_a_value_of_another_kind_is_refused(key, value, said):
    with pytest.raises(MmfastError, match=said):
        configs.from_plain(PLAIN, "x", [(key, value)])
