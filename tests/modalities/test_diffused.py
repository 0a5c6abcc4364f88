"""What is diffused itself: no head, a block of its own at every time, and the simple loss of its encoding."""

import pytest
import torch
from tiny import tiny

from mmfast import carried
from mmfast.build import build_data, build_model
from mmfast.errors import MmfastError
from mmfast.evaluate import likelihood
from mmfast.generate import generate
from mmfast.likelihood import bound
from mmfast.modalities import Modality, SpaceShape, diffused_itself, kind
from mmfast.modalities.base import WeightSpec
from mmfast.modalities.image import Image, ImageSpec
from mmfast.model import Model
from mmfast.schedule import Schedule
from mmfast.training import fit

# By kind: its options, and examples of it.
KINDS = {
    "label": ({"classes": 5}, lambda: torch.arange(4)),
    "mask": ({"classes": 3, "size": 8, "ignore": 255}, lambda: torch.randint(-1, 3, (4, 8, 8))),
    "embedding": ({"dim": 20}, lambda: torch.randn(4, 20)),
    "caption": ({"dim": 20}, lambda: torch.randn(4, 20)),
    "feature_map": ({"dim": 3, "cells": 4}, lambda: torch.randn(4, 3, 4, 4)),
    "table": ({"columns": ["a", "b"], "means": [10.0, 0.0], "scales": [2.0, 0.1]}, lambda: torch.randn(4, 2) + 5),
    "image": ({"channels": 1, "size": 8}, lambda: torch.rand(4, 1, 8, 8) * 2 - 1),
}


def part(name, **options):
    """A part of this kind, diffused itself, with its head, and examples."""
    torch.manual_seed(0)
    found, make = KINDS[name]
    spec = kind(name).Spec(**found, **options)
    made = diffused_itself(kind(name))("x", spec, SpaceShape(8, 8))
    made.build_head(16)
    return made, make()


