"""How fast the deterministic samplers converge: their order, given a label and with everything generated."""

import functools
import importlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_sampling import MEANS, ORACLES, SPREAD, Oracle

import mmfast
from mmfast import Schedule, ops
from mmfast.model import Prediction
from mmfast.sample import sample
from mmfast.streams import SAMPLE

sample_module = importlib.import_module("mmfast.sample")


def map_of(sampler, steps, schedule=Schedule.cosine, T=1000):
    """z_0 of a deterministic sampler given a label, where all is linear: z_0 = slope z_T + offset."""
    # The x_0 target: an eps target's float32 is magnified by 1/sqrt(abar_T), 2e4 for the cosine schedule.
    model = Oracle(schedule=schedule, T=T, target="x0")
    z0 = sample(model, 64, {"label": torch.tensor([2])}, steps=steps, sampler=sampler, clamp=None, seed=5)["image"]
    start = ops.randn((64, model.channels, 1, 1), seed=5, sample_ids=torch.arange(64), stream=SAMPLE, draw=T)
    x, y = start[:, 0].flatten().double().numpy(), z0.flatten().double().numpy()
    slope, offset = np.polyfit(x, y, 1)
    np.testing.assert_allclose(slope * x + offset, y, atol=1e-4)
    return slope, offset


def even_schedule(T, weights):
    """Even steps of the log of abar/(1 - abar), from 200 down to 2e-5."""
    log_snr = torch.linspace(math.log(200.0), math.log(2e-5), T, dtype=torch.float64)
    return Schedule(torch.cat((torch.ones(1, dtype=torch.float64), torch.sigmoid(log_snr))), weights)


def exact_map(sched, last):
    """The same map with infinitely many steps from T to `last`, from where z_0 is read in one step.

    y_t is normal, with the mean sqrt(abar_t) mu and the variance d_t^2 = abar_t s^2 + 1 - abar_t; along the
    probability flow u = (y_t - sqrt(abar_t) mu)/d_t stays as it is, and E[z_0 | y_t] = mu + sqrt(abar_t) s^2/d_t u.
    """
    abar, mu = sched.alpha_bar.tolist(), float(MEANS[2])
    d_T, d_last = (math.sqrt(abar[t] * SPREAD**2 + 1 - abar[t]) for t in (sched.T, last))
    gain = math.sqrt(abar[last]) * SPREAD**2 / d_last
    return gain / d_T, mu - gain * math.sqrt(abar[sched.T]) * mu / d_T


ORDERS = [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)]


@pytest.mark.parametrize(("sampler", "order"), ORDERS)
def test_deterministic_samplers_converge_with_their_order(sampler, order):
    """The errors in slope and offset fall as (1/steps)^order: halving the step divides them by 2 or by 4."""
    T, errors = 4096, []
    for steps in (32, 64, 128, 256):
        slope, offset = map_of(sampler, steps, even_schedule, T)
        exact = exact_map(even_schedule(T, {}), T // steps)
        errors.append(math.hypot(slope - exact[0], offset - exact[1]))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(rate - order) < 0.4 for rate in rates), (errors, rates)
    assert abs(rates[-1] - order) < 0.2, (errors, rates)


def grid_to(last, power):
    """Grids of n steps from T to `last` and one more to 0, even for power 1."""
    return lambda T, n, spacing: [round(T - (T - last) * (i / n) ** power) for i in range(n + 1)] + [0]


