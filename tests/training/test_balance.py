"""The balance of the losses: each rule against its formula in float64, in training, in parts, and gone on with."""

import json
import math

import numpy as np
import pytest
import torch
from processes import Job
from rank_runs import assert_one_curve
from tiny import tiny

from mmfast import config as configs
from mmfast.backbones.features import Features
from mmfast.build import build_data, build_model
from mmfast.config_sections import BALANCES
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.ranks import ALONE
from mmfast.report.content import Series
from mmfast.report.page import _curves
from mmfast.training import fit
from mmfast.training.balance import RULES, GradientNorm, Uncertainty
from mmfast.training.examples import Order
from mmfast.training.objective import losses

RULE = ["uncertainty", "gradient_norm"]
KEPT, TAKEN = torch.tensor(0.0), torch.tensor(1.0)


def lines(trainer):
    return [json.loads(line) for line in trainer.run.stats_file.read_text().splitlines()]


def test_the_options_are_the_rules():
    assert tuple(RULES) == BALANCES


def test_two_terms_weighed_by_uncertainty():
    """sum_i exp(-s_i) L_i + s_i / 2, its gradients, and what has no weight as it is."""
    rule = Uncertainty(["a", "b", "c"]).double()
    s, L = np.array([0.3, -0.7]), np.array([2.0, 0.05])
    with torch.no_grad():
        rule.log_variance.copy_(torch.tensor([*s, 5.0]))
    parts = {"a": torch.tensor(L[0]), "b": torch.tensor(L[1]), "other": torch.tensor(0.4, dtype=torch.float64)}
    for x in parts.values():
        x.requires_grad_()
    total = rule.total(parts, [], 1.0)
    total.backward()
    assert float(total.detach()) == pytest.approx((np.exp(-s) * L + s / 2).sum() + 0.4, rel=1e-12)
    assert rule.log_variance.grad.tolist() == pytest.approx([*(0.5 - np.exp(-s) * L), 0.0], rel=1e-12)
    assert [float(x.grad) for x in parts.values()] == pytest.approx([*np.exp(-s), 1.0], rel=1e-12)
    assert [float(w) for w in rule.weights().values()] == pytest.approx([*np.exp(-s), math.exp(-5)], rel=1e-6)


def test_at_rest_uncertainty_weighs_by_the_inverse_of_twice_the_loss():
    rule = Uncertainty(["a", "b"]).double()
    with torch.no_grad():
        rule.log_variance.copy_(torch.tensor([2 * 3.0, 2 * 0.01]).log())
    rule.total({"a": torch.tensor(3.0).double(), "b": torch.tensor(0.01).double()}, [], 1.0).backward()
    assert rule.log_variance.grad.abs().max() < 1e-6
    assert [float(w) for w in rule.weights().values()] == pytest.approx([1 / 6, 50])


def test_a_loss_of_zero_leaves_its_variance_a_number():
    rule = Uncertainty(["a"])
    with torch.no_grad():
        rule.log_variance.fill_(-1000.0)
    rule.update(ALONE, KEPT)
    total = rule.total({"a": torch.tensor(0.0)}, [], 1.0)
    total.backward()
    assert float(total.detach()) == -5.0 and rule.log_variance.grad.tolist() == [0.5]  # it is free to come back
    assert float(rule.weights()["a"]) == pytest.approx(math.exp(10))


def features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels, before = torch.randn(count, 3, generator=generator), torch.randn(count, 2, generator=generator)
    return Features(pixels.double().requires_grad_(), before.double().requires_grad_())


def terms(z):
    """Two parts, each a mean over the examples; one reads both features."""
    return {
        "a": (z.pixels**2).sum(1).mean() + 3 * z.before.sum(1).mean(),
        "b": 0.01 * z.before.pow(3).sum(1).mean(),
    }


def norms(z):
    """Of their gradients, by hand."""
    n, pixels, before = len(z.pixels), z.pixels.detach().numpy(), z.before.detach().numpy()
    a = np.concatenate([2 * pixels / n, np.full((n, 2), 3 / n)], 1)
    return np.array([np.sqrt((a**2).sum()), np.sqrt(((0.03 * before**2 / n) ** 2).sum())])


