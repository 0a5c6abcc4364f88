"""Pictures that are no squares, `size: [height, width]`: read by value, trained on, drawn, shown and written."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmfast import backbones, modalities, sizes
from mmfast import config as configs
from mmfast.backbones import dit, unet
from mmfast.build import build_data, build_model, load_run
from mmfast.cli import main
from mmfast.data import folder
from mmfast.data.items import x_of
from mmfast.errors import MmfastError
from mmfast.from_run import take_weights
from mmfast.generate import generate
from mmfast.guess import guess
from mmfast.metrics.features import extractor
from mmfast.modalities import SpaceShape
from mmfast.pictures import sample_grid
from mmfast.propose import options as proposed
from mmfast.survey import survey
from mmfast.training import train

H, W = 8, 16
FEW = {
    "train": {"steps": 1, "batch_size": 4, "sample_every": 0, "tensorboard": False, "device": "cpu"},
    "sample": {"steps": 2, "count": 2},
    "evaluate": {"samples": 0},
    "schedule": {"T": 8},
}
SMALL = {
    "mlp": {"width": 32, "blocks": 2, "features": 8},
    "unet": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8], "head_channels": 8},
    "adm": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8], "heads": 2},
    "dit": {"width": 32, "blocks": 2, "heads": 2, "features": 16},
    "diffusers": {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
}


def config(parts, backbone="mlp", **more):
    raw = {"anchor": "image", "backbone": {"kind": backbone, **SMALL[backbone]}, "modalities": parts, **FEW, **more}
    return configs.from_plain(raw, "x")


def parts(size=(H, W), **image):
    return {
        "image": {"kind": "image", "channels": 3, "size": list(size), **image},
        "mask": {"kind": "mask", "classes": 3, "size": list(size)},
        "label": {"kind": "label", "classes": 2},
    }


def spec(kind, **options):
    return modalities.kind(kind).Spec(**options)


def as_floats(pixels):
    return torch.from_numpy(np.asarray(pixels, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def fill(root, count=12, width=50, height=20):
    """Pictures of (width, height) with masks and labels; returns the pixels and the numbers."""
    rng, truth = np.random.default_rng(0), {}
    for k in range(count):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = rng.integers(0, 3, (height, width), dtype=np.uint8)
        for name, array in (("image", pixels), ("mask", mask)):
            (root / name / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / name / "ab"[k % 2] / f"{k:02}.png")
        truth[f"{'ab'[k % 2]}/{k:02}"] = pixels, mask
    return truth


# A size, and the middle of it.


@pytest.mark.parametrize(
    ("value", "expected"), [(8, 8), ("8", 8), ([8, 16], [8, 16]), ([8, 8], 8), ((4, 2), [4, 2]), (["3", 5], [3, 5])]
)
def test_a_size_is_one_number_or_two(value, expected):
    assert sizes.read("x", value) == expected
    assert sizes.plain(sizes.height_width(expected)) == expected


@pytest.mark.parametrize("value", [True, 2.5, "a", [8], [1, 2, 3], [], None, [8, "b"], {"a": 1}])
def test_no_size_is_an_error_that_names_the_option(value):
    with pytest.raises(
        MmfastError, match=r"image.size is .*; it should be a whole number, or two as \[height, width\]"
    ):
        sizes.read("image.size", value)


@pytest.mark.parametrize("bad", [0, [8, 0], [-1, 4]])
def test_a_size_is_at_least_one(bad):
    with pytest.raises(MmfastError, match=r"modalities.image.size is (0|-1); it should be at least 1"):
        config(parts() | {"image": {"kind": "image", "size": bad}})


def test_the_middle_is_the_largest_part_of_that_shape():
    """Against a search over all boxes of whole pixels whose shape is right to half a pixel."""
    for whole in [(20, 50), (50, 20), (7, 7), (1, 9), (40, 20)]:
        for size in [(16, 32), (3, 4), (8, 8), (5, 1)]:
            left, top, right, bottom = sizes.middle(whole, size)
            height, width = bottom - top, right - left
            assert left >= 0 and top >= 0 and right <= whole[1] and bottom <= whole[0]
            assert abs(left - (whole[1] - right)) <= 1 and abs(top - (whole[0] - bottom)) <= 1
            assert height == whole[0] or width == whole[1]
            ratio = size[1] / size[0]
            assert abs(width - height * ratio) <= 0.5 or abs(height - width / ratio) <= 0.5 or 1 in (height, width)


# Readers.


def test_a_picture_of_that_shape_is_resized_whole(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "x.png")
    resized = as_floats(picture.resize((32, 16), Image.Resampling.LANCZOS))
    found = modalities.kind("image").read(tmp_path / "x.png", spec("image", size=[16, 32]))
    assert tuple(found.shape) == (3, 16, 32)
    torch.testing.assert_close(found, resized, atol=1e-6, rtol=0)
    torch.testing.assert_close(x_of(spec("image", size=[16, 32]), picture, "x"), resized, atol=1e-6, rtol=0)
    torch.testing.assert_close(x_of(spec("image", size=[16, 32]), pixels, "x"), resized, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "size", "part"), [
    ((20, 50), [20, 40], np.s_[:, 5:45]),
    ((50, 20), [40, 20], np.s_[5:45, :]),
    ((20, 50), [20, 50], np.s_[:, :]),
])  # fmt: skip
def test_the_middle_is_taken_of_image_mask_alpha_and_what_is_known(tmp_path, shape, size, part):
    """Not resized, so that every pixel is the file's."""
    rng = np.random.default_rng(2)
    pixels, mask = rng.integers(0, 256, (*shape, 4), dtype=np.uint8), rng.integers(0, 5, shape, dtype=np.uint8)
    pixels[..., 3] = rng.choice(np.array([0, 255], np.uint8), shape)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "x.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = modalities.kind("image").read(tmp_path / "x.png", spec("image", size=size))
    torch.testing.assert_close(found, as_floats(pixels[part][..., :3]), atol=1e-6, rtol=0)
    numbers = modalities.kind("mask").read(tmp_path / "m.png", spec("mask", size=size, classes=5))
    assert numbers.tolist() == mask[part].tolist()
    hidden = modalities.kind("masked").read(tmp_path / "a.png", spec("masked", size=size))
    assert hidden[-1].tolist() == (pixels[part][..., 3] / 255).tolist()
    image = modalities.kind("image")("image", spec("image", size=size), SpaceShape(*size))
    Image.fromarray(pixels[..., 3]).save(tmp_path / "k.png")
    known = image.parse_known(str(tmp_path / "k.png"))
    assert known.shape == (3, *size) and known[1].tolist() == (pixels[part][..., 3] > 127).tolist()


