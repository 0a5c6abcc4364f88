"""The evaluation's figures by value: a stand-in for `generate` draws what is known; the truth is worked out here."""

import importlib
import json
import os

import numpy as np
import pytest
import torch
from tiny import tiny

from mmfast.build import build_model
from mmfast.data import Batch, Data
from mmfast.data.base import InMemory
from mmfast.errors import MmfastError
from mmfast.evaluate import evaluate, evaluate_run, table
from mmfast.grids import examples_for
from mmfast.ranks import ALONE
from mmfast.run import Run

module, grids_module = (importlib.import_module(f"mmfast.{name}") for name in ("evaluate", "grids"))
VECTOR = "{kind: embedding, dim: 2, weight: {kind: none}}"
HIDDEN = "{kind: masked, of: image, channels: 1, size: 8, block: 4, ratios: [0.25, 0.75]}"
GIVENS = ("", "image", "label", "mask", "vector", "hidden")
COUNT = 8


def examples(count, seed):
    g = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(count, 1, 8, 8, generator=g) * 2 - 1,
        "label": torch.randint(0, 10, (count,), generator=g),
        "mask": torch.randint(0, 2, (count, 8, 8), generator=g),
        "vector": torch.randn(count, 2, generator=g),
    }


def label_of(images):
    """The top left pixel, in tenths of -1 .. 1."""
    return ((images[:, 0, 0, 0] + 1) * 5).long().clamp(0, 9)


JUDGES = {
    "label": label_of,
    "mask": lambda images: (images[:, 0] > 0.3).long(),
    "vector": lambda images: images[:, 0, 7, 6:8],
}


class World:
    """Data, a model and what `generate` will draw for whatever is given: `drawn[given]`, by modality."""

    def __init__(self, monkeypatch, count=COUNT, **options):
        self.config = tiny(
            **{"modalities__vector": VECTOR, "modalities__hidden": HIDDEN, "evaluate__samples": count, **options}
        )
        self.model = build_model(self.config)
        self.data = Data(InMemory(examples(5, 1)), InMemory(examples(count + 4, 2)), lambda: dict(JUDGES))
        order = torch.randperm(count + 4, generator=torch.Generator().manual_seed(0))  # of chance, always the same
        self.truth = {name: x[order] for name, x in self.data.test.tensors.items()}
        self.drawn = {given: examples(count, 10 + k) for k, given in enumerate(GIVENS)}
        # Labels agree in three examples with their image, for an image in five and for a label in six with the truth.
        truth, number = self.truth["label"][:count], torch.arange(count)
        joint, of_image, of_label = (self.drawn[given] for given in ("", "image", "label"))
        joint["label"] = (label_of(joint["image"]) + (number >= 3)) % 10
        of_image["label"] = (truth + (number >= 5)) % 10
        of_label["image"][:, 0, 0, 0] = ((truth + (number >= 6)) % 10 + 0.5) / 5 - 1
        for x in self.drawn.values():
            x["hidden"] = torch.zeros(count, 2, 8, 8)
        self.calls = []
        for drawing in (module, grids_module):
            monkeypatch.setattr(drawing, "generate", self.generate)
        monkeypatch.setattr(module, "bound", self.bound)
        monkeypatch.setattr(module, "fit", self.fit)
        monkeypatch.setattr(module, "times_by_snr", lambda schedule, count: [1, 9])
        monkeypatch.setattr(module, "x0_error", self.x0_error)
        monkeypatch.setattr(module, "real_features", lambda data, anchor, features, ranks: (data, anchor, features))
        monkeypatch.setattr(module, "against", self.against)

    def against(self, real, images, features, named, ranks):
        assert real[2] is features and named == "pixels"
        self.calls.append((images, *real))
        return {"frechet.of": 5.0}

    @property
    def shown(self):
        return examples_for(self.model, self.config, self.data)

    def alone(self, *others):
        """The same world with nothing but the image, and these."""
        self.config.modalities = {name: self.config.modalities[name] for name in ("image", *others)}
        self.model = build_model(self.config)
        return self

    def is_held_out(self, model, batch, seed, size):
        truth = self.truth["image"][: len(batch)]
        assert (
            model is self.model
            and torch.equal(batch.data["image"], truth)
            and len(batch) == len(self.drawn[""]["image"])
        )
        assert (seed, size) == (self.config.seed, self.config.sample.batch_size)

    def fit(self, model, batch, seed, batch_size, ranks):
        """To training examples, all of the five."""
        seen = sorted(batch.data["image"].flatten(1).tolist())
        assert model is self.model and seen == sorted(self.data.train.tensors["image"].flatten(1).tolist())
        assert (seed, batch_size) == (self.config.seed, self.config.sample.batch_size)
        return {"fitted": "to these"}

    def bound(self, model, batch, steps, seed, size, reverses, ranks):
        self.is_held_out(model, batch, seed, size)
        assert steps == self.config.evaluate.bound_steps and reverses == {"fitted": "to these"}
        return {"bound.of": 7.0}

    def x0_error(self, model, batch, times, seed, size, ranks):
        self.is_held_out(model, batch, seed, size)
        return torch.tensor([0.25 * t for t in times], dtype=torch.float64)

    def generate(self, model, config, count, given, ranks, **how):
        assert model is self.model and config is self.config and ranks is ALONE
        self.calls.append((count, given, how))
        found = self.drawn["".join(given)]
        return {name: x for name, x in found.items() if name in model.parts}