def test_two_terms_weighed_by_their_gradients():
    """First alike; then by the inverse of the norms, whose squares are averaged, more so with each step."""
    rule, first, second = GradientNorm(["a", "b", "never"]), features(6), features(6, 1)
    total = rule.total(terms(first), [first], 1.0)
    assert float(total.detach()) == pytest.approx(sum(float(x.detach()) for x in terms(first).values()), rel=1e-12)
    rule.update(ALONE, KEPT)
    G = norms(first)
    w, expected = rule.weights(), (G.mean() / G) ** 0.01
    assert [float(w[n]) for n in "ab"] == pytest.approx(expected, rel=1e-6) and float(w["never"]) == 1
    parts = terms(second)
    total = rule.total(parts, [second], 1.0)
    assert float(total.detach()) == pytest.approx(
        sum(float(x.detach()) * weight for x, weight in zip(parts.values(), expected, strict=True)), rel=1e-6
    )
    grad = torch.autograd.grad(total, second.pixels)[0]
    np.testing.assert_allclose(grad, expected[0] * 2 * second.pixels.detach() / 6, rtol=1e-6)
    rule.update(ALONE, KEPT)
    G = np.sqrt((norms(first) ** 2 + norms(second) ** 2) / 2)
    for steps, power in ((2, 0.02), (99, 0.99), (100, 1), (5000, 1)):
        rule.steps.fill_(steps)
        assert [float(rule.weights()[n]) for n in "ab"] == pytest.approx((G.mean() / G) ** power, rel=1e-6)


def test_what_reads_the_levels_is_weighed_by_its_gradient_by_them():
    """And not what reads their averages or the pixels made from them, which has its gradient by these."""
    generator, rule = torch.Generator().manual_seed(3), GradientNorm(["a", "b", "c"])
    level = torch.randn(4, 2, 3, 3, generator=generator).double().requires_grad_()
    z = Features(2 * level, 5 * level.mean((2, 3)), (torch.zeros(4, 1, 6, 6), level))
    parts = {"a": z.pixels.square().sum() / 4, "b": z.before.sum() / 4, "c": level.pow(3).sum() / 4}
    rule.total(parts, [z], 0.5)
    x = level.detach()
    expected = [(2 * 2 * x / 4).square().sum(), torch.tensor(8 / 16), (3 * x.square() / 4).square().sum()]
    assert [float(rule.now[n]) for n in "abc"] == pytest.approx([float(e) / 4 for e in expected], rel=1e-6)


def test_the_first_steps_blow_nothing_up(tmp_path):
    """The anchor's last layer begins at zero: the inverse of its first gradients would weigh it hundreds of times."""
    trainer = run(tmp_path / "run", train__steps=12, loss__balance="gradient_norm")
    weights = [x for line in lines(trainer) for name, x in line.items() if name.startswith("balance.")]
    assert len(weights) == 36 and 0.7 < min(weights) < max(weights) < 1.5


def test_the_mean_forgets_and_a_step_that_is_left_out_changes_nothing():
    rule, z = GradientNorm(["a", "b"]), features(4)
    rule.squares.copy_(torch.tensor([4.0, 9.0]))
    rule.steps.fill_(250)
    rule.total({name: x * math.nan for name, x in terms(z).items()}, [z], 1.0)
    rule.update(ALONE, TAKEN)
    assert rule.squares.tolist() == [4, 9] and int(rule.steps) == 250
    rule.total(terms(z), [z], 1.0)
    rule.update(ALONE, KEPT)
    assert rule.squares.numpy() == pytest.approx(0.99 * np.array([4, 9]) + 0.01 * norms(z) ** 2, rel=1e-6)
    assert int(rule.steps) == 251


class Two:
    """Ranks of which the other has measured the same."""

    count = 2

    def mean(self, x):
        return x


