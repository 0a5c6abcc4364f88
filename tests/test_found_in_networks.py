"""Networks, modalities and losses: what a review of them found, each with the test that shows it mended."""

import math

import pytest
import torch
from torch import nn

from mmfast import MmfastError, Schedule, Weight, ops
from mmfast import config as configs
from mmfast.backbones import adm, unet
from mmfast.build import build_data, build_model
from mmfast.data.base import Batch
from mmfast.likelihood import bound
from mmfast.reverse import fit
from mmfast.run import Run
from mmfast.training import objective
from mmfast.training.balance import Uncertainty
from mmfast.training.objective import losses
from mmfast.training.trainer import Trainer
from mmfast.warm_start import load_adm

IMAGE = {"kind": "image", "channels": 1, "size": 8}
LABEL = {"kind": "label", "classes": 3}
MASK = {"kind": "mask", "classes": 2, "size": 8}
MLP = {"kind": "mlp", "width": 16, "blocks": 2, "features": 4}


def config(modalities, **more):
    plain = {"backbone": MLP, "schedule": {"T": 100}, **more}
    return configs.from_plain(
        {"anchor": "image", "data": {"kind": "digits"}, **plain, "modalities": modalities}, "test"
    )


def batch(count=4, lacking=0):
    """Images and labels; the last examples lack their labels."""
    g = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(count, 1, 8, 8, generator=g) - 1
    present = {"label": torch.arange(count) < count - lacking} if lacking else {}
    return Batch({"image": images, "label": torch.arange(count) % 3}, present)


def test_in_shared_channels_the_network_is_told_the_time_of_z_where_a_label_is_missing(monkeypatch):
    """Missing counts as unknown, whose time is T in channels of its own; z_t has one time here."""
    found = config({"image": IMAGE, "label": {**LABEL, "given_probability": 0.0}}, space="shared")
    model, seen, told = build_model(found), [], []
    real = ops.q_sample
    monkeypatch.setattr(objective.ops, "q_sample", lambda x, E, t, *a, **k: seen.append(t) or real(x, E, t, *a, **k))
    model.backbone.register_forward_pre_hook(lambda network, inputs: told.append(inputs[1]))
    losses(model, batch(8, lacking=4), torch.arange(8), found)
    assert torch.equal(told[0], seen[0]) and not bool((seen[0] == 100).any())


@pytest.mark.parametrize(("components", "copies"), [(40, 1), (24, 2), (64, 1)])
def test_components_on_a_grid_come_back_as_long_as_they_were(components, copies):
    """Padded cells are made up for by a scale, which must be taken out again: components keep their lengths."""
    vector = {"kind": "embedding", "dim": 70, "components": components, "layout": "grid", "diffused": True}
    part = build_model(config({"image": IMAGE, "vector": {**vector, "weight": {"kind": "carried"}}})).part("vector")
    x = torch.randn(200, 70, generator=torch.Generator().manual_seed(0)) + 1
    part.fit(x)
    found, E = part.from_encoding(part.encode(x)), part.encode(x)
    kept = part.of_numbers(part.numbers_of(x))  # what the components alone can tell
    torch.testing.assert_close(found, kept, rtol=1e-4, atol=1e-4)
    assert E[0].numel() == 64 and int((E[0] != 0).sum()) == copies * components


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("kind", ["unet", "adm"])
def test_the_finest_level_may_be_wider_than_channels(kind, patch):
    """As in ADM, multipliers[0] also scales the first and the last layer."""
    network = {"kind": kind, "channels": 8, "multipliers": [2, 4], "patch": patch, "attention": []}
    found = config({"image": IMAGE, "label": LABEL}, backbone=network)
    model = build_model(found)
    assert model.backbone.features == 16 and model.backbone.first.out_channels == 16
    assert model.backbone.embedding_width == 32  # of the time, four times `channels`
    parts = losses(model, batch(), torch.arange(4), found)
    sum(parts.values()).backward()
    assert all(math.isfinite(float(x)) for x in parts.values())


