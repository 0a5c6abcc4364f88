"""What a review of samples, tables and sweeps found: each by what it did."""

import csv

import numpy as np
import pytest
import torch
from loaded_run import SIZE, make
from PIL import Image
from tiny import tiny

import mmfast
from mmfast import MmfastError, sweep, tabular
from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.cli.sample import _numbers
from mmfast.data.table import Spec as TableData
from mmfast.data.table import cells as cells_of
from mmfast.generate import kept_as_given
from mmfast.given import Several, check_aligned
from mmfast.grids import Gallery, sample_run
from mmfast.image_files import grey_or_colour, load_picture
from mmfast.metrics.frechet import pixel_features
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.label import Label, LabelSpec
from mmfast.modalities.mask import Mask, MaskSpec
from mmfast.modalities.masked_image import Masked, MaskedSpec
from mmfast.modalities.table import Table, TableSpec
from mmfast.saved import cells


def row(*columns):
    return Table(
        "row", TableSpec(columns=[*columns], means=[0.0] * len(columns), scales=[1.0] * len(columns)), SpaceShape(1, 1)
    )


# --- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [20240113.0, 1.7e9 + 64, 70.05672, 0.1, 1e-30, 2.0**24 + 2, -3.0, 123456.789])
def test_a_saved_number_is_the_one_that_was_drawn(value):
    x = torch.tensor([value], dtype=torch.float32)
    (saved,) = row("a").plain(x).values()
    assert np.float32(saved) == x.numpy()[0]
    assert len(repr(saved)) <= len(repr(float(x[0])))  # not the longer digits of float64


def write(path, header, lines):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return path


def test_numbers_that_are_not_known_are_missing(tmp_path):
    """They are named, however they are written, and are no classes."""
    lines = [
        ["NA" if k % 17 == 0 else 20 + k % 40, "nan" if k == 5 else f"{36 + k / 100}", "?" if k < 2 else k % 2, k * 1.5]
        for k in range(80)
    ]
    file = write(tmp_path / "x.csv", ["age", "t", "sex", "y"], lines)
    plain, notes = tabular.options(file, str(file))
    assert plain["modalities"]["row"]["columns"] == ["y"] and [*plain["modalities"]] == ["row"]
    assert notes == [
        f"the column {name}, in which {count} of 80 numbers are missing; fill them in, or remove these rows"
        for name, count in (("age", 5), ("t", 1), ("sex", 2))
    ]


def test_texts_of_which_some_are_unknown_are_classes_as_before(tmp_path):
    lines = [[("a", "b", "NA")[k % 3], k * 1.5] for k in range(30)]
    plain, notes = tabular.options(write(tmp_path / "x.csv", ["kind", "y"], lines), "x.csv")
    assert plain["modalities"]["kind"]["classes"] == 3 and not notes


@pytest.mark.parametrize(("separator", "name"), [("\t", "tabs"), (";", "semicolons")])
def test_other_separators_are_named(tmp_path, separator, name):
    (tmp_path / "x.csv").write_text(f"a{separator}b\n1.5{separator}2.5\n2.5{separator}1.5\n")
    with pytest.raises(MmfastError, match=f"has columns that are separated by {name}; save it with commas"):
        tabular.options(tmp_path / "x.csv", "x.csv")


def test_a_label_has_not_the_name_of_another_column(tmp_path):
    lines = [[50 + k / 3, ("lo", "hi")[k % 2], k * 0.7] for k in range(40)]
    file = write(tmp_path / "x.csv", ["weight_kg", "weight-kg", "sex"], lines)
    plain, _ = tabular.options(file, str(file))
    assert [*plain["modalities"]] == ["row", "weight_kg_2"]
    assert plain["data"]["columns"] == {"weight_kg_2": "weight-kg"}
    # And where a config has such names, no cell is lost.
    assert cells({"row": {"a": 1.0, "b": 2.0}, "a": "lo", "c": "x"}) == {
        "a": 1.0,
        "b": 2.0,
        "a (label)": "lo",
        "c": "x",
    }
    assert cells({"a": "lo", "row": {"a": 1.0}}) == {"a": 1.0, "a (label)": "lo"}