@functools.cache
def drawn(name, power, sampler, steps):
    """Images that an oracle draws in so many steps, always from the same noise."""
    T, count = 8192, 200
    oracle = Oracle(**ORACLES.get(name, {}), schedule=even_schedule, T=T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_module, "timesteps", grid_to(T // 32, power))
        found = sample(oracle, count, clamp=None, seed=5, batch_size=count, sampler=sampler, steps=steps)
    return found["image"].double()


# The weights and the evenness of the steps meet in the coefficients alone: uneven ones are taken with one of them.
EVERYTHING = [
    pytest.param(name, power, marks=[pytest.mark.slow] * (power != 1 and name != "shared, bridge"))
    for name in ("own, carried", "own, bridge", "shared, bridge")
    for power in (1, 1.5)
]


@pytest.mark.parametrize(("sampler", "order"), ORDERS)
@pytest.mark.parametrize(("name", "power"), EVERYTHING)
def test_the_order_holds_where_everything_is_generated(name, sampler, order, power):
    """Image and label together: the label's encoding is extrapolated as z0hat is, or the order would be the first.

    Against a fine grid, from the same noise: the median over the samples, since a few lie where the labels part.
    """
    truth = drawn(name, power, "dpmpp_2m", 512)
    errors = [float((drawn(name, power, sampler, n) - truth).abs().median()) for n in (32, 64, 128)]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(rate - order) < 0.4 for rate in rates), (errors, rates)


def eased(T, n, spacing):
    """n even steps from T to T/32, the first of them begun in steps that double from its n-th part; then one to 0."""
    even = [T - (T - T // 32) * i / n for i in range(n + 1)]
    size = (even[0] - even[1]) / 2 ** math.ceil(math.log2(n))
    begun = [T - size * (2**i - 1) for i in range(math.ceil(math.log2(n)) + 1)]
    return [round(t) for t in [*begun, *even[1:], 0]]


def test_dpmpp_3m_is_of_the_third_order(monkeypatch):
    """Everything generated. Its first step is of the first order and would bring all down to two: it is made small."""
    monkeypatch.setattr(sample_module, "timesteps", eased)
    oracle = Oracle(**ORACLES.get("own, carried", {}), schedule=even_schedule, T=2**16)
    how = {"clamp": None, "seed": 5, "batch_size": 200, "sampler": "dpmpp_3m"}
    found = [sample(oracle, 200, **how, steps=n)["image"].double() for n in (16, 32, 64, 512)]
    errors = [float((x - found[-1]).abs().median()) for x in found[:-1]]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(2.5 < rate < 3.7 for rate in rates), (errors, rates)


@pytest.mark.parametrize("sampler", [sampler for sampler, _ in ORDERS] + ["dpmpp_3m"])
def test_deterministic_samplers_reach_the_distribution(sampler):
    """On the cosine schedule, to z_0: with more steps nearer to N(mu, s^2), and near it in the end."""
    target = np.array([SPREAD, float(MEANS[2])])
    errors = [np.abs(np.array(map_of(sampler, steps)) - target).max() for steps in (10, 40, 160)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02 * SPREAD


def test_dpmpp_beats_ddim():
    """Second order is worth having: at 20 steps on the cosine schedule."""
    target = np.array([SPREAD, float(MEANS[2])])
    error = {name: np.abs(np.array(map_of(name, 20)) - target).max() for name in ("ddim", "dpmpp_2m")}
    assert error["dpmpp_2m"] < 0.5 * error["ddim"]


# --- with an offset ---------------------------------------------------------------------------------------------


class OwnTimes(Oracle):
    """E[z_0 | z_t, told] and ln p(label | z_t, told) at a time for each block, exactly."""

    def forward(self, z, times, told):
        t0, t1 = times[0].tolist()
        a, z, codes = float(self.schedule.alpha_bar[t0]), z[:, :, 0, 0].double(), self.part("label").codes[:, :, 0, 0]
        means, codes = MEANS.double(), codes.double()
        y = z[:, :1] if t0 else told["image"][:, :, 0, 0].double()
        variance = a * SPREAD**2 + 1 - a
        logs = -0.5 * (y - math.sqrt(a) * means) ** 2 / variance
        mean = means + math.sqrt(a) * SPREAD**2 / variance * (y - math.sqrt(a) * means)
        if t1:
            W, v = float(self.schedule.W[t1, 0]), 1 - float(self.schedule.alpha_bar[t1])
            logs = logs - 0.5 * ((z[:, None, 1:] - W * codes) ** 2).sum(2) / v
        else:
            off = ((told["label"][:, None, :, 0, 0].double() - codes) ** 2).sum(2) > 1e-6
            logs = logs.masked_fill(off, -math.inf)
        logs = logs.log_softmax(1)
        z0 = (logs.exp() * mean).sum(1)
        return Prediction(z0[:, None, None, None].float(), {"label": logs.float()})


def open_end(T, weights):
    """Even steps of the log of abar/(1 - abar) down to 2e-5, from 2.7 at t = 1: before 0 much is still undecided."""
    log_snr = torch.linspace(1.0, math.log(2e-5), T, dtype=torch.float64)
    return Schedule(torch.cat((torch.ones(1, dtype=torch.float64), torch.sigmoid(log_snr))), weights)


def even(first, last, n):
    return [round(first + (last - first) * i / n) for i in range(n + 1)]


def path_ahead(span, n, spacing):
    """The label to 0, then the image to T/32 in steps of much the same size, and from there in one to 0."""
    lead = span // 6
    return [*even(span, lead, n), *even(lead, 512, n // 4)[1:], 0]


def path_behind(span, n, spacing):
    """The image to T/32, from there in one to 0, and then the label."""
    lead = span // 6
    return [*even(span, lead + 512, n), *even(lead, 0, n // 4)]


@pytest.fixture(scope="module")
def fine():
    """By the share of T that the label is ahead, the samples of a fine path; each is drawn once."""
    return {}


@pytest.mark.parametrize(("sampler", "order"), ORDERS)
@pytest.mark.parametrize(
    ("share", "grid"),
    [pytest.param(0.2, path_ahead, id="ahead"), pytest.param(-0.2, path_behind, id="behind", marks=pytest.mark.slow)],
)
def test_the_order_of_convergence_on_a_path(monkeypatch, fine, share, grid, sampler, order):
    """Against a fine path from the same noise, the median over the samples: a few lie where the labels part.

    Told of the label at last, the network corrects itself by a jump. Extrapolated over that, the order would be 1.
    """
    T, count = 16384, 300
    monkeypatch.setattr(sample_module, "timesteps", grid)
    oracle = OwnTimes(schedule=open_end, T=T, target="x0", weight=mmfast.carried(0.3))
    how = {"clamp": None, "seed": 5, "batch_size": count, "offset": {"label": share}}
    if share not in fine:
        fine[share] = sample(oracle, count, **how, sampler="dpmpp_2m", steps=512)["image"].double()
    exact, errors = fine[share], []
    for n in (32, 64, 128):
        found = sample(oracle, count, **how, sampler=sampler, steps=n)["image"].double()
        errors.append(float((found - exact).abs().median()))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(rate - order) < 0.4 for rate in rates), (errors, rates)
