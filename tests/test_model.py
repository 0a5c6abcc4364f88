"""Backbones and the model: the contract that any backbone keeps, what is told, and where each encoding goes."""

import math

import fresh
import optional
import pytest
import torch
from torch import nn

from mmfast import backbones, bridge, carried, none
from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.modalities import SpaceShape, kind
from mmfast.model import Model
from mmfast.ops import Block
from mmfast.schedule import Schedule

SMALL = {
    "unet": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "head_channels": 8},
    "adm": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "heads": 2, "classes": 3},
    "mlp": {"width": 32, "blocks": 2, "features": 8},
    "diffusers": {"block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
                  "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4},
    "dit": {"width": 16, "blocks": 3, "heads": 2, "features": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", backbones.KINDS)
def test_a_backbone_returns_features_and_every_parameter_learns(name):
    if name == "diffusers":
        optional.diffusers()
    torch.manual_seed(0)
    module = backbones.kind(name)
    backbone = module.Backbone(module.Spec(**SMALL[name]), 5, 8)
    for p in backbone.parameters():  # what starts at zero would hide what is behind it
        nn.init.normal_(p, std=0.1)
    x, t = torch.randn(3, 5, 8, 8), torch.tensor([1, 500, 1000])
    features = backbone(x, t).pixels
    assert features.shape == (3, backbone.features, 8, 8)
    features.square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in backbone.parameters())
    # Each example by itself, and the time matters.
    assert torch.allclose(backbone(x[1:2], t[1:2]).pixels, features[1:2], atol=1e-5)
    assert not torch.allclose(backbone(x, t.flip(0)).pixels, features, atol=1e-3)


@pytest.mark.parametrize("name", backbones.KINDS)
def test_the_encoder_is_read_before_the_decoder_is_told(name):
    """`told` moves the pixels' features and not what was read; `beside`, as the time, moves both; None is zeros."""
    if name == "diffusers":
        optional.diffusers()
    torch.manual_seed(0)
    module = backbones.kind(name)
    backbone = module.Backbone(module.Spec(**SMALL[name]), 5, 8)
    for p in backbone.parameters():
        nn.init.normal_(p, std=0.1)
    x, t = torch.randn(3, 5, 8, 8), torch.tensor([1, 500, 1000])
    plain = backbone(x, t)
    assert plain.before.shape == (3, backbone.reads)
    more, zeros = torch.randn(3, backbone.embedding_width), torch.zeros(3, backbone.embedding_width)
    told, beside = backbone(x, t, zeros, more), backbone(x, t, more, zeros)
    assert torch.equal(told.before, plain.before) and not torch.allclose(told.pixels, plain.pixels, atol=1e-3)
    assert not torch.allclose(beside.before, plain.before, atol=1e-3)
    assert not torch.allclose(beside.pixels, told.pixels, atol=1e-3)
    without = backbone(x, t, zeros, zeros)
    assert all(torch.equal(a, b) for a, b in zip(without[:2], plain[:2], strict=True))
    # The levels are the same features, with the input first; the MLP has none.
    assert bool(plain.levels) == (name != "mlp") == hasattr(backbone, "levels")
    for a, b in zip(told.levels, plain.levels, strict=True):
        assert torch.equal(a, b)


def test_the_unet_is_read_at_the_end_of_every_level_and_in_the_middle():
    """Of each the means over the quarters: seen where the blocks hand on."""
    torch.manual_seed(0)
    module = backbones.kind("unet")
    backbone = module.Backbone(module.Spec(**{**SMALL["unet"], "blocks": 2}), 5, 8)
    for p in backbone.parameters():
        nn.init.normal_(p, std=0.1)
    seen = {}
    for i, block in enumerate(backbone.down):
        block.register_forward_hook(lambda module, inputs, out, i=i: seen.__setitem__(i, out))
    backbone.middle.register_forward_hook(lambda module, inputs, out: seen.__setitem__("middle", out))
    before = backbone(torch.randn(2, 5, 8, 8), torch.tensor([1, 500])).before
    # Two blocks of 8 x 8, the way down, two blocks of 4 x 4.
    want = []
    for level in (seen[1], seen[4], seen["middle"]):
        half = level.shape[-1] // 2
        want.append(level.unflatten(3, (2, half)).unflatten(2, (2, half)).mean((3, 5)).flatten(1))
    torch.testing.assert_close(before, torch.cat(want, 1))


def test_a_size_that_does_not_halve_is_refused():
    module = backbones.kind("unet")
    with pytest.raises(ValueError, match=r"backbone.multipliers.*10 pixels"):
        module.Backbone(module.Spec(channels=8, multipliers=[1, 1, 1]), 3, 10)


class Echo(nn.Module):
    """A backbone of one's own: its input is its features, and what was told is seen in the first of them."""

    embedding_width = 6

    def __init__(self, channels, size):
        super().__init__()
        self.features, self.reads = channels, channels

    def forward(self, x, t, beside=None, told=None):
        self.beside, self.told = beside, told
        extra = 0 if told is None else told.sum(1)[:, None, None, None]
        return backbones.Features(x + extra, x.mean((2, 3)))


def make(space, weight):
    room = SpaceShape(8, 8, 1 if space == "shared" else None)
    parts = {
        name: kind(name)(name, kind(name).Spec(**options), room)
        for name, options in {"image": {"channels": 1, "size": 8}, "label": {"classes": 4}, "mask": {"size": 8}}.items()
    }
    schedule = Schedule.cosine(1000, {"label": weight, "mask": weight})
    return Model("image", parts, schedule, Echo, space)


def test_any_backbone_can_be_put_in_and_own_channels_are_blocks():
    model = make("own", carried())
    assert model.channels == 1 + 3 + 1 and model.starts == {"label": 1, "mask": 4}
    data = {"label": torch.tensor([2, 0]), "mask": torch.zeros(2, 8, 8, dtype=torch.long)}
    encodings = model.encode(data)
    block = model.in_space("label", encodings["label"])
    assert isinstance(block, Block) and block.start == 1 and block.channels == 5
    prediction = model(torch.randn(2, 5, 8, 8), torch.tensor([3, 4]), {})
    assert prediction.anchor.shape == (2, 1, 8, 8)
    assert prediction.heads["label"].shape == (2, 4) and prediction.heads["mask"].shape == (2, 2, 8, 8)


def test_shared_channels_add_into_the_anchors():
    model = make("shared", bridge(2.0))
    assert model.channels == 1
    E = model.encode({"label": torch.tensor([1]), "mask": torch.zeros(1, 8, 8, dtype=torch.long)})
    assert E["label"].shape == (1, 1, 8, 8) and not isinstance(model.in_space("label", E["label"]), Block)
    with pytest.raises(ValueError, match="W_0"):
        make("shared", carried())


def test_only_what_is_given_is_told_whatever_the_rest_holds():
    model = make("own", carried())
    label = torch.tensor([3, 1])
    encodings = {"label": model.part("label").encode(label), "mask": torch.full((2, 1, 8, 8), float("nan"))}
    anchor = torch.full((2, 1, 8, 8), 0.5)
    given = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    times = model.times(torch.tensor([3, 4]), given)
    assert times.tolist() == [[0, 3, 3], [4, 0, 4]]
    told = model.tell(anchor, encodings, times)
    assert torch.equal(told["image"][0], anchor[0]) and not told["image"][1].any()
    assert not told["label"][0].any() and torch.equal(told["label"][1], encodings["label"][1])
    assert not told["mask"].any()
    assert bool(model(torch.randn(2, 5, 8, 8), times, told).anchor.isfinite().all())


def test_every_modality_is_seen_at_its_time():
    """By blocks: a given one as it is, an unknown one not at all, the rest as z_t has it; the label is told apart."""
    model = make("own", carried())
    encodings = model.encode({"label": torch.tensor([2, 0, 1]), "mask": torch.ones(3, 8, 8, dtype=torch.long)})
    anchor, z = torch.full((3, 1, 8, 8), 0.3), torch.randn(3, 5, 8, 8)
    # Image, label and mask: given in turn; of the rest one at T and one at 5.
    times = torch.tensor([[0, 1000, 5], [5, 0, 1000], [1000, 5, 0]])
    seen = model._seen(z, times, model.tell(anchor, encodings, times))
    assert torch.equal(seen[:, 0], torch.stack((anchor[0, 0], z[1, 0], z[2, 0])))
    assert not seen[:2, 1:4].any() and torch.equal(seen[2, 1:4], z[2, 1:4])
    assert (
        torch.equal(seen[0, 4], z[0, 4]) and not seen[1, 4].any() and torch.equal(seen[2, 4], encodings["mask"][2, 0])
    )
    # The encoder is told the times, but of the label, when it is given, no more than when it is unknown.
    assert not model._beside(seen, times).any()  # at first they say nothing
    for parameter in model.time_of.parameters():
        nn.init.normal_(parameter)
    swapped = times.clone()
    swapped[1, 1] = 1000
    beside = [model._beside(seen, x) for x in (times, swapped, times.flip(0))]
    assert torch.equal(beside[0], beside[1]) and not torch.equal(beside[0], beside[2])
    told = model._told(seen, times == 0, model.tell(anchor, encodings, times))
    code = torch.cat((encodings["label"][1, :, 0, 0], torch.ones(1)))
    assert not told[[0, 2]].any()
    torch.testing.assert_close(told[1], model.tell_decoder["label"].weight @ code)


def test_what_leaves_no_trace_has_no_channels_of_noise():
    """W = none: the label has none at all, the mask one in which it is seen where it is given."""
    model = make("own", none())
    assert model.traced == () and model.channels == 1 and model.terms({"label": torch.zeros(1)}) == {}
    assert model.backbone.features == 2 and list(model.time_of) == ["mask"]
    encodings = model.encode({"mask": torch.ones(2, 8, 8, dtype=torch.long)})
    times = torch.tensor([[7, 7, 0], [7, 7, 7]])
    z = torch.randn(2, 1, 8, 8)
    seen = model._seen(z, times, model.tell(None, encodings, times))
    assert (
        torch.equal(seen[:, 0], z[:, 0]) and torch.equal(seen[0, 1], encodings["mask"][0, 0]) and not seen[1, 1].any()
    )


def test_the_pixels_of_a_masked_image_that_are_seen_stand_in_z_t():
    room = SpaceShape(4, 4)
    image = kind("image")("image", kind("image").Spec(channels=1, size=4), room)
    masked = kind("masked")("masked", kind("masked").Spec(channels=1, size=4), room)
    model = Model("image", {"image": image, "masked": masked}, Schedule.cosine(1000, {"masked": none()}), Echo)
    x, plane = torch.rand(2, 1, 4, 4) - 0.5, torch.zeros(2, 1, 4, 4)
    plane[:, :, :2] = 1
    encodings = model.encode({"masked": torch.cat((x, plane), 1)})
    times, z = torch.tensor([[900, 0], [900, 900]]), torch.randn(2, 1, 4, 4)
    seen = model._seen(z, times, model.tell(None, encodings, times))
    torch.testing.assert_close(seen[0, 0, :2], x[0, 0, :2])
    assert torch.equal(seen[0, 0, 2:], z[0, 0, 2:]) and torch.equal(seen[1, 0], z[1, 0])
    assert torch.equal(seen[0, 1], plane[0, 0]) and not seen[1, 1].any()


@pytest.mark.parametrize("target", ["x0", "v", "eps"])
def test_beside_visible_pixels_the_hidden_ones_fade_with_the_signal(target):
    """By sqrt(abar_t), so that at T a network that restores sees what is visible alone.

    The cosine schedule keeps abar_T at 2.4e-9, to 5e-5 of z_T.
    """
    room = SpaceShape(4, 4)
    parts = {"image": kind("image")("image", kind("image").Spec(channels=1, size=4), room)}
    parts["masked"] = kind("masked")("masked", kind("masked").Spec(channels=1, size=4), room)
    model = Model("image", parts, Schedule.cosine(1000, {"masked": none()}), Echo, target=target)
    x, plane = torch.rand(3, 1, 4, 4) - 0.5, torch.zeros(3, 1, 4, 4)
    plane[:, :, :2] = 1
    encodings = model.encode({"masked": torch.cat((x, plane), 1)})
    times, z = torch.tensor([[500, 0], [1000, 0], [500, 500]]), torch.randn(3, 1, 4, 4)
    seen = model._seen(z, times, model.tell(None, encodings, times))
    t = torch.tensor([500.0, 1000.0, 500.0])
    signal = torch.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    fade = torch.ones(3) if target == "eps" else signal
    torch.testing.assert_close(seen[:2, 0, :2], x[:2, 0, :2])
    torch.testing.assert_close(seen[:2, 0, 2:], fade[:2, None, None] * z[:2, 0, 2:], atol=3e-4, rtol=1e-4)
    torch.testing.assert_close(seen[2, 0], fade[2] * z[2, 0], atol=1e-4, rtol=1e-4)


def test_the_hidden_ones_fade_whatever_else_there_is():
    """A label beside the masked image, which stands in no pixel: the image fades as it does without."""
    room = SpaceShape(4, 4)
    parts = {"image": kind("image")("image", kind("image").Spec(channels=1, size=4), room)}
    parts["masked"] = kind("masked")("masked", kind("masked").Spec(channels=1, size=4), room)
    without = Model("image", parts, Schedule.cosine(1000, {"masked": none()}), Echo, target="x0")
    parts = {**parts, "label": kind("label")("label", kind("label").Spec(classes=3), room)}
    model = Model("image", parts, Schedule.cosine(1000, {"masked": none(), "label": none()}), Echo, target="x0")
    z, times = torch.randn(2, 1, 4, 4), torch.tensor([[500, 500], [900, 900]])
    image = model._seen(z, times[:, [0, 1, 1]], {})[:, 0]
    torch.testing.assert_close(image, without._seen(z, times, {})[:, 0])
    assert not torch.allclose(image, z[:, 0], atol=0.1)


def test_restoring_an_image_of_which_all_is_hidden_is_generation():
    room = SpaceShape(8, 8)
    parts = {"image": kind("image")("image", kind("image").Spec(channels=1, size=8), room)}
    parts["masked"] = kind("masked")("masked", kind("masked").Spec(channels=1, size=8), room)
    mlp = backbones.kind("mlp")
    spec = mlp.Spec(width=16, blocks=1, features=4)
    schedule = Schedule.cosine(1000, {"masked": none()})
    model = Model("image", parts, schedule, lambda channels, size: mlp.Backbone(spec, channels, size))
    for weight in model.parameters():  # some of which are zero at first
        torch.nn.init.normal_(weight)
    hidden = torch.cat((torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)), 1)
    encodings, z = model.encode({"masked": hidden}), torch.randn(2, 1, 8, 8)
    given, nothing = torch.tensor([[500, 0]] * 2), torch.tensor([[500, 500]] * 2)
    said = [model(z, times, model.tell(None, encodings, times)) for times in (given, nothing)]
    assert torch.equal(said[0].anchor, said[1].anchor)
    assert torch.equal(said[0].heads["masked"], said[1].heads["masked"])