def test_a_column_whose_name_has_a_comma_is_given_and_known():
    part = row("height, cm", "weight", "cm")
    for text, wanted in {
        "height, cm=170": [170, None, None],
        "weight=3, height, cm = 170": [170, 3, None],
        "cm=1,height, cm=2,weight=3": [2, 3, 1],
    }.items():
        x, known = part.in_part(text)
        assert known.tolist() == [v is not None for v in wanted]
        assert x[known].tolist() == [v for v in wanted if v is not None]
    assert part.parse_known("height, cm").tolist() == [True, False, False]
    assert part.parse_known("cm, height, cm").tolist() == [True, False, True]
    assert part.parse_known("cm,weight").tolist() == [False, True, True]
    with pytest.raises(MmfastError, match=r"row's column is 'hight'; .*did you mean 'weight'\?"):
        part.in_part("weight=3,hight=4")
    with pytest.raises(MmfastError, match="known row's column is 'hight'"):
        part.parse_known("cm,hight")
    with pytest.raises(MmfastError, match="row has column 'cm' twice"):
        part.in_part("cm=3,cm=4")


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def run(place):
    return mmfast.load(place / "run", "cpu")


def test_pictures_of_another_shape_than_the_part_to_keep_are_refused(run, tmp_path):
    wide, square = Image.new("RGB", (16, 8)), Image.new("L", (8, 8), 255)
    wide.save(tmp_path / "wide.png")
    square.save(tmp_path / "square.png")
    files = {"photo": str(tmp_path / "wide.png")}
    says = "known photo is 8 x 8 and photo is 16 x 8: they differ in shape"
    for known in (str(tmp_path / "square.png"), square, np.full((8, 8), 255, np.uint8)):
        with pytest.raises(MmfastError, match=says):
            run.sample(1, given=files, known={"photo": known}, steps=1)
    with pytest.raises(MmfastError, match="mask is 8 x 8 and photo is 16 x 8"):
        run.sample(1, photo=wide, mask=Image.new("L", (8, 8)), steps=1)
    # In a list, each with its own.
    parts = {name: run.model.part(name) for name in run.model.parts}
    both = Several((str(tmp_path / "square.png"), str(tmp_path / "wide.png")))
    check_aligned(parts, {"photo": both, "mask": [square, wide]}, {})
    with pytest.raises(MmfastError, match="mask is 16 x 8 and photo is 8 x 8"):
        check_aligned(parts, {"photo": both, "mask": wide}, {})
    with pytest.raises(MmfastError, match="mask is 8 x 8 and photo is 16 x 8"):
        check_aligned(parts, {"photo": both, "mask": [square, square]}, {})
    # An array is [H, W], and a picture is turned upright.
    tall, turned = np.zeros((16, 8), np.uint8), Image.new("RGB", (16, 8))
    turned.getexif()[0x0112] = 6
    check_aligned(parts, {"photo": turned, "mask": tall}, {})
    with pytest.raises(MmfastError, match="mask is 8 x 16 and photo is 16 x 8"):
        check_aligned(parts, {"photo": wide, "mask": tall}, {})
    # An array of x itself, and what cannot be read, are for others to check.
    check_aligned(parts, {"photo": torch.zeros(3, SIZE, SIZE), "mask": wide, "label": "a.png"}, {"photo": "no.png"})