def test_parts_of_a_batch_and_ranks_measure_what_the_whole_does():
    whole, z = GradientNorm(["a", "b"]), features(8)
    whole.total(terms(z), [z], 1.0)
    whole.update(ALONE, KEPT)
    assert whole.squares.sqrt().numpy() == pytest.approx(norms(z), rel=1e-6)
    halves = GradientNorm(["a", "b"])
    for rows in (slice(0, 4), slice(4, 8)):
        half = Features(*(x.detach()[rows].requires_grad_() for x in z[:2]))
        halves.total(terms(half), [half], 1 / 2)
    halves.update(ALONE, KEPT)
    assert halves.squares.numpy() == pytest.approx(whole.squares.numpy(), rel=1e-6)
    half = Features(*(x.detach()[:4].requires_grad_() for x in z[:2]))
    twice = Features(*(torch.cat((x, x)).detach().requires_grad_() for x in half[:2]))
    ranks, alone = GradientNorm(["a", "b"]), GradientNorm(["a", "b"])
    ranks.total(terms(half), [half], 1 / 2)
    ranks.update(Two(), KEPT)
    alone.total(terms(twice), [twice], 1.0)
    alone.update(ALONE, KEPT)
    assert ranks.squares.numpy() == pytest.approx(alone.squares.numpy(), rel=1e-6)


def test_the_gradients_of_a_pass_without_the_decoder_count_too():
    rule, z, more = GradientNorm(["a", "b"]), features(5), features(5, 1).before
    parts = terms(z)
    parts["b"] = parts["b"] + 2 * more.pow(3).sum(1).mean()
    rule.total(parts, [z, Features(None, more)], 1.0)
    rule.update(ALONE, KEPT)
    expected = norms(z) ** 2 + np.array([0, ((6 * more.detach().numpy() ** 2 / 5) ** 2).sum()])
    assert rule.squares.numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rule", RULE)
def test_losses_of_no_modality_are_refused(rule):
    z = features(2)
    with pytest.raises(MmfastError, match=r"loss\.balance weights the losses of image, but these are of a, b"):
        RULES[rule](["image"]).total(terms(z), [z], 1.0)


def test_shards_have_no_gradient_norms():
    with pytest.raises(MmfastError, match=r"loss\.balance is gradient_norm; it needs train\.shard=false"):
        configs.load("digits", [("loss.balance", "gradient_norm"), ("train.shard", "true")])
    configs.load("digits", [("loss.balance", "uncertainty"), ("train.shard", "true")])


# --- in training --------------------------------------------------------------------------------------------------

FAST = {"train__learning_rate": 0.02, "train__warmup": 0, "train__decay": "constant", "backbone__dropout": 0}


def run(folder, **options):
    config = tiny(**{**FAST, **options})
    return fit(config, str(folder), build_data(config), quiet=True)


def test_variances_take_the_steps_of_adamw_without_decay(tmp_path):
    """From the losses that the stats have, in float64."""
    trainer = run(tmp_path / "run", train__steps=6, train__weight_decay=0.5, loss__balance="uncertainty")
    names = list(trainer.model.parts)
    s, m, v = (np.zeros(3) for _ in range(3))
    for step, line in enumerate(lines(trainer), 1):
        assert [line[f"balance.{n}"] for n in names] == pytest.approx(np.exp(-s), rel=1e-5)
        L = np.array([line[f"loss.{n}"] for n in names])
        assert line["loss"] == pytest.approx(L.sum(), rel=1e-5)  # as the config weighs them
        g = 0.5 - np.exp(-s) * L
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        s = s - 0.02 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert trainer.balance.log_variance.tolist() == pytest.approx(s, abs=1e-5) and np.abs(s).min() > 0.01