def test_hidden_parts_of_another_image_leave_the_anchor_alone():
    """`masked` of a second image is seen beside the anchor, whatever its channels."""
    room = SpaceShape(4, 4)
    options = {"image": (1, "image"), "photo": (3, "image"), "masked": (3, "masked")}
    parts = {name: kind(k)(name, kind(k).Spec(channels=c, size=4), room) for name, (c, k) in options.items()}
    parts["masked"].source = "photo"
    model = Model("image", parts, Schedule.cosine(1000, {"photo": carried(), "masked": none()}), Echo)
    masked = torch.cat((torch.rand(2, 3, 4, 4), torch.ones(2, 1, 4, 4)), 1)
    encodings, z = model.encode({"masked": masked}), torch.randn(2, 4, 4, 4)
    times = torch.tensor([[900, 900, 0], [900, 900, 900]])
    told = model.tell(None, encodings, times)
    seen = model._seen(z, times, told)
    assert torch.equal(seen[:, :4], z) and torch.equal(seen[0, 4:], encodings["masked"][0]) and not seen[1, 4:].any()
    assert model(z, times, told).heads["masked"].shape == (2, 3, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_runs_in_its_own_type(dtype):
    model = build_model(configs.load("digits", [("backbone.width", "16")])).to(dtype)
    z, t = torch.randn(2, model.channels, 8, 8, dtype=dtype), torch.tensor([3, 700])
    prediction = model(z, t, {})
    assert prediction.anchor.dtype == dtype
    # Encodings and heads stay float32: the steps of sampling are.
    assert all(x.dtype == torch.float32 for x in prediction.heads.values())
    assert all(p.dtype == torch.float32 for name in model.parts for p in model.part(name).state_dict().values())


def test_a_network_that_is_not_told_has_one_time():
    """The anchor's, whatever is given or unknown."""
    own = torch.tensor([[3, 9, 1000], [4, 1000, 7]])
    told, untold = (build_model(configs.load("digits", [("told", value)])) for value in ("true", "false"))
    given = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert told.times(own, given).tolist() == [[3, 0, 1000], [4, 1000, 7]]
    assert untold.times(own, given).tolist() == [[3, 3, 3], [4, 4, 4]]


def test_what_does_not_fade_cannot_be_unknown():
    """A shift ends at W_T = 1: at T its block is no noise, and is seen."""
    with pytest.raises(ValueError, match="leaves a trace at T"), pytest.warns(UserWarning):
        pairs = [("modalities.mask.weight", "{kind: shift}"), ("modalities.mask.unknown_probability", "0.2")]
        build_model(configs.load("digits", pairs))


@pytest.mark.parametrize("space", ["own", "shared"])
def test_what_is_told_takes_the_place_of_its_noised_view_in_own_channels_alone(space):
    """Given x_i, its block of z_t is noise around it, independent of all else: what the network says is not of it."""
    model = make(space, bridge(2.0) if space == "shared" else carried())
    torch.nn.init.normal_(model.out.weight)
    encodings = model.encode({"label": torch.tensor([3, 1, 0]), "mask": torch.ones(3, 8, 8, dtype=torch.long)})
    anchor, given = torch.full((3, 1, 8, 8), 0.3), torch.eye(3).roll(1, 1)
    t = model.times(torch.tensor([3, 4, 5]), given)
    told = model.tell(anchor, encodings, t)
    z = torch.randn(3, model.channels, 8, 8)
    # What it is told counts: each example's own modality.
    other = model.tell(anchor + 1, {"label": encodings["label"].roll(1, 0), "mask": -encodings["mask"]}, t)
    assert all(not torch.equal(a, b) for a, b in zip(model(z, t, told).anchor, model(z, t, other).anchor, strict=True))

    def moves(channel):
        other = z.clone()
        other[:, channel] += 1.0
        return [
            not torch.equal(a, b) for a, b in zip(model(z, t, told).anchor, model(other, t, told).anchor, strict=True)
        ]

    if space == "shared":
        assert moves(0) == [True, True, True]
    else:
        # The anchor's channel, the label's three and the mask's, for examples told the label, the mask, the anchor.
        assert moves(0) == [True, True, False]
        assert [moves(channel) for channel in (1, 2, 3)] == [[False, True, True]] * 3
        assert moves(4) == [True, False, True]


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("space", ["own", "shared"])
def test_every_target_and_space_trains(tmp_path, space, target):
    from mmfast.training.objective import losses

    pairs = [("space", space), ("loss.target", target), ("loss.min_snr_gamma", "5"), ("backbone.width", "32")]
    pairs += [("backbone.blocks", "2")]
    if space == "shared":
        pairs += [(f"modalities.{name}.weight.kind", "bridge") for name in ("label", "mask")]
    pairs += [(f"modalities.{name}.encoder", "learned") for name in ("label", "mask")]
    config = configs.load("digits", pairs)
    model, data = build_model(config), build_data(config)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    totals = []
    for step in range(24):
        numbers = torch.arange(step * 32, step * 32 + 32)
        total = torch.stack(list(losses(model, data.train.__getitems__(range(32)), numbers, config).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert all(p.grad is not None for p in model.parameters())
    assert sum(totals[-6:]) < 0.9 * sum(totals[:6])


def test_without_the_extension_it_runs_on_the_reference_and_says_so():
    code = """
import sys, warnings
sys.modules["_mmfast_cpu"] = None
import torch, mmfast
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    x = mmfast.ops.randn((2, 3), seed=1)
    mmfast.ops.randn((2, 3), seed=1)
from mmfast.ops.call import Noise
assert torch.equal(x, mmfast.ops.reference.normals(Noise((1, 0)), (2, 3), x.device))
texts = [str(w.message) for w in caught if "mmfast" in str(w.message)]
assert len(texts) == 1 and "plain torch" in texts[0] and "pip install" in texts[0], texts
assert mmfast.ops.backends.report()["cpu"]["available"] is False
"""
    done = fresh.run(code)
    assert done.returncode == 0, done.stderr


def test_the_kernels_are_built_where_there_is_a_compiler():
    """Else every test of them would be skipped, and nobody would know."""
    import shutil

    from mmfast.ops import backends

    assert backends.load("cpu")[1] is None or not any(map(shutil.which, ("c++", "g++", "clang++")))