def accuracy(a, b):
    return sum(int(x) == int(y) for x, y in zip(a, b, strict=True)) / len(a)


def iou(a, b):
    """Of class 1, over all examples together."""
    a, b = a.numpy() == 1, b.numpy() == 1
    return (a & b).sum() / (a | b).sum()


def cosine(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return np.mean([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)])


def test_every_figure_compares_what_it_says(monkeypatch):
    """Joint: with the judge's view of the image drawn with it; conditional: the judge's view of the image drawn for it
    with what was given; recovered: what was drawn for the image with the image's own."""
    world = World(monkeypatch)
    found = evaluate(world.model, world.config, world.data, quiet=True)
    truth, drawn = {name: x[:COUNT] for name, x in world.truth.items()}, world.drawn
    expected = {"samples": 8.0, "frechet.of": 5.0, "bound.of": 7.0, "x0_error.1": 0.25, "x0_error.9": 2.25}
    names = {"label": ("agreement", "accuracy", accuracy), "mask": ("iou", "iou", iou),
             "vector": ("cosine", "cosine", cosine)}  # fmt: skip
    for name, (joint, metric, measure) in names.items():
        judge = JUDGES[name]
        expected[f"{name}.joint_{joint}"] = measure(drawn[""][name], judge(drawn[""]["image"]))
        expected[f"{name}.conditional_{metric}"] = measure(judge(drawn[name]["image"]), truth[name])
        expected[f"{name}.recovered_{metric}"] = measure(drawn["image"][name], truth[name])
    given = next(call[1] for call in world.calls if "hidden" in call[1])["hidden"]
    hidden = (given[:, 1] == 0).numpy()
    assert torch.equal(given[:, :1], truth["image"]) and 0.2 < hidden.mean() < 0.8
    error = (drawn["hidden"]["image"] - truth["image"])[:, 0].double().numpy()
    expected["hidden.conditional_rmse"] = np.sqrt((error[hidden] ** 2).sum() / hidden.sum())
    assert found == {name: pytest.approx(x, rel=1e-5) for name, x in expected.items()}
    assert [expected[f"label.{name}"] * COUNT for name in ("joint_agreement", "recovered_accuracy")] == [3, 5]
    assert expected["label.conditional_accuracy"] * COUNT == 6 and len({*expected.values()}) == len(expected)