def test_what_is_cropped_and_resized_is_the_middle(tmp_path):
    """50 x 20 as 64 x 32 pixels: columns 5 to 44, enlarged. Lanczos reaches over the edge: compared within."""
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / "x.png")
    found = modalities.kind("image").read(tmp_path / "x.png", spec("image", size=[32, 64]))
    expected = as_floats(picture.crop((5, 0, 45, 20)).resize((64, 32), Image.Resampling.LANCZOS))
    torch.testing.assert_close(found[:, :, 6:-6], expected[:, :, 6:-6], atol=1e-6, rtol=0)


def test_a_folder_is_read_so_and_kept_so(tmp_path):
    truth = fill(tmp_path / "data")
    specs = {"image": spec("image", size=[20, 40]), "mask": spec("mask", classes=3, size=[20, 40])}
    options = {"root": str(tmp_path / "data"), "cache": str(tmp_path / "cache"), "cache_gb": 1.0}
    for _ in range(2):  # decoded, and then from the cache
        data = folder.open(folder.Spec(**options), specs, "image")
        batch = data.train.__getitems__(range(len(data.train)))
        for k, stem in enumerate(data.train.stems):
            pixels, mask = truth[stem]
            torch.testing.assert_close(batch.data["image"][k], as_floats(pixels[:, 5:45]), atol=1e-6, rtol=0)
            assert batch.data["mask"][k].tolist() == mask[:, 5:45].tolist()
    assert len([*(tmp_path / "cache").glob("*.rows")]) == 2
    tall = {name: replace(x, size=[40, 20]) for name, x in specs.items()}
    x = folder.open(folder.Spec(**options), tall, "image").train.__getitems__([0]).data["image"]
    assert x.shape == (1, 3, 40, 20)  # rows of another size are not these