@pytest.mark.parametrize("rule", RULE)
def test_the_network_follows_the_weighted_losses(rule, tmp_path):
    """The norm of the third step's gradient is that of sum_i w_i dL_i, at the weights that two steps leave."""
    two, three = (run(tmp_path / str(n), train__steps=n, loss__balance=rule) for n in (2, 3))
    line, config, model = lines(three)[2], three.config, build_model(three.config)
    model.load_state_dict(load_tensors(two.run.folder / "model.safetensors")[0])
    order, train = Order(config.seed, len(three.data.train)), three.data.train
    numbers = torch.arange(32, 48)
    found = losses(model, train.__getitems__([order.index(n) for n in numbers.tolist()]), numbers, config)
    weights = [line[f"balance.{name}"] for name in found]
    assert max(abs(w - 1) for w in weights) > 0.01
    total = sum(w * x for w, x in zip(weights, found.values(), strict=True))
    grads = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads if g is not None))
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_gradient_norms_are_of_the_features_that_heads_read(tmp_path):
    """The second step's weights, from the first step's gradients at the backbone's outputs."""
    trainer = run(tmp_path / "run", train__steps=2, loss__balance="gradient_norm")
    config, model = trainer.config, build_model(trainer.config)
    seen = []
    model.backbone.register_forward_hook(lambda module, inputs, out: seen.append(out))
    order, numbers = Order(config.seed, len(trainer.data.train)), torch.arange(16)
    batch = trainer.data.train.__getitems__([order.index(n) for n in range(16)])
    found = losses(model, batch, numbers, config)
    G = []
    for x in found.values():
        grads = torch.autograd.grad(x, list(seen[0][:2]), retain_graph=True, allow_unused=True)
        G.append(math.sqrt(sum(float(g.double().square().sum()) for g in grads if g is not None)))
    there = [g for g in G if g > 0]
    assert len(there) == 2 and G[0] == 0  # the anchor's last layer begins at zero: nothing comes through it yet
    first, second = lines(trainer)
    assert [first[f"balance.{n}"] for n in found] == [1, 1, 1]
    expected = [(sum(there) / len(there) / g) ** 0.01 if g else 1 for g in G]
    assert [second[f"balance.{n}"] for n in found] == pytest.approx(expected, rel=1e-6)
    assert max(abs(x - 1) for x in expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULE)
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(rule, tmp_path):
    whole = run(tmp_path / "whole", train__steps=6, loss__balance=rule)
    run(tmp_path / "parts", train__steps=3, loss__balance=rule)
    again = run(tmp_path / "parts", train__steps=6, loss__balance=rule)
    a, b = whole.state(), again.state()
    assert a.keys() == b.keys() and any(name.startswith("balance.") for name in a)
    assert all(torch.equal(x, b[name]) for name, x in a.items())
    assert lines(whole) == lines(again)


@pytest.mark.parametrize("rule", RULE)
def test_parts_of_a_batch_give_the_same_weights(rule, tmp_path):
    one, four = (run(tmp_path / str(n), train__steps=5, train__accumulation=n, loss__balance=rule) for n in (1, 4))
    for a, b in zip(lines(one), lines(four), strict=True):
        assert a == {name: pytest.approx(x, rel=2e-3) for name, x in b.items()}


def by_ranks(folder, rule, **options):
    run(folder, train__steps=5, loss__balance=rule, **options)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULE)
def test_ranks_give_the_same_weights(rule, tmp_path):
    by_ranks(tmp_path / "parts", rule, train__accumulation=2)
    Job(2, tmp_path / "logs", by_ranks, tmp_path / "ranks", rule).done()
    assert_one_curve(tmp_path / "ranks", tmp_path / "parts", within=1e-4)


def test_what_counts_nothing_has_no_weight(tmp_path):
    options = {"loss__balance": "uncertainty", "modalities__mask__loss_weight": 0}
    trainer = run(tmp_path / "run", train__steps=1, **options)
    assert trainer.balance.names == ("image", "label")


def test_without_a_balance_nothing_is_kept_or_said(tmp_path):
    trainer = run(tmp_path / "run", train__steps=1)
    assert not any(name.startswith("balance") for name in [*trainer.state(), *lines(trainer)[0]])


def test_the_report_shows_the_weights():
    text = str(_curves([Series("balance.label", [1, 2], [1.0, 1.5])]))
    assert "Weight of the loss of label" in text