def test_group_normalisation_of_one_number_is_the_same_for_one_example_as_for_two():
    norm = unet.GroupNorm(16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 16, 1, 1)
    both = nn.functional.group_norm(x, 16, norm.weight, norm.bias)
    # Torch divides a difference of rounded numbers by sqrt(eps), 0.003.
    torch.testing.assert_close(norm(x), both, rtol=0, atol=1e-3)
    torch.testing.assert_close(norm(x[:1]), both[:1], rtol=0, atol=1e-3)
    wide = torch.randn(2, 16, 2, 2)
    torch.testing.assert_close(norm(wide), nn.functional.group_norm(wide, 16, norm.weight, norm.bias))


def test_adm_is_not_loaded_into_a_model_whose_last_normalisation_is_another():
    """All shapes would fit, and the model would compute something else."""
    network = {"kind": "adm", "channels": 64, "multipliers": [1, 1], "blocks": 1, "attention": []}
    rgb = {**IMAGE, "channels": 3}
    model = build_model(config({"image": rgb, "label": LABEL}, backbone=network, loss={"target": "eps"}))
    with pytest.raises(MmfastError, match=r"normalises 64 channels in 16 groups, and ADM in 32.*at least 128"):
        load_adm({}, model, new_attention_order=True)
    wide = {**network, "channels": 128, "blocks": 1, "multipliers": [1]}
    model = build_model(config({"image": rgb, "label": LABEL}, backbone=wide, loss={"target": "eps"}))
    assert isinstance(model.backbone, adm.Backbone)
    with pytest.raises(MmfastError, match="the checkpoint lacks"):
        load_adm({}, model, new_attention_order=True)


@pytest.mark.parametrize(
    ("kind", "weight", "space", "wanted"),
    [
        (LABEL, {"scale": 2}, "own", ("carried", 2.0)),
        (LABEL, {}, "own", ("carried", 1.0)),
        (MASK, {"kind": "carried"}, "own", ("carried", 1.5)),
        (MASK, {"scale": 0.7}, "own", ("carried", 0.7)),
        (MASK, {"kind": "bridge"}, "own", ("bridge", 1.0)),
        (LABEL, {"kind": "carried"}, "own", ("carried", 1.0)),
        (LABEL, {"scale": 0.5}, "shared", ("bridge", 0.5)),
    ],
)
def test_an_option_of_w_leaves_the_other_as_it_is_by_default(kind, weight, space, wanted):
    spec = config({"image": IMAGE, "other": {**kind, "weight": weight}}, space=space).modalities["other"]
    assert (spec.weight.kind, spec.weight.scale) == wanted


def test_a_pass_without_noise_needs_weights_that_fade():
    """At T its block would show the encoder the mask, which is unknown in that pass."""
    mask = {**MASK, "weight": {"kind": "shift"}}
    found = config({"image": IMAGE, "mask": mask, "label": LABEL}, train={"clean_pass": 1.0})
    data = batch()
    data.data["mask"] = torch.zeros(4, 8, 8, dtype=torch.int64)
    with pytest.raises(MmfastError, match=r"train\.clean_pass is above 0, but modalities\.mask\.weight leaves a trace"):
        losses(build_model(found), data, torch.arange(4), found)


def test_a_bound_needs_two_steps():
    model = build_model(config({"image": IMAGE, "label": LABEL}))
    model.schedule = Schedule.cosine(1, {"label": Weight("none")})
    for measure in (bound, fit):
        with pytest.raises(MmfastError, match="T is 1; for a bound it should be at least 2"):
            measure(model, batch())


def test_an_anchor_whose_loss_counts_nothing_has_no_weight_of_its_own(tmp_path):
    """By uncertainty its s_i would fall to the limit, and the objective with it."""
    image = {**IMAGE, "levels": 17, "loss_weight": 0.0}
    label = {**LABEL, "classes": 10}
    found = config({"image": image, "label": label}, loss={"balance": "uncertainty"}, train={"device": "cpu"})
    trainer = Trainer(found, Run.start(tmp_path / "run", found), build_data(found))
    assert isinstance(trainer.balance, Uncertainty) and trainer.balance.names == ("label",)
