"""Every backbone on pictures that are no squares, and on squares by either form of their size."""

import json
import math

import optional
import pytest
import torch
from rectangles import SMALL, H, W, config, parts

from mmfast import backbones
from mmfast import config as configs
from mmfast.backbones import dit, unet
from mmfast.build import build_model
from mmfast.errors import MmfastError

# Seconds each, but for one: ADM is a U-Net too, and diffusers takes as long to import.
COSTLY = ("adm", "diffusers")


def small(kind):
    """A backbone of this kind over two channels, always with the same weights."""
    if kind == "diffusers":
        optional.diffusers()
    torch.manual_seed(0)
    module = backbones.kind(kind)
    return module.Backbone(module.Spec(**SMALL[kind]), 2, (H, W))


@pytest.mark.parametrize("kind", [pytest.param(x, marks=[pytest.mark.slow] * (x in COSTLY)) for x in SMALL])
def test_each_backbone_learns_a_picture_by_value(kind):
    net = small(kind)
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


@pytest.mark.parametrize("kind", [pytest.param(x, marks=[pytest.mark.slow] * (x in COSTLY)) for x in SMALL])
def test_without_the_decoder_the_encoder_says_the_same_and_only_it_learns(kind):
    net = small(kind)
    for p in net.parameters():  # what begins at zero passes no gradient on
        torch.nn.init.normal_(p, std=0.1)
    x, t = torch.randn(2, 2, H, W), torch.tensor([3, 500])
    beside, told = torch.randn(2, 2, net.embedding_width).unbind(1)
    whole, alone = net.eval()(x, t, beside, told), net(x, t, beside, told, decode=False)
    assert alone.pixels is None and torch.equal(alone.before, whole.before)
    for one, two in zip(alone.levels, whole.levels, strict=True):
        assert torch.equal(one, two)
    of_whole, of_alone = (
        torch.autograd.grad(y.before.square().sum(), net.parameters(), allow_unused=True) for y in (whole, alone)
    )
    assert [g is None for g in of_alone] == [g is None for g in of_whole] and any(g is None for g in of_alone)
    for one, two in zip(of_whole, of_alone, strict=True):
        assert one is two is None or torch.equal(one, two)


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
        ("unet", [8, 18], r"\[8, 18\] pixels do not halve 1 times in cells of 2: the size should be a multiple of 4"),
        ("dit", [7, 16], r"backbone.patch is 2; it should divide \[7, 16\] pixels"),
        ("diffusers", [8, 15], r"\[8, 15\] pixels do not halve 1 times: the size should be a multiple of 2"),
    ],
)
def test_a_size_that_does_not_divide_says_what_would(kind, size, says):
    if kind == "diffusers":
        optional.diffusers()
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
    net = unet.Backbone(unet.Spec(channels=8, multipliers=[1, 2], blocks=1, attention=attention, patch=1), 3, (H, W))
    has = [any(isinstance(layer, unet.Attention) for layer in level) for level in net.down]
    assert [has[0], has[2]] == levels


@pytest.mark.parametrize("size", [8, [8, 8]])
def test_a_square_is_the_same_by_one_number_and_by_two(size):
    one = config(parts((8, 8)) | {"image": {"kind": "image", "size": 8}}, "unet")
    two = config(parts((8, 8)) | {"image": {"kind": "image", "size": size}}, "unet")
    assert configs.to_yaml(one) == configs.to_yaml(two) and one.modalities["image"].size == 8
    a, b = build_model(one).state_dict(), build_model(two).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in {**a, **b})


def test_diffusers_draws_what_is_exported(tmp_path):
    diffusers = optional.diffusers()
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
