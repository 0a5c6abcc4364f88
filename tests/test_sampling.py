"""Sampling: the loop's contract on an untrained model, and the right distribution where the denoiser is known.

The oracle's data are a number z_0 and a label: the label is one of three, each equally likely, and z_0 given the
label is normal around that label's mean. The best possible prediction of both from z_t is then known in closed form.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

import mmfast
from mmfast import MmfastError, Schedule, build, config
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.image import Image, ImageSpec
from mmfast.modalities.label import Label, LabelSpec
from mmfast.model import Model, Prediction
from mmfast.ops import backends
from mmfast.sample import sample
from mmfast.samplers import SAMPLERS, timesteps
from mmfast.streams import SAMPLE

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


CONFIG = """
anchor: image
modalities:
  image: {kind: image, channels: 1, size: 8}
  label: {kind: label, classes: 10, weight: {kind: bridge}}
  mask: {kind: mask, size: 8, weight: {kind: bridge}}
backbone: {kind: unet, channels: 16, multipliers: [1, 2], blocks: 1, attention: [4], head_channels: 16}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A config file of three modalities and a small U-Net."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(scope="module", params=["own", "shared"])
def model(request, settings):
    """Random weights in every layer, those that start at zero too."""
    model = build.build_model(config.load(settings, [("space", request.param)])).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return model


def data(model, count):
    g = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(count, 1, 8, 8, generator=g) * 2 - 1,
        "label": torch.randint(0, 10, (count,), generator=g),
        "mask": torch.randint(0, 2, (count, 8, 8), generator=g),
    }


SUBSETS = [(), ("label",), ("mask",), ("label", "mask"), ("image",), ("image", "label"), ("image", "label", "mask")]


@pytest.mark.parametrize("names", SUBSETS, ids=lambda n: "+".join(n) or "joint")
@pytest.mark.parametrize(
    ("model", "sampler"),
    [*(("own", sampler) for sampler in SAMPLERS), ("shared", "ddpm"), ("shared", "heun")],
    indirect=["model"],
)
def test_any_subset_given(model, names, sampler):
    """Every modality of the right shape and range, those that are given as they were."""
    given = {name: data(model, 3)[name] for name in names}
    before = {name: x.clone() for name, x in given.items()}
    result = sample(model, 3, given, steps=3, sampler=sampler)
    assert list(result) == ["image", "label", "mask"]
    for name, x in result.items():
        model.part(name).check(x, name)
        assert len(x) == 3
        if name in given:
            assert torch.equal(x, before[name])
            assert torch.equal(given[name], before[name])
    assert result["image"].abs().max() <= 1


@pytest.mark.parametrize("names", [(), ("mask",), ("image",)], ids=lambda n: "+".join(n) or "joint")
def test_an_example_does_not_depend_on_its_batch(model, names):
    """Any batch size, any order: example i is the same, to what the network's matrix products differ by."""
    given = {name: data(model, 4)[name] for name in names}
    options = {"steps": 3, "seed": 4, "guidance_scale": 1.5}
    whole = sample(model, 4, given, batch_size=4, **options)
    for size in (1, 3, 100):
        found = sample(model, 4, given, batch_size=size, **options)
        torch.testing.assert_close(found["image"], whole["image"], rtol=1e-4, atol=1e-4)
        for name in ("label", "mask"):
            assert (found[name] != whole[name]).float().mean() < 0.01
    order = torch.tensor([2, 0, 3])
    some = sample(model, 3, {n: x[order] for n, x in given.items()}, sample_ids=order, **options)
    torch.testing.assert_close(some["image"], whole["image"][order], rtol=1e-4, atol=1e-4)