def test_what_hidden_parts_show_stays(run):
    """In the picture that is drawn; the rest is as the network draws it."""
    x = torch.rand(2, 4, SIZE, SIZE) * 2 - 1
    x[:, 3] = torch.tensor([[1.0, 0.0]]).repeat(SIZE, SIZE // 2)
    drawn = run.sample(2, hidden=x, steps=2).data["photo"]
    raw = mmfast.generate.generate(run.model, run.config, 2, {"hidden": x}, steps=2, seed=0)["photo"]
    seen = (x[:, 3:] > 0).expand(-1, 3, -1, -1)
    assert torch.equal(drawn[seen], x[:, :3][seen]) and not torch.equal(raw[seen], x[:, :3][seen])
    assert torch.equal(drawn[~seen], raw[~seen])
    # An image that is given itself is not drawn.
    assert kept_as_given(run.model, {"photo": raw}, {"photo": raw, "hidden": x}) == {}
    assert kept_as_given(run.model, {"photo": raw}, {"label": torch.tensor([1, 2])}) == {}


def test_sample_grids_show_what_hidden_parts_show(run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("mmfast.grids.kept_as_given", lambda model, drawn, what: seen.append([*what]) or {})
    monkeypatch.setattr(Gallery, "hang", lambda *args: None)
    examples = {"hidden": {"hidden": torch.ones(2, 4, SIZE, SIZE)}}
    run.config.sample.count = 2
    sample_run(Gallery(run.run, 1), run.model, run.config, examples, quiet=True)
    assert seen == [[], ["hidden"]]


@pytest.mark.parametrize("edge", [35, 37, 38, 40])
def test_colours_of_hidden_pixels_do_not_count(edge):
    pixels = np.full((64, 64, 4), 200, np.uint8)
    pixels[..., 3] = 255
    pixels[:, edge:] = 0  # black, as most programs store what is transparent
    x = Masked.from_picture(Image.fromarray(pixels), MaskedSpec(channels=1, size=8), "x")
    seen = x[1] > 0
    assert seen.any() and not seen.all()
    assert ((x[0][seen] + 1) * 127.5 - 200).abs().max() <= 1.01  # one level, of rounding
    weighted = Image.fromarray(pixels).convert("LA").convert("La")
    assert torch.equal(Masked.from_picture(weighted, MaskedSpec(channels=1, size=8), "x"), x)


def test_the_transparent_value_of_16_bits_is_the_background(tmp_path):
    values = np.array([[0, 1000], [40000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png", transparency=1000)
    picture = load_picture(tmp_path / "x.png")
    found = np.asarray(grey_or_colour(picture, 1, "white"))
    np.testing.assert_allclose(found, np.array([[0, 255], [40000 / 257, 255]]), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(grey_or_colour(picture, 1, None))[0, 1], 1000 / 257, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(grey_or_colour(picture, 1, "#101010"))[0, 1], 16)


def test_black_and_white_masks_are_saved_so():
    x = torch.tensor([[0, 1], [1, 0]])
    spec = MaskSpec(classes=2, size=2, values="0/255")
    picture = Mask("mask", spec, SpaceShape(2, 2)).plain(x)
    assert picture.mode == "L" and np.asarray(picture).tolist() == [[0, 255], [255, 0]]
    assert torch.equal(Mask.from_picture(picture, spec, "x"), x)
    ignoring = MaskSpec(classes=2, size=2, values="0/255", ignore=128)
    picture = Mask("mask", ignoring, SpaceShape(2, 2)).plain(torch.tensor([[0, 1], [-1, 0]]))
    assert np.asarray(picture).tolist() == [[0, 255], [128, 0]]
    for spec in (MaskSpec(classes=2, size=2), MaskSpec(classes=2, size=2, values="0/1")):
        picture = Mask("mask", spec, SpaceShape(2, 2)).plain(x)
        assert np.asarray(picture).tolist() == x.tolist() and torch.equal(Mask.from_picture(picture, spec, "x"), x)


def test_masks_of_two_colours_are_saved_in_them():
    spec = MaskSpec(classes=2, size=2, values="0/255", colours=["#000000", "#ff0000"])
    x = torch.tensor([[0, 1], [1, 0]])
    picture = Mask("mask", spec, SpaceShape(2, 2)).plain(x)
    assert np.asarray(picture.convert("RGB"))[0, 1].tolist() == [255, 0, 0]
    assert torch.equal(Mask.from_picture(picture, spec, "x"), x)


def test_a_class_that_shares_its_name_is_saved_by_its_number():
    spec = LabelSpec(classes=3, names=["crane", "owl", "crane"])
    part = Label("label", spec, SpaceShape(1, 1))
    assert [part.plain(torch.tensor(k)) for k in range(3)] == ["0", "owl", "2"]
    assert [int(Label.from_text(part.plain(torch.tensor(k)), spec, "x")) for k in range(3)] == [0, 1, 2]


# --- figures and options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "pooled"), [((8, 32), (8, 16)), ((32, 8), (16, 8)), ((8, 8), (8, 8)), ((64, 20), None)]
)
def test_small_sides_are_not_enlarged(size, pooled):
    x = torch.rand(3, 2, *size)
    found = pixel_features(x)
    height, width = pooled or (16, 16)
    assert found.shape == (3, 2 * height * width)
    assert torch.equal(found, torch.nn.functional.adaptive_avg_pool2d(x, (height, width)).flatten(1))
    if pooled == (8, 16):  # the mean of two neighbours
        assert torch.allclose(found, x.reshape(3, 2, 8, 16, 2).mean(-1).flatten(1))


def test_another_kind_of_schedule_keeps_its_length():
    raw = {"schedule": {"T": 6, "kind": "cosine"}, "modalities": {"image": {"kind": "image"}}}
    config = configs.from_plain(raw, "x", [("schedule.kind", "linear")])
    assert (config.schedule.T, config.schedule.kind) == (6, "linear")
    # Other kinds have other options.
    raw["modalities"]["label"] = {"kind": "label", "weight": {"kind": "carried", "scale": 0.5}}
    config = configs.from_plain(raw, "x", [("modalities.label.weight.kind", "bridge")])
    assert config.modalities["label"].weight.scale == 1.0


@pytest.mark.parametrize("option", ["guidance_scale", "offset"])
def test_a_modality_that_is_named_twice_is_refused(option):
    assert _numbers(option, ["a=1", "b=-0.5"], "") == {"a": 1.0, "b": -0.5}
    with pytest.raises(MmfastError, match=f"--{option} has a twice; give one number for it"):
        _numbers(option, ["a=1", "b=2", "a=1"], "")


def test_resampling_needs_something_given_in_part(run):
    with pytest.raises(MmfastError, match="resample is 9, but nothing is given in part; leave it out"):
        run.sample(1, label=1, resample=9, steps=1)
    assert len(run.sample(1, label=1, resample=1, steps=1)) == 1


def test_a_sweep_varies_nothing_that_has_no_effect(tmp_path):
    config = tiny(told="false", evaluate__samples=4)
    with pytest.raises(MmfastError, match="over has guidance_scale, but told is false, so it changes nothing"):
        sweep.sweep(build_model(config), config, build_data(config), {"guidance_scale": ["1", "3"]}, ["label"], False)
    lines = [[*x, k % 2] for k, x in enumerate(np.random.default_rng(0).normal(size=(60, 2)).tolist())]
    file = write(tmp_path / "x.csv", ["a", "b", "label"], lines)
    plain = {
        "anchor": "row",
        "data": {"kind": "table", "source": str(file)},
        "modalities": {"row": {"kind": "table", "columns": ["a", "b"]}, "label": {"kind": "label", "classes": 2}},
        "backbone": {"kind": "mlp", "width": 16, "blocks": 1, "features": 4},
        "evaluate": {"samples": 4},
    }
    config = configs.from_plain(plain, "x")
    assert len(cells_of(TableData(source=str(file)))) == 3
    with pytest.raises(MmfastError, match="over has clamp, but row has no bounds, so it changes nothing; leave it out"):
        sweep.sweep(build_model(config), config, build_data(config), {"clamp": ["0.1", "null"]}, [], False)
