"""Faults of rare combinations of modalities, that a reader found: each by what it did."""

import json
import threading

import numpy as np
import pytest
import torch

from mmfast import MmfastError, Schedule
from mmfast import config as configs
from mmfast import evaluate as evaluation
from mmfast.build import build_model
from mmfast.data.base import Batch, Data, InMemory
from mmfast.export import _unet, to_diffusers
from mmfast.from_run import take_weights
from mmfast.generate import generate
from mmfast.modalities.codes import unit_rms
from mmfast.modes import evaluating
from mmfast.run import Run
from mmfast.sample import sample
from mmfast.training import objective, train
from mmfast.training.objective import losses

IMAGE = {"kind": "image", "channels": 1, "size": 8}
LABEL = {"kind": "label", "classes": 3}
MASK = {"kind": "mask", "classes": 2, "size": 8}


def config(modalities, **more):
    plain = {"backbone": {"kind": "mlp", "width": 16, "blocks": 2, "features": 4}, "schedule": {"T": 100}, **more}
    return configs.from_plain(
        {"anchor": "image", "data": {"kind": "digits"}, **plain, "modalities": modalities}, "test"
    )


def random(model, scale=0.1, seed=0):
    """The model with weights that say something."""
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += scale * torch.randn(p.shape, generator=g)
    return model.eval()


def test_a_diffused_label_is_drawn_first_by_the_network():
    """Its kind's prior is in the terms of a head, which it has not."""
    label = {**LABEL, "diffused": True, "weight": {"kind": "carried"}, "class_counts": [1, 2, 3]}
    found = config({"image": IMAGE, "label": label})
    drawn = generate(random(build_model(found)), found, 4, first=["label"], steps=2)
    assert drawn["label"].shape == (4,) and bool((drawn["label"] < 3).all())


def test_what_the_model_drew_may_lie_anywhere(monkeypatch):
    """An image that was drawn first, by an untrained network without bounds, is given to what comes next."""
    found = config({"image": IMAGE, "label": LABEL}, loss={"target": "eps"})
    model = random(build_model(found), 1.0)
    drawn = generate(model, found, 3, first=["image"], clamp=None, steps=3)
    assert float(drawn["image"].abs().max()) > 100
    with pytest.raises(MmfastError, match=r"given\['image'\] runs from"):
        generate(model, found, 3, {"image": drawn["image"]}, steps=2)
    assert torch.equal(generate(model, found, 2, seed=np.int64(3), steps=2)["image"],
                       generate(model, found, 2, seed=3, steps=2)["image"])  # fmt: skip


def test_hidden_parts_of_a_second_image_are_compared_with_it(monkeypatch):
    masked = {"kind": "masked", "of": "second", "channels": 1, "size": 8, "block": 4}
    found = config({"image": IMAGE, "second": IMAGE, "masked": masked}, evaluate={"samples": 8, "bound_steps": 1})
    images = {"image": torch.full((16, 1, 8, 8), -1.0), "second": torch.ones(16, 1, 8, 8)}

    def truth(model, config, count, *_, **__):
        whole = {name: x[:count] for name, x in images.items()}
        return {**whole, "masked": torch.ones(count, 2, 8, 8)}

    monkeypatch.setattr(evaluation, "generate", truth)
    data = Data(InMemory(images), InMemory(images))
    assert evaluation.evaluate(random(build_model(found)), found, data, quiet=True)["masked.conditional_rmse"] == 0


def test_a_pipeline_is_of_times_that_training_has_shown():
    """A mask without a trace has the anchor's time unless it was unknown, so a network of it at T is no export."""
    pytest.importorskip("diffusers")
    levels = {"block_out_channels": [16, 16], "down_block_types": ["DownBlock2D"] * 2,
              "up_block_types": ["UpBlock2D"] * 2, "layers_per_block": 1, "norm_num_groups": 4}  # fmt: skip
    backbone, target = {"kind": "diffusers", **levels}, {"target": "eps"}
    for mask, refused in (({}, True), ({"unknown_probability": 0.2}, False)):
        mask = {**MASK, "weight": {"kind": "none"}, "own_time_probability": 0, **mask}
        found = config({"image": IMAGE, "mask": mask}, backbone=backbone, loss=target)
        if refused:
            with pytest.raises(MmfastError, match=r"mask.unknown_probability is 0, .* a run in which it is above 0$"):
                _unet(build_model(found), found)
        else:
            _unet(build_model(found), found)


