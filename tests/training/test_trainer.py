"""The trainer by value: its steps are those of AdamW written out in float64, on losses whose gradients are known."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import tiny

from mmfast.build import build_model
from mmfast.data import Data
from mmfast.data.base import InMemory
from mmfast.files import load_tensors
from mmfast.training import each
from mmfast.training.ema import EMA
from mmfast.training.loop import fit
from mmfast.training.objective import losses
from mmfast.training.trainer import learning_rate

LENGTH = 50


def data():
    """Digits' shapes; the picture of example k is k / 100 all over."""
    images = (torch.arange(float(LENGTH)) / 100)[:, None, None, None].expand(-1, 1, 8, 8)
    mask = torch.zeros(LENGTH, 8, 8, dtype=torch.int64)
    part = InMemory({"image": images, "label": torch.arange(LENGTH) % 10, "mask": mask})
    return Data(part, part)


class Known:
    """Two losses, sum(w^2) mean(n) / 1000 and sum(w) mean(x): the gradient is w mean(n) / 500 + mean(x)."""

    def __init__(self):
        self.seen, self.seeds = [], []

    def __call__(self, model, batch, numbers, config):
        x = batch.data["image"][:, 0, 0, 0]
        if model.training and torch.is_grad_enabled():
            self.seen += zip(numbers.tolist(), (x * 100).round().long().tolist(), strict=True)
            self.seeds.append(torch.initial_seed())
        w = torch.cat([p.flatten() for p in model.parameters()])
        return {"one": (w**2).sum() * numbers.float().mean() / 1000, "two": w.sum() * x.mean()}


OPTIONS = {
    "train__steps": 7,
    "train__warmup": 3,
    "train__decay": "cosine",
    "train__learning_rate": 0.02,
    "train__weight_decay": 0.1,
    "train__grad_clip": 0.6,
    "train__ema_decay": 0.45,
    "train__checkpoint_every": 100,
    "seed": 5,
}
# Of seven steps with a warm-up of three.
RATES = [0.02 * x for x in (1 / 3, 2 / 3, 1, *(0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)))]