def test_seeds_and_ids(model):
    """The same seed repeats, another one differs, and so do the examples among themselves."""
    options = {"steps": 4, "clamp": None}
    a, b, c = (sample(model, 3, seed=seed, **options)["image"] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.isclose(a, c).all(3).any()
    assert not torch.isclose(a[0], a[1]).all(2).any()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_no_noise_is_used_twice(model, monkeypatch, sampler):
    """The start and every step draw under an identity of their own, all in sampling's stream."""
    drawn, backend = [], backends.choose("cpu")

    def spied(function):
        def spy(call, *options):
            if call.noise is not None:
                drawn.append((*call.noise.key, call.noise.stream))
            return function(call, *options)

        return spy

    monkeypatch.setattr(backends, "LOOKING", backends.looking([]))  # every call is checked, and comes by the backend
    for name in ("combine", "step"):
        monkeypatch.setattr(backend, name, spied(getattr(backend, name)))
    sample(model, 2, steps=9, sampler=sampler, eta=float(sampler == "ddim"), seed=77)
    assert len(drawn) == len(set(drawn)) == 10
    assert {(seed, stream) for seed, _, stream in drawn} == {(77, SAMPLE)}


def test_one_given_serves_all(model):
    """[1, ...] for every example is that many copies."""
    one = data(model, 1)["mask"]
    a = sample(model, 4, {"mask": one}, steps=3)
    b = sample(model, 4, {"mask": one.repeat(4, 1, 1)}, steps=3)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(sample(model, given={"mask": one.repeat(4, 1, 1)}, steps=2)["image"]) == 4


def test_guidance_of_one_is_none(model):
    """Bit for bit, by a number and by name; another scale is not the same."""
    given = {"label": data(model, 2)["label"]}
    plain = sample(model, 2, given, steps=4, clamp=None)
    for scale in (1.0, 1, {"label": 1.0}, {}):
        found = sample(model, 2, given, steps=4, clamp=None, guidance_scale=scale)
        assert all(torch.equal(found[name], plain[name]) for name in plain)
    other = sample(model, 2, given, steps=4, clamp=None, guidance_scale={"label": 3.0})
    assert not torch.allclose(other["image"], plain["image"], atol=1e-3)


def test_the_model_is_left_as_it_was(model):
    """Training mode is put back, after an error too; no gradient is kept; the default generator is not touched."""
    model.train()
    state = torch.get_rng_state()
    try:
        result = sample(model, 1, steps=2)
        assert model.training
        assert not any(x.requires_grad for x in result.values())
        assert torch.equal(torch.get_rng_state(), state)
        forward = model.forward
        model.forward = lambda *args: 1 / 0
        with pytest.raises(ZeroDivisionError):
            sample(model, 1, steps=2)
        assert model.training
    finally:
        model.forward = forward
        model.eval()


@pytest.mark.parametrize(("T", "steps"), [(1000, 50), (1000, 1000), (1000, 999), (1000, 1), (7, 5), (10, 4), (1, 1)])
def test_timesteps(T, steps):
    """From T down to 0 in that many strictly falling, even steps."""
    grid = timesteps(T, steps)
    assert len(grid) == steps + 1
    assert (grid[0], grid[-1]) == (T, 0)
    gaps = [a - b for a, b in pairwise(grid)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


BAD = {
    "sampler": ({"sampler": "dpm"}, "sampler"),
    "steps zero": ({"steps": 0}, "steps"),
    "too many steps": ({"steps": 1001}, "steps"),
    "a float of steps": ({"steps": 2.5}, "steps"),
    "count": ({"count": 0}, "count"),
    "an unknown modality": ({"given": {"depth": torch.zeros(2)}}, "'depth'"),
    "a label too large": ({"given": {"label": torch.tensor([10, 0])}}, "label"),
    "a label of floats": ({"given": {"label": torch.zeros(2)}}, "label"),
    "a mask of another size": ({"given": {"mask": torch.zeros(2, 4, 4, dtype=torch.int64)}}, "mask"),
    "an image with NaN": ({"given": {"image": torch.full((2, 1, 8, 8), math.nan)}}, "image"),
    "another number of examples": ({"given": {"label": torch.tensor([1, 2, 3])}}, "label"),
    "guidance by what is not given": ({"guidance_scale": {"label": 2.0}}, "guidance_scale"),
    "sample_ids": ({"sample_ids": torch.arange(3)}, "sample_ids"),
    "sample_ids a list": ({"sample_ids": [0, 1]}, "sample_ids"),
    "sample_ids of floats": ({"sample_ids": torch.tensor([0.0, 1.0])}, "sample_ids"),
    "batch_size": ({"batch_size": 0}, "batch_size"),
    "clamp": ({"clamp": -1.0}, "clamp"),
    "eta": ({"eta": -1.0, "sampler": "ddim"}, "eta"),
    "seed": ({"seed": 1.5}, "seed"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(settings, name):
    """A MmfastError or TypeError of one line that names the argument."""
    options, word = BAD[name]
    model = build.build_model(config.load(settings, [("backbone.channels", "8")]))
    with pytest.raises((ValueError, TypeError)) as caught:
        sample(model, **{"count": 2, "steps": 2, **options})
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert issubclass(MmfastError, ValueError)


def test_what_is_unknown_is_at_T_and_not_told(settings, monkeypatch):
    """The times that the network is asked at; what is unknown is still read, at the end; what cannot be is named."""
    model = build.build_model(config.load(settings, []))
    asked, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda z, times, told: asked.append(times) or forward(z, times, told))
    label = torch.tensor([3, 4])
    result = sample(model, 2, {"label": label}, steps=2, unknown=["mask"])
    assert [times.tolist() for times in asked] == [[[1000, 0, 1000]] * 2, [[500, 0, 1000]] * 2]
    model.part("mask").check(result["mask"], "mask")
    with pytest.raises(MmfastError, match="unknown's modality"):
        sample(model, 2, {"label": label}, steps=2, unknown=["label"])
    for pairs in ([("space", "shared")], [("told", "false")]):
        with pytest.raises(MmfastError, match="unknown is given"):
            sample(build.build_model(config.load(settings, pairs)), 2, steps=2, unknown=["mask"])


@pytest.mark.parametrize(("unknown", "time"), [(0.0, 500), (0.3, 1000)])
def test_guidance_asks_what_training_has_shown(settings, monkeypatch, unknown, time):
    """Not told of the mask, which is given, the network sees it at T if it was ever unknown, else as z_t has it."""
    pairs = [("modalities.mask.unknown_probability", str(unknown))]
    model = build.build_model(config.load(settings, pairs))
    asked, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda z, times, told: asked.append(times) or forward(z, times, told))
    sample(model, 1, {"mask": data(model, 1)["mask"]}, steps=2, guidance_scale=2.0)
    usual = [times[0].tolist() for times in asked[::2]]
    untold = [times[0].tolist() for times in asked[1::2]]
    assert usual == [[1000, 1000, 0], [500, 500, 0]]
    assert untold == [[1000, 1000, 1000], [500, 500, time]]