def test_everything_is_drawn_once_and_with_noise_of_its_own(monkeypatch):
    seeds = []
    for seed in (0, 50):
        world = World(monkeypatch, seed=seed)
        evaluate(world.model, world.config, world.data, quiet=True)
        drawings, (measured,) = ([call for call in world.calls if len(call) == n] for n in (3, 4))
        assert sorted("".join(given) for _, given, _ in drawings) == sorted(GIVENS)
        for count, given, how in drawings:
            assert count == COUNT and how["progress"] is False
            for name in given.keys() - {"hidden"}:
                assert torch.equal(given[name], world.truth[name][:COUNT])
        assert torch.equal(measured[0], world.drawn[""]["image"]) and measured[1:3] == (world.data, "image")
        seeds.append({"".join(given): how["seed"] for _, given, how in drawings})
    assert len({*seeds[0].values(), *seeds[1].values()}) == 2 * len(GIVENS)


def test_the_bar_says_what_is_given(monkeypatch):
    world = World(monkeypatch)
    evaluate(world.model, world.config, world.data)
    texts = {"".join(call[1]): call[2]["progress"] for call in world.calls if len(call) == 3}
    assert texts == {given: f"evaluating, given {given}" if given else "evaluating, joint" for given in GIVENS}


def test_without_a_judge_it_is_only_recovered(monkeypatch):
    world = World(monkeypatch)
    world.data.judges = lambda: {"mask": JUDGES["mask"]}
    found = evaluate(world.model, world.config, world.data, quiet=True)
    assert {name for name in found if name.startswith(("label", "vector"))} == {
        "label.recovered_accuracy",
        "vector.recovered_cosine",
    }
    assert sorted("".join(call[1]) for call in world.calls if len(call) == 3) == ["", "hidden", "image", "mask"]


def test_of_an_image_alone_there_is_its_quality(monkeypatch):
    world = World(monkeypatch).alone()
    found = evaluate(world.model, world.config, world.data, quiet=True)
    assert found == {"samples": 8.0, "frechet.of": 5.0, "bound.of": 7.0, "x0_error.1": 0.25, "x0_error.9": 2.25}
    assert [call[1] for call in world.calls if len(call) == 3] == [{}]


def test_features_and_weights_are_those_of_the_config(monkeypatch):
    asked = []

    def network(x):
        return "features", x

    network.name = "pixels"
    monkeypatch.setattr("mmfast.distances.extractor", lambda *args: asked.append(args) or network)
    for weights in ("", "file.pth"):
        world = World(monkeypatch, evaluate__features="vgg16", evaluate__features_weights=weights or "''")
        evaluate(world.model, world.config, world.data, quiet=True)
        x = torch.rand(1, 1, 8, 8)
        found = next(call for call in world.calls if len(call) == 4)[3](x)
        assert found[0] == "features" and torch.equal(found[1], x)
    assert asked == [("vgg16", None), ("vgg16", os.path.abspath("file.pth"))]


class Distance:
    """A stand-in for LPIPS that tells its three arguments apart, and the batch's size must not matter."""

    def __init__(self, net, weights):
        assert (net, weights) == ("vgg", None)

    def hidden(self, a, b, mask):
        assert mask.shape == a.shape == b.shape and len(a) <= 64
        return (2 * a - b).abs().sum((1, 2, 3)) + 100 * mask.sum((1, 2, 3))


def test_lpips_compares_the_restored_image_with_the_true_one(monkeypatch):
    """What is seen is not the model's to get wrong, and pixels are cut to -1 .. 1; more than one batch of 64."""
    count = 70
    world = World(monkeypatch, count, evaluate__lpips="vgg")
    monkeypatch.setattr(module, "LPIPS", Distance)
    restored = world.drawn["hidden"]["image"].mul_(2)
    assert float(restored.abs().max()) > 1.5
    found = evaluate(world.model, world.config, world.data, quiet=True)["hidden.conditional_lpips_vgg"]
    given = next(call[1] for call in world.calls if "hidden" in call[1])["hidden"].double().numpy()
    each = []
    for k in range(count):
        image, seen = given[k]
        whole = np.where(seen == 1, image, np.clip(restored[k, 0].double().numpy(), -1, 1))
        each.append(np.abs(2 * whole - image).sum() + 100 * seen.sum())
    assert found == pytest.approx(np.mean(each), rel=1e-5)