def adamw(w, seen, steps, clip, weight_decay, ema_decay, size=16):
    """The weights, their average and the stats of every step (Loshchilov and Hutter, 2019), in float64."""
    average, m, v, lines = w.copy(), np.zeros_like(w), np.zeros_like(w), []
    for step in range(1, steps + 1):
        n, x = (np.array(column) for column in zip(*seen[(step - 1) * size : step * size], strict=True))
        one, two = (w**2).sum() * n.mean() / 1000, w.sum() * (x / 100).mean()
        g = w * n.mean() / 500 + (x / 100).mean()
        norm = math.sqrt((g**2).sum())
        g = g * min(1, clip / norm)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - RATES[step - 1] * weight_decay * w
        w = w - RATES[step - 1] * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        decay = min(ema_decay, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * w
        lines.append({"step": step, "images": step * size, "loss": one + two, "loss.one": one, "loss.two": two,
                      "grad_norm": norm, "learning_rate": RATES[step - 1]})  # fmt: skip
    return w, average, lines


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_every_step_is_adamws(accumulation, tmp_path):
    """Weights, averages and stats; parts of a batch that are added up make the step of the whole."""
    config, known = tiny(**OPTIONS, train__accumulation=accumulation), Known()
    begin = flat(build_model(config))
    found = fit(config, str(tmp_path / "run"), data(), known, quiet=True)
    w, average, lines = adamw(begin, known.seen, 7, 0.6, 0.1, 0.45)
    assert any(line["grad_norm"] > 1.2 for line in lines)  # it is clipped
    # float32 against float64; Adam's steps are of size 0.02.
    np.testing.assert_allclose(flat(found.model), w, rtol=0, atol=2e-6)
    np.testing.assert_allclose(flat(found.ema.model), average, rtol=0, atol=2e-6)
    stats = [json.loads(line) for line in found.run.stats_file.read_text().splitlines()]
    assert stats == [{name: pytest.approx(x, rel=1e-4) for name, x in line.items()} for line in lines]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_example_comes_once_an_epoch_and_numbers_count_on(accumulation, tmp_path):
    known = Known()
    fit(tiny(train__steps=7, train__accumulation=accumulation), str(tmp_path / "run"), data(), known, quiet=True)
    numbers, rows = zip(*known.seen, strict=True)
    assert numbers == tuple(range(112))
    first, second = rows[:LENGTH], rows[LENGTH : 2 * LENGTH]
    assert sorted(first) == sorted(second) == list(range(LENGTH)) and first != second and list(first) != sorted(first)
    # Dropout's seeds: one for each part of each batch, whatever the parts.
    assert len({*known.seeds}) == 7 * accumulation


def test_dropouts_seed_is_of_the_place_in_the_run_and_of_the_seed(tmp_path):
    def seeds(name, **options):
        known = Known()
        fit(tiny(train__steps=3, **options), str(tmp_path / name), data(), known, quiet=True)
        return known.seeds

    whole = seeds("whole")
    assert whole == seeds("again") and set(whole) < set(seeds("halves", train__accumulation=2))
    assert not set(whole) & set(seeds("other", seed=1))


def test_the_learning_rate():
    config = tiny(**OPTIONS)
    rates = [learning_rate(config, step) for step in range(1, 8)]
    assert rates == pytest.approx(RATES, abs=1e-15)
    flat = tiny(**{**OPTIONS, "train__decay": "constant"})
    assert [learning_rate(flat, step) for step in (1, 3, 4, 7)] == pytest.approx([0.02 / 3, 0.02, 0.02, 0.02])
    at_once = tiny(train__steps=4, train__warmup=0, train__learning_rate=1.0, train__decay="cosine")
    half = math.sqrt(0.5) / 2
    assert [learning_rate(at_once, k) for k in (1, 2, 3, 4, 5)] == pytest.approx([0.5 + half, 0.5, 0.5 - half, 0, 0])
    long = tiny(train__steps=2, train__warmup=4, train__learning_rate=1.0, train__decay="cosine")
    assert [learning_rate(long, k) for k in (1, 2)] == [0.25, 0.5]  # all of it is warm-up


@pytest.mark.parametrize("fused", [True, False])
def test_the_average(fused, monkeypatch):
    """The decay is (1 + n) / (10 + n) until that passes its own; what is no weight is the newest."""
    if not fused:
        monkeypatch.setattr(each, "lerp_", each._loop("lerp_"))
    net = torch.nn.BatchNorm1d(1)
    average, expected = EMA(net, 0.5), 1.0
    with torch.no_grad():
        for step in range(1, 13):
            net.weight.fill_(step**2)
            net.running_mean.fill_(step)
            average.update(net, step)
            decay = 0.5 if step >= 8 else (1 + step) / (10 + step)
            expected = decay * expected + (1 - decay) * step**2
            assert float(average.model.weight) == pytest.approx(expected, rel=1e-6)
            assert float(average.model.running_mean) == step
    assert not average.model.training and not average.model.weight.requires_grad and net.weight.requires_grad


def test_the_stats_are_the_loss_of_the_weights_before_the_step(tmp_path):
    """Line n of a run is the loss, on the n-th batch, of the weights that a run of n - 1 steps ends with."""
    options = {"backbone__dropout": 0, "train__decay": "constant", "train__learning_rate": 0.01}
    runs = [fit(tiny(train__steps=n, **options), str(tmp_path / str(n)), data(), quiet=True) for n in (1, 2, 3)]
    lines = [json.loads(line) for line in runs[2].run.stats_file.read_text().splitlines()]
    for n, line in enumerate(lines):
        config, model = runs[2].config, build_model(runs[2].config)
        if n:
            model.load_state_dict(load_tensors(runs[n - 1].run.folder / "model.safetensors")[0])
        numbers = torch.arange(16 * n, 16 * (n + 1))
        known = Known()
        if n == 0:
            fit(tiny(train__steps=3), str(tmp_path / "order"), data(), known, quiet=True)
            order = [row for _, row in known.seen]
        parts = losses(model, data().train.__getitems__(order[16 * n : 16 * (n + 1)]), numbers, config)
        for name, x in parts.items():
            assert line[f"loss.{name}"] == pytest.approx(float(x.detach()), rel=1e-5)
        assert line["loss"] == pytest.approx(sum(float(x.detach()) for x in parts.values()), rel=1e-5)
        total = torch.stack(list(parts.values())).sum()
        grads = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads if g is not None))
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