def test_a_pipeline_has_the_noise_of_the_samples(tmp_path):
    """DDIM with eta 1 is DDPM; of another eta diffusers' files say nothing."""
    pytest.importorskip("diffusers")
    levels = {"block_out_channels": [16, 16], "down_block_types": ["DownBlock2D"] * 2,
              "up_block_types": ["UpBlock2D"] * 2, "layers_per_block": 1, "norm_num_groups": 4}  # fmt: skip
    for eta, kind in ((0.0, "DDIMPipeline"), (1.0, "DDPMPipeline"), (0.5, None)):
        found = config({"image": IMAGE}, backbone={"kind": "diffusers", **levels}, loss={"target": "eps"},
                       sample={"sampler": "ddim", "eta": eta})  # fmt: skip
        model, folder = build_model(found), tmp_path / str(eta)
        if kind is None:
            with pytest.raises(MmfastError, match=r"sample.eta is 0.5, which diffusers' DDIM"):
                to_diffusers(model, found, folder)
        else:
            assert (
                json.loads((to_diffusers(model, found, folder) / "model_index.json").read_text())["_class_name"] == kind
            )


def test_in_shared_channels_the_network_is_told_the_time_of_z():
    """Of an image that is given the time is 0; z_t's is not."""
    weights = {name: {**x, "weight": {"kind": "bridge"}} for name, x in {"label": LABEL, "mask": MASK}.items()}
    found = config({"image": {**IMAGE, "given_probability": 1.0}, **weights}, space="shared")
    model, seen = random(build_model(found)), []
    model.backbone.register_forward_hook(lambda module, inputs, out: seen.append(inputs[1].clone()))
    g = torch.Generator().manual_seed(0)
    data = {"image": torch.rand(6, 1, 8, 8, generator=g) * 2 - 1, "label": torch.arange(6) % 3,
            "mask": torch.randint(0, 2, (6, 8, 8), generator=g)}  # fmt: skip
    losses(model, Batch(data), torch.arange(6), found)
    assert bool((seen[0] > 0).all()) and len(set(seen[0].tolist())) > 3
    seen.clear()
    sample(model, 2, {"image": data["image"][:2]}, steps=4, guidance_scale=2.0)
    # Guided: asked twice at each step, at one time.
    assert [t.unique().tolist() for t in seen] == [[t] for t in (100, 75, 50, 25) for _ in range(2)]


@pytest.mark.parametrize("given, counts", [("second", False), ("image", True)])
def test_hidden_parts_count_unless_their_own_image_is_given(given, counts):
    masked = {"kind": "masked", "of": "second", "channels": 1, "size": 8, "block": 4, "given_probability": 0.0}
    share = {name: {**IMAGE, "given_probability": float(name == given)} for name in ("image", "second")}
    found = config({**share, "masked": masked})
    data = {name: torch.rand(8, 1, 8, 8) * 2 - 1 for name in share}
    part = losses(random(build_model(found)), Batch(data), torch.arange(8), found)["masked"]
    assert (float(part) > 0) is counts


def test_ignored_pixels_neither_count_nor_dilute():
    mask = {**MASK, "ignore": 255, "diffused": True, "weight": {"kind": "carried"}}
    part = build_model(config({"image": IMAGE, "mask": mask})).part("mask")
    prediction = torch.full((3, *part.encode(torch.zeros(1, 8, 8, dtype=torch.long)).shape[1:]), 3.0)
    x = torch.zeros(3, 8, 8, dtype=torch.long)
    x[1, :4], x[2] = -1, -1
    whole, half, none = part.loss(prediction, x).tolist()
    assert whole == pytest.approx(half) and whole > 1 and none == 0
    with pytest.raises(MmfastError, match=r"modalities.mask.ignore is 255, but mask is the anchor"):
        build_model(config({"mask": {**MASK, "ignore": 255}}, anchor="mask"))