def test_lpips_without_hidden_parts_is_refused_before_anything_is_drawn(monkeypatch):
    world = World(monkeypatch)
    monkeypatch.setattr(module, "LPIPS", Distance)
    world.config = tiny(evaluate__samples=COUNT, evaluate__lpips="vgg")
    world.model = build_model(world.config)
    with pytest.raises(MmfastError, match=r"evaluate.lpips is 'vgg', but no modality hides parts"):
        evaluate(world.model, world.config, world.data, quiet=True)
    assert not world.calls


def test_features_of_code_that_nobody_allowed_are_refused_before_anything_is_drawn(monkeypatch):
    world = World(monkeypatch)
    monkeypatch.setattr("mmfast.distances.extractor", lambda *args: pytest.fail("it was imported"))
    world.config.evaluate.features = "theirs:network"
    with pytest.raises(MmfastError, match=r"evaluate\.features is 'theirs:network', code that a config names"):
        evaluate(world.model, world.config, world.data, quiet=True)
    assert not world.calls


def test_the_figures_are_written(monkeypatch, tmp_path):
    world = World(monkeypatch)
    run = Run.start(tmp_path / "run", world.config)
    found = evaluate_run(run, world.model, world.config, world.data, quiet=True)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == found
    assert found["frechet.of"] == 5 and all(call[2]["progress"] is False for call in world.calls if len(call) == 3)


def test_the_table():
    assert table({"a": 1.0, "long.name": 0.123456, "b": 12345.6}) == (
        "a          1\nlong.name  0.1235\nb          1.235e+04"
    )
    figures = {"a": 1.0, "bound.L1": 2.0, "x0_error.10": 3.0, "boundary": 4.0}
    assert table(figures, "--all") == (
        "a         1\nboundary  4\n2 more, of the bound and of the errors by timestep: --all"
    )
    assert table(figures) == "a            1\nbound.L1     2\nx0_error.10  3\nboundary     4"
    assert table({"a": 1.0}, "--all") == "a  1"


def test_few_that_have_a_modality_are_repeated_and_told_of(monkeypatch, capsys):
    """Each modality's figures are of the examples that have it. Without one that has all, there is no bound."""
    world = World(monkeypatch)
    numbers, tensors = torch.arange(COUNT + 4), world.data.test.tensors
    there = {"label": numbers < 3, "mask": numbers > 2, "vector": numbers < 0}

    class Some(InMemory):
        def __getitems__(self, rows):
            return Batch(super().__getitems__(rows).data, {name: x[list(rows)] for name, x in there.items()})

    world.data.test = Some(tensors)
    found = evaluate(world.model, world.config, world.data)
    order = torch.randperm(COUNT + 4, generator=torch.Generator().manual_seed(0))
    rows = {name: [int(k) for k in order if there[name][k]] for name in there}
    few = [rows["label"][k % 3] for k in range(COUNT)]
    recovered = world.drawn["image"]
    assert found["label.recovered_accuracy"] == accuracy(recovered["label"], tensors["label"][few])
    assert found["mask.recovered_iou"] == pytest.approx(iou(recovered["mask"], tensors["mask"][rows["mask"][:COUNT]]))
    assert not [name for name in found if name.startswith(("vector", "bound", "x0_error"))]
    given = [given for _, given, _ in [call for call in world.calls if len(call) == 3 and isinstance(call[1], dict)]]
    of_image = [x["image"] for x in given if "image" in x]
    assert torch.equal(of_image[0], tensors["image"][few]) and len(of_image) == 2  # an order of its own for each
    assert capsys.readouterr().err == (
        "mmfast: only 3 of the 12 held-out examples have image and label, so the figures of label repeat these; raise "
        "data.test_fraction for more\n"
        "mmfast: none of the 12 held-out examples has image and vector, so vector is not measured; raise "
        "data.test_fraction\n"
        "mmfast: data: no held-out example has all of image, label, mask, vector; raise data.test_fraction, or there "
        "is no bound\n"
    )