# Backbones.


# Importing diffusers takes most of its time.
@pytest.mark.parametrize("kind", [x if x != "diffusers" else pytest.param(x, marks=pytest.mark.slow) for x in SMALL])
def test_each_backbone_learns_a_picture_by_value(kind):
    if kind == "diffusers":
        pytest.importorskip("diffusers")
    torch.manual_seed(0)
    module = backbones.kind(kind)
    net = module.Backbone(module.Spec(**SMALL[kind]), 2, (H, W))
    out = torch.nn.Conv2d(net.features, 1, 1)
    x, t = torch.randn(2, 2, H, W), torch.tensor([3, 500])
    truth = torch.randn(2, 1, H, W)
    optimizer = torch.optim.Adam([*net.parameters(), *out.parameters()], 3e-3)
    for _ in range(250):
        found = net(x, t)
        assert found.pixels.shape == (2, net.features, H, W) and found.before.shape == (2, net.reads)
        loss = (out(found.pixels) - truth).square().mean()
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02


def test_positions_are_of_the_row_and_then_of_the_column():
    found = dit.positions(12, (2, 5)).reshape(2, 5, 12)
    for row in range(2):
        for column in range(5):
            for k in range(3):
                for place, start in ((row, 0), (column, 6)):
                    angle = place * 10_000 ** (-k / 3)
                    assert float(found[row, column, start + k]) == pytest.approx(math.sin(angle), abs=1e-6)
                    assert float(found[row, column, start + 3 + k]) == pytest.approx(math.cos(angle), abs=1e-6)
    assert torch.equal(dit.positions(12, 4), dit.positions(12, (4, 4)))


@pytest.mark.parametrize(
    ("kind", "size", "says"),
    [
        ("unet", [8, 15], r"\[8, 15\] pixels do not halve 1 times: the size should be a multiple of 2"),
        ("dit", [7, 16], r"backbone.patch is 2; it should divide \[7, 16\] pixels"),
        ("diffusers", [8, 15], r"\[8, 15\] pixels do not halve 1 times: the size should be a multiple of 2"),
    ],
)
def test_a_size_that_does_not_divide_says_what_would(kind, size, says):
    if kind == "diffusers":
        pytest.importorskip("diffusers")
    with pytest.raises(MmfastError, match=says):
        build_model(config(parts(size), kind))


@pytest.mark.parametrize(("size", "says"), [([W, H], r"\[16, 8\]"), (H, "8"), (W, "16")])
def test_other_sizes_beside_the_anchors_are_refused(size, says):
    other = parts() | {"mask": {"kind": "mask", "classes": 3, "size": size}}
    with pytest.raises(MmfastError, match=rf"modalities.mask.size is {says}; it should be image's, \[8, 16\]"):
        build_model(config(other))


@pytest.mark.parametrize(("attention", "levels"), [([W], [True, False]), ([H], [True, True]), ([4], [False, True])])
def test_attention_stands_where_the_height_or_the_width_is_named(attention, levels):
    """Of 8 x 16 and of 4 x 8 pixels."""
    net = unet.Backbone(unet.Spec(channels=8, multipliers=[1, 2], blocks=1, attention=attention), 3, (H, W))
    has = [any(isinstance(layer, unet.Attention) for layer in level) for level in net.down]
    assert [has[0], has[2]] == levels


@pytest.mark.parametrize("size", [8, [8, 8]])
def test_a_square_is_the_same_by_one_number_and_by_two(size):
    one = config(parts((8, 8)) | {"image": {"kind": "image", "size": 8}}, "unet")
    two = config(parts((8, 8)) | {"image": {"kind": "image", "size": size}}, "unet")
    assert configs.to_yaml(one) == configs.to_yaml(two) and one.modalities["image"].size == 8
    a, b = build_model(one).state_dict(), build_model(two).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in {**a, **b})


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