def test_a_linear_schedule_of_so_many_steps_that_nothing_is_left_of_the_image():
    for T in (10_000, 17_000):
        build_model(config({"image": IMAGE}, schedule={"kind": "linear", "T": T}, loss={"target": "eps"}))
    with pytest.raises(MmfastError, match=r"loss.target is 'eps', but alpha_bar_T = 1.\d*e-88: z_0 cannot be"):
        build_model(config({"image": IMAGE}, schedule={"kind": "linear", "T": 20_000}, loss={"target": "eps"}))
    build_model(config({"image": IMAGE}, schedule={"kind": "linear", "T": 20_000}, loss={"target": "x0"}))
    with pytest.raises(MmfastError, match=r"T is 80000; from t = \d+ on the linear schedule's alpha_bar is too small"):
        Schedule.linear(80_000)


@pytest.mark.parametrize("size", [1e-30, 1e-5, 1e-4, 1.0, 1e20])
def test_of_an_embedding_only_the_direction_counts(size):
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit_rms(x * size), x / x.square().mean(1, keepdim=True).sqrt(), rtol=1e-5, atol=1e-6)
    assert not unit_rms(torch.zeros(2, 3)).any() and unit_rms(torch.zeros(0, 3)).shape == (0, 3)


def test_one_thread_does_not_put_another_s_model_back_into_training():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    model[0].eval()
    inside, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with evaluating(model):
            inside.set()
            leave.wait(10)
            seen.append(model[1].training)

    thread = threading.Thread(target=other)
    with evaluating(model):
        thread.start()
        inside.wait(10)
    leave.set()
    thread.join()
    assert seen == [False] and model.training and model[1].training and not model[0].training


def run_of(folder, modalities, **more):
    few = {"train": {"steps": 1, "batch_size": 4}, "evaluate": {"samples": 0}, "sample": {"steps": 1, "count": 1}}
    found = config(modalities, **few, **more)
    train(found, str(folder), quiet=True)
    return Run.open(folder)


def test_weights_of_another_meaning_are_not_kept(tmp_path):
    """E(x) is another where an image is scaled otherwise."""
    folder = tmp_path / "run"
    folder.mkdir()
    first = config({"image": IMAGE, "second": {**IMAGE, "rms": 0.5}})
    (folder / "config.yaml").write_text(configs.to_yaml(first))
    other = config({"image": IMAGE, "second": {**IMAGE, "rms": 0.25}})
    with pytest.raises(
        MmfastError, match=r"its modalities.second.rms is 0.5, and here it is 0.25; it should be the same"
    ):
        take_weights(build_model(other), other, folder)


def test_weights_of_a_table_with_other_columns_are_not_kept(tmp_path):
    (tmp_path / "run").mkdir()

    def of(*columns):
        row = {"kind": "table", "columns": list(columns), "means": [0, 0], "scales": [1, 1]}
        return config({"row": row}, anchor="row", data={"kind": "table"})

    (tmp_path / "run" / "config.yaml").write_text(configs.to_yaml(of("x", "y")))
    with pytest.raises(MmfastError, match=r"its modalities.row.columns is \['x', 'y'\], and here it is \['y', 'x'\]"):
        take_weights(build_model(of("y", "x")), of("y", "x"), tmp_path / "run")


def test_where_no_example_lacks_anything_nobody_asks_who_does(monkeypatch):
    """So that z_t is made in one call, without rows that torch picks."""
    found, seen = config({"image": IMAGE, "mask": MASK}), []
    real = objective.ops.q_sample
    monkeypatch.setattr(objective.ops, "q_sample", lambda *a, **how: seen.append(how["present"]) or real(*a, **how))
    data = {"image": torch.zeros(2, 1, 8, 8), "mask": torch.zeros(2, 8, 8, dtype=torch.long)}
    for present in ({}, {"mask": torch.tensor([True, False])}):
        losses(build_model(found), Batch(data, present), torch.arange(2), found)
    assert seen[0] is None and seen[1].tolist() == [[1], [0]]


@pytest.mark.parametrize("target, scaled", [("x0", True), ("eps", False)])
def test_hidden_parts_that_come_are_said_to_change_the_image_s_scale(target, scaled, tmp_path):
    digits = {"image": {**IMAGE, "levels": 17}}
    folder = run_of(tmp_path / "run", digits, loss={"target": target}).folder
    masked = {"kind": "masked", "channels": 1, "size": 8, "block": 4}
    found = config({**digits, "masked": masked}, loss={"target": target})
    said = str(take_weights(build_model(found), found, folder))
    assert said.endswith("at another scale, so predictions differ at first") is scaled