def same(made, x, y):
    """Whether two are one, as far as the kind tells: of vectors the direction, of masks what is known."""
    if made.kind == "mask":
        return torch.equal(torch.where(x < 0, x, y), x)
    if made.kind in ("embedding", "caption", "feature_map"):
        return torch.cosine_similarity(x.flatten(1), y.flatten(1)).min() > 1 - 1e-6
    return torch.allclose(x.float(), y.float(), atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_encoded_comes_back(name):
    made, x = part(name)
    assert same(made, x, made.decode(made.encode(x)))
    assert made.decode(made.encode(x).half()).dtype == x.dtype  # a model may be cast


@pytest.mark.parametrize("name", KINDS)
def test_the_network_says_the_encoding(name):
    """A prediction for each number of E(x), from the decoder's features; its loss is the mean squared error of what
    is known."""
    made, x = part(name)
    features = torch.randn(4, 16, 8, 8, requires_grad=True)
    said, E = made.head(features), made.encode(x)
    assert made.diffused and made.reads == "decoder" and not made.uniform
    assert said.shape == E.shape and torch.equal(made.encode_prediction(said), said)
    known = torch.ones_like(E) if name != "mask" else (x >= 0).float()[:, None].expand_as(E)
    error = ((said - E) * known).double().square().flatten(1).sum(1) / known.flatten(1).sum(1)
    torch.testing.assert_close(made.loss(said, x).double(), error)
    made.loss(said, x).sum().backward()
    assert (features.grad.flatten(1).abs().amax(1) > 0).all()


def test_what_is_one_for_the_image_is_read_off_all_of_it():
    made, _ = part("label")
    far = torch.zeros(1, 16, 8, 8)
    far[:, :, 0, 0] = 3.0
    assert made.head(far).shape == (1, 4, 1, 1) and not torch.allclose(made.head(far), made.head(0 * far), atol=1e-3)


REFUSED = {
    "a learned encoder": ("label", {"encoder": "learned"}, None),
    "another weight": ("label", {"weight": WeightSpec("bridge")}, None),
    "shared channels": ("mask", {}, 1),
    "hidden parts": ("masked", {"channels": 1, "size": 8}, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_diffused_is_refused(name):
    which, options, channels = REFUSED[name]
    given = {**KINDS.get(which, ({}, None))[0], **options}
    spec = kind(which).Spec(**given)
    with pytest.raises(MmfastError, match=r"modalities\.x\.diffused is true"):
        diffused_itself(kind(which))("x", spec, SpaceShape(8, 8, channels))


def test_a_kind_without_a_way_back_is_refused():
    class OneWay(Modality):
        kind = "one way"

    spec = kind("label").Spec()
    with pytest.raises(MmfastError, match=r"a one way has no way back from its encoding \(from_encoding\)"):
        diffused_itself(OneWay)("x", spec, SpaceShape(8, 8))


def test_the_anchor_is_refused():
    with pytest.raises(MmfastError, match=r"modalities\.image is the anchor, which is diffused itself"):
        tiny(modalities__image__diffused="true")


# --- in the model -------------------------------------------------------------------------------------------------


class Seen(torch.nn.Module):
    """A backbone that keeps what it is shown."""

    features = embedding_width = reads = 4

    def forward(self, x, t, beside=None, told=None):
        self.x, self.told = x, told
        from mmfast.backbones.features import Features

        return Features(x.new_zeros(len(x), 4, *x.shape[2:]), x.new_zeros(len(x), 4))


def test_the_network_sees_the_block_at_its_time():
    """Given: W_0 E(x); unknown: nothing; else z_t's own. The decoder is told nothing beside it."""
    image = Image("image", ImageSpec(channels=1, size=8), SpaceShape(8, 8))
    label = diffused_itself(kind("label"))("label", kind("label").Spec(classes=4), SpaceShape(8, 8))
    network = Seen()
    schedule = Schedule.cosine(10, {"label": carried(0.25)})
    model = Model("image", {"image": image, "label": label}, schedule, lambda channels, size: network)
    z, x = torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3])
    times = torch.tensor([[5, 0], [5, 10], [5, 7]])
    model(z, times, model.tell(None, model.encode({"label": x}), times))
    E = label.encode(x)[0].expand(3, 8, 8)
    torch.testing.assert_close(network.x[0, 1:], 0.25 * E)
    assert torch.equal(network.x[1, 1:], torch.zeros(3, 8, 8)) and torch.equal(network.x[2, 1:], z[2, 1:])
    assert torch.equal(network.x[:, :1], z[:, :1]) and not bool(network.told.any()) and not model.tell_decoder


WHOLE = {
    f"modalities__{name}__{key}": value
    for name, loss in (("label", 0.1), ("mask", 0.1))
    for key, value in {
        "diffused": "true",
        "loss_weight": loss,
        "given_probability": 0,
        "unknown_probability": 0.1,
        "own_time_probability": 0.9,
    }.items()
} | {"modalities__image__given_probability": 0, "modalities__image__given_steps": "null"}


def test_a_model_of_it_has_no_bound():
    config = tiny(**WHOLE, train__steps=1)
    model, data = build_model(config), build_data(config)
    batch = data.test.__getitems__(range(4))
    with pytest.raises(MmfastError, match=r"modalities\.label\.diffused: the bound needs a head, and there is none"):
        bound(model, batch)
    with pytest.raises(MmfastError, match=r"modalities\.label\.diffused is true"):
        model.part("label").nll(torch.zeros(4, 9, 1, 1), batch.data["label"])
    assert {key.partition(".")[0] for key in likelihood(model, config, data, batch)} == {"x0_error"}


@pytest.mark.parametrize("heads", ["soft", "sampled"])
def test_what_is_given_comes_back_and_the_rest_is_drawn(heads):
    config = tiny(**WHOLE)
    model, x = build_model(config), build_data(config).test.__getitems__(range(3)).data
    for given in ([], ["image"], ["label"], ["label", "mask"]):
        drawn = generate(model, config, 3, {name: x[name] for name in given}, heads=heads)
        assert all(torch.equal(drawn[name], x[name]) for name in given)
        for name in model.parts:
            model.part(name).check(drawn[name], name)


@pytest.mark.slow
def test_it_learns_every_direction(tmp_path):
    """Digits, in a minute: labels and masks read off images, and images drawn for a label."""
    options = {"backbone": "{kind: mlp, width: 128, blocks: 3, features: 16}", "train__batch_size": 128}
    config = tiny(**{**WHOLE, **options, "train__steps": 500, "train__decay": "cosine", "train__ema_decay": 0.98,
                     "train__learning_rate": 0.003, "sample__steps": 20})  # fmt: skip
    data = build_data(config)
    model = fit(config, str(tmp_path / "run"), data, quiet=True).ema.model
    x = data.test.__getitems__(range(200)).data
    read = generate(model, config, 200, {"image": x["image"]})
    assert model.part("label").score(read["label"], x["label"]) > 0.85
    assert model.part("mask").score(read["mask"], x["mask"]) > 0.75
    drawn = generate(model, config, 200, {"label": x["label"]})["image"]
    assert model.part("label").score(data.judges()["label"](drawn), x["label"]) > 0.7