def test_a_square_trains_as_it_did(tmp_path):
    pytest.importorskip("sklearn")
    few = {"train.steps": 5, "train.batch_size": 8, "train.warmup": 1, "evaluate.samples": 0, "train.sample_every": 0}
    few |= {"train.validate_every": 0, "train.tensorboard": "false", "train.device": "cpu"}
    given = [text for key, value in few.items() for text in (f"--{key}", str(value))]
    assert main(["train", "digits", "--out", str(tmp_path / "run"), "--quiet", *given]) == 0
    weights = load_file(tmp_path / "run" / "model.safetensors")
    shapes = repr(sorted((name, list(x.shape)) for name, x in weights.items()))
    assert hashlib.sha256(shapes.encode()).hexdigest()[:16] == NAMES
    for name, expected in FIVE_STEPS.items():
        assert float(weights[name].double().abs().sum()) == pytest.approx(expected, rel=1e-3), name


# The whole way.


def wide_run(tmp_path, backbone="mlp", **more):
    fill(tmp_path / "data")
    options = {"data": {"kind": "folder", "root": str(tmp_path / "data"), "cache_gb": 0, **more}}
    return config(parts(), backbone, **options)


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


def test_a_picture_of_a_picture_keeps_its_shape():
    x = torch.linspace(-1, 1, 3 * 2 * 4).reshape(3, 2, 4)
    image = modalities.kind("image")("image", spec("image", size=[2, 4]), SpaceShape(2, 4))
    plain = image.plain(x)
    assert plain.size == (4, 2) and np.abs(as_floats(plain).numpy() - x.numpy()).max() < 1 / 127
    shown = image.show(x, 64)
    assert shown.size == (64, 32) and shown.getpixel((63, 31)) == plain.getpixel((3, 1))
    mask = modalities.kind("mask")("mask", spec("mask", size=[4, 2]), SpaceShape(4, 2))
    assert mask.show(torch.zeros(4, 2, dtype=torch.int64), 64).size == (32, 64)
    masked = modalities.kind("masked")("m", spec("masked", size=[2, 4], of="image"), SpaceShape(2, 4))
    assert masked.show(torch.zeros(4, 2, 4), 64).size == (64, 32)
    page = np.asarray(sample_grid({"image": image}, {"image": x[None]}, "x"))
    top = next(y for y in range(page.shape[0]) if (page[y, 20] == np.asarray(shown)[0, 12]).all())
    assert (page[top : top + 32, 8 : 8 + 64] == np.asarray(shown)).all()
    assert top == 46 + (64 - 32) // 2  # in the middle of its place


def test_hidden_blocks_and_feature_maps():
    """Blocks of 4 of 8 x 16 pixels: 2 rows of 4; cells of 4 x 4 pixels."""
    made = parts() | {
        "masked": {"kind": "masked", "size": [H, W], "block": 4, "ratios": [0.5, 0.5]},
        "map": {"kind": "feature_map", "dim": 2, "cells": [2, 4]},
    }
    model = build_model(config(made, "unet"))
    image = torch.rand(3, 3, H, W) * 2 - 1
    seen = model.part("masked").derive(image, 0, torch.arange(3))[:, -1]
    blocks = seen.reshape(3, 2, 4, 4, 4).amin((2, 4))
    assert torch.equal(blocks.repeat_interleave(4, 1).repeat_interleave(4, 2), seen)
    assert blocks.sum((1, 2)).tolist() == [4.0] * 3
    cells = torch.randn(1, 2, 2, 4)
    laid = model.part("map").encode(cells)
    assert laid.shape == (1, 2, H, W)
    unit = cells / cells.square().mean().sqrt()
    torch.testing.assert_close(laid, unit.repeat_interleave(4, 2).repeat_interleave(4, 3), atol=1e-5, rtol=1e-4)
    drawn = generate(model, config(made, "unet"), 1)
    assert drawn["map"].shape == (1, 2, 2, 4) and drawn["masked"].shape == (1, 4, H, W)
    with pytest.raises(MmfastError, match=r"map.cells is \[3, 4\]; it should divide the image's 8 x 16"):
        build_model(config(made | {"map": {"kind": "feature_map", "dim": 2, "cells": [3, 4]}}))


