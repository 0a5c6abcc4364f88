"""Sampling: the right distribution where the denoiser is known.

The oracle's data are a number z_0 and a label: the label is one of three, each equally likely, and z_0 given the
label is normal around that label's mean. The best possible prediction of both from z_t is then known in closed form.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import mmfast
from mmfast import Schedule
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.image import Image, ImageSpec
from mmfast.modalities.label import Label, LabelSpec
from mmfast.model import Model, Prediction
from mmfast.sample import sample
from mmfast.samplers import SAMPLERS

MEANS, SPREAD = torch.tensor([-1.0, 0.1, 1.2]), 0.5


class Features(torch.nn.Module):
    """A stand-in for a backbone: the oracle does not use it."""

    features = reads = embedding_width = 4


class Oracle(Model):
    """Predicts E[z_0 | z_t, told] (as its target) and ln p(label | z_t, told), exactly."""

    def __init__(self, space="own", target="eps", weight=None, schedule=Schedule.cosine, T=1000):
        image = Image("image", ImageSpec(channels=1, size=1), SpaceShape(1, 1))
        room = Model.space_shape(image, space) if space == "own" else SpaceShape(1, 1, 1)
        parts = {"image": image, "label": Label("label", LabelSpec(classes=3), room)}
        super().__init__(
            "image",
            parts,
            schedule(T, {"label": weight or mmfast.carried(1.0)}),
            lambda channels, size: Features(),
            space,
            target,
        )

    def forward(self, z, times, told):
        t = int(times[0, 0] or times[0, 1])  # what is given is at 0
        abar, W = float(self.schedule.alpha_bar[t]), float(self.schedule.W[t, 0])
        v, codes = 1 - abar, self.part("label").codes[:, :, 0, 0]
        z, (flag_z0, flag_label) = z[:, :, 0, 0], (times == 0).float().T
        told = {name: x.expand(len(z), -1, -1, -1)[:, :, 0, 0] for name, x in told.items()}
        given_z0, of_label = told.get("image", z[:, :1]), told.get("label", codes[:1].expand(len(z), -1))
        # ln p(label | z_t) up to a constant, with z_0 integrated out or told; and E[z_0 | z_t, label].
        y = z[:, :1] - (W * codes[:, 0] if self.space == "shared" else 0.0)
        variance = abar * SPREAD**2 + v
        mean = MEANS + math.sqrt(abar) * SPREAD**2 / variance * (y - math.sqrt(abar) * MEANS)
        of_z0 = -0.5 * (y - math.sqrt(abar) * MEANS) ** 2 / variance
        of_told = -0.5 * (given_z0 - MEANS) ** 2 / SPREAD**2
        logs = torch.where(flag_z0[:, None] > 0, of_told, of_z0)
        if self.space == "own" and self.traced:
            logs = logs - 0.5 * ((z[:, None, 1:] - W * codes) ** 2).sum(2) / v
        match = ((of_label[:, None] - codes) ** 2).sum(2) < 1e-6
        logs = torch.where((flag_label[:, None] > 0) & ~match, -math.inf, logs).log_softmax(1)
        p = logs.exp()
        z0 = torch.where(flag_z0 > 0, given_z0[:, 0], (p * mean).sum(1))[:, None]
        # The step needs y_t = z_t - m_t with the encoding that the label's head expects.
        expected = (p @ codes) * W if self.space == "shared" else 0.0
        eps = (z[:, :1] - expected - math.sqrt(abar) * z0) / math.sqrt(v)
        answer = {"eps": eps, "x0": z0, "v": math.sqrt(abar) * eps - math.sqrt(v) * z0}[self.target]
        return Prediction(answer[:, :, None, None], {"label": logs})


def labels(values):
    return torch.bincount(values, minlength=3).numpy()


def normal(values, mean, deviation, bias=0.02):
    """Mean and deviation of samples, within four standard errors and what finitely many steps cost."""
    x = values.flatten().double().numpy()
    assert abs(x.mean() - mean) < 4 * deviation / math.sqrt(len(x)) + bias * deviation
    assert abs(x.std() - deviation) < 4 * deviation / math.sqrt(2 * len(x)) + bias * deviation


ORACLES = {
    "own, eps": {},
    "own, v": {"target": "v"},
    "own, x0, linear": {"target": "x0", "schedule": Schedule.linear},
    "own, bridge": {"weight": mmfast.bridge(2.0)},
    "shared, bridge": {"space": "shared", "weight": mmfast.bridge(2.0)},
}
# z_T is centred on the label's encoding, which is therefore always given.
SHIFTED = {"space": "shared", "weight": mmfast.shift(1.5)}


@pytest.mark.parametrize("name", ORACLES)
def test_joint_samples_have_the_joint_distribution(name):
    """z_0 is the mixture; labels come equally often, and z_0 with a label is normal around that label's mean.

    The last holds for carried weights alone: a bridge ends at zero, so the label is not drawn by the process but
    read from z_0 at the end, as its likeliest.
    """
    result = sample(Oracle(**ORACLES[name]), 3000, steps=250, clamp=None, seed=1, batch_size=3000)
    z0 = np.sort(result["image"].flatten().double().numpy())

    def mixture(x):
        return sum(stats.norm.cdf(x, m, SPREAD) for m in MEANS.tolist()) / 3

    assert stats.kstest(z0, mixture).pvalue > 1e-4
    if "bridge" not in name:
        assert stats.chisquare(labels(result["label"])).pvalue > 1e-4
        for k in range(3):
            normal(result["image"][result["label"] == k], float(MEANS[k]), SPREAD, bias=0.03)
    else:
        likeliest = (result["image"].flatten()[:, None] - MEANS).abs().argmin(1)
        assert (result["label"] == likeliest).float().mean() > 0.98


# A step's coefficients are the sampler's, and the weights come to them from outside: a space meets two of them.
GIVEN_LABEL = [("own, eps", sampler) for sampler in SAMPLERS]
GIVEN_LABEL += [(name, sampler) for name in ("shared, bridge", "shared, shift") for sampler in ("ddpm", "dpmpp_2m")]


@pytest.mark.filterwarnings("ignore:z_T is far")
@pytest.mark.parametrize(("name", "sampler"), GIVEN_LABEL)
def test_samples_given_a_label(name, sampler):
    """Normal around its mean, by every sampler; the label comes back as it was."""
    given, oracle = torch.arange(3).repeat(1500), Oracle(**ORACLES.get(name, SHIFTED))
    result = sample(oracle, given={"label": given}, steps=100, sampler=sampler, clamp=None, seed=2, batch_size=4500)
    assert torch.equal(result["label"], given)
    for k in range(3):
        normal(result["image"][given == k], float(MEANS[k]), SPREAD)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_labels_given_the_anchor(sampler):
    """The anchor given: the labels' frequencies are Bayes' posterior for that z_0, and the anchor comes back."""
    for value in (-0.4, 0.65):
        given = torch.full((1, 1, 1, 1), value)
        result = sample(Oracle(), 3000, {"image": given}, steps=125, sampler=sampler, seed=3, batch_size=3000)
        assert torch.equal(result["image"], given.expand(3000, 1, 1, 1))
        p = torch.softmax(-0.5 * (value - MEANS) ** 2 / SPREAD**2, 0).double().numpy()
        found = labels(result["label"]) / 3000
        # Four standard errors, and what finitely many steps cost.
        assert (np.abs(found - p) < 4 * np.sqrt(p * (1 - p) / 3000) + 0.015).all(), (found, p)


def test_everything_given_comes_back():
    given = {"label": torch.tensor([2, 0]), "image": torch.tensor([0.5, -0.5]).reshape(2, 1, 1, 1)}
    result = sample(Oracle(), given=given, steps=3)
    assert all(torch.equal(result[name], x) for name, x in given.items())


@pytest.mark.parametrize(
    ("target", "sampler"), [*(("v", sampler) for sampler in SAMPLERS), ("x0", "ddpm"), ("x0", "dpmpp_2m")]
)
def test_a_schedule_that_ends_in_pure_noise(sampler, target):
    """alpha_bar_T = 0 (Lin et al., 2024): nothing is divided by it, and the distribution is right."""

    def schedule(T, weights):
        table = torch.cos(torch.linspace(0, 1, T + 1, dtype=torch.float64) * math.pi / 2).square()
        table[T] = 0
        return Schedule(table, weights)

    model = Oracle(schedule=schedule, target=target)
    result = sample(model, 3000, {"label": torch.tensor([2])}, steps=100, sampler=sampler, clamp=None, batch_size=3000)
    normal(result["image"], float(MEANS[2]), SPREAD)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_3m"])
def test_samplers_with_noise(sampler, eta):
    """Every eta has the same marginals: the spread is right with noise too."""
    result = sample(
        Oracle(), 4500, {"label": torch.tensor([0])}, steps=100, sampler=sampler, eta=eta, clamp=None, batch_size=4500
    )
    normal(result["image"], float(MEANS[0]), SPREAD)


@pytest.mark.slow
def test_guidance_by_the_oracle():
    """Scale 0 ignores the label: the marginal's spread; scale 1 heeds it; above 1 it is pushed further away."""
    spread = {}
    for scale in (0.0, 1.0, 2.0):
        x = sample(
            Oracle(weight=mmfast.none()), 4000, {"label": torch.tensor([2])}, steps=100, clamp=None,
            guidance_scale=scale, batch_size=4000,
        )["image"]  # fmt: skip
        spread[scale] = (float(x.mean()), float(x.std()))
    marginal = float((SPREAD**2 + MEANS.var(correction=0)).sqrt())
    # No weight, so z_t says nothing of the label: only what is told does.
    assert spread[0.0] == pytest.approx((float(MEANS.mean()), marginal), abs=0.05)
    assert spread[1.0] == pytest.approx((float(MEANS[2]), SPREAD), abs=0.04)
    assert spread[2.0][0] > float(MEANS[2]) + 0.05


# --- an untrained model ----------------------------------------------------------------------------------------