def test_latents_have_the_images_shape(tmp_path, monkeypatch):
    (tmp_path / "halves.py").write_text(
        "import torch.nn.functional as F\n"
        "class Net:\n"
        "    def encode(self, x): return F.pixel_unshuffle(x, 2)\n"
        "    def decode(self, z): return F.pixel_shuffle(z, 2)\n"
        "class Tall(Net):\n"
        "    def encode(self, x): return F.pixel_unshuffle(x, 2).transpose(2, 3)\n"
        "    def decode(self, z): return F.pixel_shuffle(z.transpose(2, 3), 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("mmfast.trust.check_code", lambda *_: None)
    image = {"kind": "image", "channels": 3, "size": [H, W], "autoencoder": {"network": "halves:Net"}}
    made = config({"image": image}, "unet")
    model = build_model(made)
    assert model.shape == (12, H // 2, W // 2) and generate(model, made, 1)["image"].shape == (1, 3, H, W)
    image["autoencoder"] = {"network": "halves:Tall"}
    with pytest.raises(MmfastError, match=r"\[1, 12, 8, 4\] .* should be \[1, channels, rows, columns\]"):
        build_model(config({"image": image}, "unet"))


def test_diffusers_draws_what_is_exported(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from mmfast.export import to_diffusers

    made = config({"image": {"kind": "image", "channels": 3, "size": [H, W]}}, "diffusers")
    model = build_model(made)
    torch.nn.init.normal_(model.out.weight, std=0.1)
    written = to_diffusers(model, made, tmp_path / "d", "ddim")
    assert json.loads((written / "unet" / "config.json").read_text())["sample_size"] == [H, W]
    pipeline = diffusers.DiffusionPipeline.from_pretrained(written)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=1, num_inference_steps=2).images[0].size == (W, H)
    x, t = torch.randn(2, 3, H, W), torch.tensor([3, 7])
    theirs = pipeline.unet(x, t - 1).sample
    torch.testing.assert_close(theirs, model(x, t, {}).anchor, atol=1e-5, rtol=1e-4)


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


# What check and init say.


def test_the_survey_tells_what_is_cropped_and_enlarged(tmp_path):
    fill(tmp_path / "data")
    odd = lambda size: {what for _, what in survey(config(parts(size), data=where)).odd}  # noqa: E731
    where = {"kind": "folder", "root": str(tmp_path / "data"), "cache_gb": 0}
    cropped, enlarged = "of another shape than the size in the config: the middle is taken", "smaller than the size in"
    assert odd((20, 50)) == set()
    assert odd((8, 16)) == {cropped}
    assert odd((8, 8)) == {"not square: the middle square is taken"}
    assert {x.startswith(enlarged) for x in odd((22, 55))} == {True}


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        ([(64, 48)] * 20, [24, 32]),
        ([(48, 64)] * 20, [32, 24]),
        ([(160, 90)] * 19 + [(90, 90)], [24, 40]),
        ([(160, 90)] * 10 + [(90, 90)] * 10, 32),
        ([(136, 128)] * 20, 32),  # an eighth of each would be gained at most
        ([(10, 20)] * 8, [10, 6]),
    ],
)
def test_init_proposes_a_rectangle_where_nearly_all_have_one_shape(tmp_path, pictures, expected):
    (tmp_path / "image").mkdir()
    for k, size in enumerate(pictures):
        Image.new("RGB", size, (k, 2 * k, 9)).save(tmp_path / "image" / f"{k}.png")
    found = guess(tmp_path, 32)
    size = found.modalities["image"]["size"]
    assert size == expected
    build_model(configs.from_plain(proposed(found, 4), "init"))  # whose network halves that
    assert math.prod(sizes.height_width(size)) <= 32 * 32


def test_a_map_of_the_images_shape_is_guessed(tmp_path):
    for name in ("image", "map"):
        (tmp_path / name).mkdir()
    for k in range(4):
        Image.new("RGB", (64, 48)).save(tmp_path / "image" / f"{k}.png")
        np.save(tmp_path / "map" / f"{k}.npy", np.ones((5, 3, 4), np.float32))
    assert guess(tmp_path, 32).modalities["map"] == {"kind": "feature_map", "dim": 5, "cells": [3, 4]}


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
