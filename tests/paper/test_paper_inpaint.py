"""The inpainting baselines against a distribution whose best denoiser and whose conditionals are known.

The oracle's images are normal, N(mu, C), so E[z_0 | z_t] is linear, every step of both methods is linear and Gaussian,
and their results are normal with a mean and a covariance that `exact` computes in float64. What they should be is the
conditional distribution of the hidden pixels given the visible ones.
"""

import math
from itertools import pairwise

import pytest
import torch

from benchmarks.paper.inpaint import FILLS, evaluations, repaint, repaint_path, sdedit, sdedit_path
from mmfast import MmfastError, Schedule
from mmfast.backbones import Features
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.image import Image, ImageSpec
from mmfast.modalities.label import Label, LabelSpec
from mmfast.model import Model, Prediction

SIZE, COUNT = 4, 4000
PIXELS = SIZE * SIZE


class Stand(torch.nn.Module):
    """A stand-in for a backbone: the oracle does not use it."""

    features = reads = embedding_width = 4


class Oracle(Model):
    """Predicts E[z_0 | z_t] (as its target) of images N(mu, C), and counts how often it is asked."""

    def __init__(self, target="eps"):
        image = Image("image", ImageSpec(channels=1, size=SIZE), SpaceShape(SIZE, SIZE))
        super().__init__(
            "image", {"image": image}, Schedule.cosine(1000), lambda channels, size: Stand(), "own", target
        )
        at = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).double()
        self.C = 0.25 * torch.exp(-torch.cdist(at, at) / 3)
        self.mu = torch.linspace(-0.3, 0.3, PIXELS, dtype=torch.float64)
        self.asked = 0

    def gain(self, t):
        """K of E[z_0 | z_t] = mu + K (z_t - sqrt(abar_t) mu)."""
        abar = self.schedule.alpha_bar[t]
        return abar.sqrt() * self.C @ torch.linalg.inv(abar * self.C + (1 - abar) * torch.eye(PIXELS))

    def forward(self, z, t, told):
        assert not told and bool((t > 0).all())
        self.asked += 1
        t = int(t[0])
        abar, y = self.schedule.alpha_bar[t], z.flatten(1).double()
        z0 = self.mu + (y - abar.sqrt() * self.mu) @ self.gain(t).T
        eps = (y - abar.sqrt() * z0) / (1 - abar).sqrt()
        answer = {"eps": eps, "x0": z0, "v": abar.sqrt() * eps - (1 - abar).sqrt() * z0}[self.target]
        return Prediction(answer.float().reshape(z.shape), {})


def visible():
    """A frame of visible pixels around a block of 2 x 3 hidden ones."""
    shown = torch.ones(SIZE, SIZE, dtype=torch.bool)
    shown[1:3, 1:4] = False
    return shown


SHOWN = visible().flatten()
HIDDEN = ~SHOWN


def example(oracle):
    """An image whose pixels all lie one deviation above their means (in float32, as the methods see it)."""
    return (oracle.mu + 0.5).float().double()


def conditional(oracle, z0):
    """Mean and covariance of the hidden pixels given the visible ones."""
    G = oracle.C[HIDDEN][:, SHOWN] @ torch.linalg.inv(oracle.C[SHOWN][:, SHOWN])
    mean = oracle.mu[HIDDEN] + G @ (z0[SHOWN] - oracle.mu[SHOWN])
    return mean, oracle.C[HIDDEN][:, HIDDEN] - G @ oracle.C[SHOWN][:, HIDDEN]


def exact(oracle, z0, path, paste, mean, cov):
    """Mean and covariance of the hidden pixels at the end of a path that starts from N(mean, cov)."""
    abar, one = oracle.schedule.alpha_bar, torch.eye(PIXELS, dtype=torch.float64)
    seen, unseen = torch.diag(SHOWN.double()), torch.diag(HIDDEN.double())
    for t, s in pairwise(path):
        if s > t:
            a = abar[s] / abar[t]
            mean, cov = a.sqrt() * mean, a * cov + (1 - a) * one
            continue
        # The posterior of z_s, its z_0 replaced by mu + K (z_t - sqrt(abar_t) mu).
        a, v_t, v_s, K = abar[t] / abar[s], 1 - abar[t], 1 - abar[s], oracle.gain(t)
        of_z0, of_z = abar[s].sqrt() * (1 - a) / v_t, a.sqrt() * v_s / v_t
        A = of_z0 * K + of_z * one
        mean = A @ mean + of_z0 * (oracle.mu - abar[t].sqrt() * K @ oracle.mu)
        cov = A @ cov @ A.T + (1 - a) * v_s / v_t * one
        if paste:
            mean = unseen @ mean + abar[s].sqrt() * seen @ z0
            cov = unseen @ cov @ unseen + v_s * seen
    return mean[HIDDEN], cov[HIDDEN][:, HIDDEN]


def run(method, oracle, z0, **options):
    """COUNT results for one image, each with noise of its own: [COUNT, PIXELS] in float64."""
    images = z0.float().reshape(1, 1, SIZE, SIZE).expand(COUNT, 1, SIZE, SIZE)
    masks = visible().expand(COUNT, 1, SIZE, SIZE)
    return method(oracle, images, masks, clamp=None, batch_size=COUNT, **options).flatten(1).double()


def assert_normal(x, mean, cov):
    """The sample's means, variances and covariances within five of their standard errors."""
    n, variance = len(x), cov.diagonal()
    assert ((x.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    # The variance of a sample covariance: (c_ij^2 + c_ii c_jj)/n.
    error = ((cov.square() + variance[:, None] * variance) / n).sqrt()
    assert ((torch.cov(x.T) - cov).abs() < 5 * error).all()


# Few steps: then what a step does wrong is not mended by those that follow.
REPAINT = {
    "few steps, no jumps": ({"steps": 4, "resamplings": 1}, "eps"),
    "jumps": ({"steps": 6, "jump_length": 4, "resamplings": 3}, "v"),
    "algorithm 1": ({"steps": 5, "jump_length": 1, "resamplings": 4}, "x0"),
}


@pytest.mark.parametrize("name", REPAINT)
def test_repaint_has_the_distribution_of_its_path(name):
    options, target = REPAINT[name]
    oracle = Oracle(target)
    z0, path = example(oracle), repaint_path(1000, **{"jump_length": 5, "resamplings": 5, **options})
    x = run(repaint, oracle, z0, seed=1, **options)
    start = torch.zeros(PIXELS, dtype=torch.float64), torch.eye(PIXELS, dtype=torch.float64)
    assert_normal(x[:, HIDDEN], *exact(oracle, z0, path, True, *start))
    assert oracle.asked == evaluations(path)


@pytest.mark.parametrize("paste", [False, True])
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_sdedit_has_the_distribution_of_its_path(strength, paste):
    oracle = Oracle()
    z0, path = example(oracle), sdedit_path(1000, 20, strength)
    x = run(sdedit, oracle, z0, seed=2, strength=strength, steps=20, paste_each_step=paste)
    filled, abar = torch.where(SHOWN, z0, z0[SHOWN].mean()), oracle.schedule.alpha_bar[path[0]]
    start = abar.sqrt() * filled, (1 - abar) * torch.eye(PIXELS, dtype=torch.float64)
    assert_normal(x[:, HIDDEN], *exact(oracle, z0, path, paste, *start))
    assert oracle.asked == evaluations(path) == 20


@pytest.mark.slow
def test_repaint_comes_near_the_conditional_and_an_independent_draw_does_not():
    """The mean, in conditional deviations, and the variances over the conditional ones.

    By `exact`, RePaint's own bias here is 0.5 deviations without jumps, 0.13 with them, and then 18% of the variance;
    an independent draw is off by more than 1.5 deviations, with 2.2 times the variance or more. 4000 samples add
    standard errors of 0.02 and 2%.
    """
    oracle = Oracle()
    z0 = example(oracle)
    mean, cov = conditional(oracle, z0)

    def off(x):
        return (x.mean(0)[HIDDEN] - mean) / cov.diagonal().sqrt(), x.var(0)[HIDDEN] / cov.diagonal()

    error, ratio = off(run(repaint, oracle, z0, seed=3))
    plain, _ = off(run(repaint, oracle, z0, seed=3, resamplings=1))
    independent, wide = off(run(sdedit, oracle, z0, seed=3, strength=1.0))
    assert error.abs().max() < 0.2
    assert (ratio > 0.7).all() and (ratio < 1.3).all()
    assert error.norm() < 0.4 * plain.norm()
    assert error.norm() < 0.2 * independent.norm()
    assert (wide > 2).all()


# --- any model -------------------------------------------------------------------------------------------------


class Convolution(torch.nn.Module):
    """A small network whose answer depends on every channel it is shown, on neighbours and on t."""

    features = reads = embedding_width = 4

    def __init__(self, channels):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x, t):
        h = torch.tanh(self.conv(x) + t[:, None, None, None] / 1000)
        return Features(h, h.mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    image = Image("image", ImageSpec(channels=3, size=8), SpaceShape(8, 8))
    model = Model("image", {"image": image}, Schedule.cosine(200), lambda channels, size: Convolution(channels))
    torch.nn.init.normal_(model.out.weight, std=0.3)
    return model


def problem(count=5):
    g = torch.Generator().manual_seed(1)
    image = torch.rand(count, 3, 8, 8, generator=g) * 2 - 1
    mask = (torch.rand(count, 1, 8, 8, generator=g) < 0.6).float()
    mask[0] = 0  # nothing is visible
    mask[1] = 1  # everything is
    return image, mask


METHODS = {
    "repaint": lambda *a, **k: repaint(*a, steps=8, jump_length=2, resamplings=2, **k),
    "sdedit": lambda *a, **k: sdedit(*a, steps=5, **k),
    "sdedit, nearest": lambda *a, **k: sdedit(*a, steps=5, fill="nearest", **k),
    "sdedit, paste": lambda *a, **k: sdedit(*a, steps=5, paste_each_step=True, **k),
}


@pytest.mark.parametrize("name", METHODS)
def test_hidden_pixels_are_never_read_and_visible_ones_come_back(model, name):
    """Whatever stands in the hidden pixels, NaN too; the visible ones are the very same, and matter."""
    (image, mask), method = problem(), METHODS[name]
    before = image.clone()
    out = method(model, image, mask)
    assert torch.equal(image, before)
    assert out.isfinite().all() and out.shape == image.shape and out.abs().max() <= 1
    shown = mask.bool().expand_as(image)
    assert torch.equal(out[shown], image[shown])
    for other in (torch.full_like(image, math.nan), torch.full_like(image, math.inf), -image):
        assert torch.equal(method(model, torch.where(shown, image, other), mask), out)
    changed = method(model, torch.where(shown, -image, image), mask)
    assert not torch.equal(changed[2:][~shown[2:]], out[2:][~shown[2:]])
    assert torch.equal(method(model, image, mask.bool()), out)


def test_sdedit_may_put_nothing_back(model):
    """The article's: hidden pixels are the same, visible ones are those that were drawn."""
    image, mask = problem()
    put, left = (sdedit(model, image, mask, steps=5, paste=paste) for paste in (True, False))
    shown = mask.bool().expand_as(image)
    assert torch.equal(put[~shown], left[~shown]) and torch.equal(put[shown], image[shown])
    assert (left - image)[shown].abs().mean() > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_an_example_does_not_depend_on_its_batch(model, name):
    """Its noise is that of (seed, sample id); what remains is how the network's products are summed."""
    (image, mask), method = problem(), METHODS[name]
    ids = torch.tensor([7, 0, 3, 1 << 40, 9])
    whole = method(model, image, mask, seed=5, sample_ids=ids)
    assert torch.equal(whole, method(model, image, mask, seed=5, sample_ids=ids))
    order = torch.tensor([4, 2, 0, 3, 1])
    part = method(model, image[order], mask[order], seed=5, sample_ids=ids[order], batch_size=2)
    torch.testing.assert_close(part, whole[order], rtol=1e-4, atol=1e-4)
    for other in ({"seed": 6, "sample_ids": ids}, {"seed": 5, "sample_ids": ids + 1}):
        assert (method(model, image, mask, **other) - whole)[2:].abs().max() > 0.05


@pytest.mark.parametrize("name", METHODS)
def test_the_network_can_compute_in_bfloat16(model, name):
    """A network of bfloat16's eight bits, steps in float32: near to the other by a few of its roundings, not equal."""
    (image, mask), method = problem(), METHODS[name]
    whole, half = (method(model, image, mask, precision=precision) for precision in ("fp32", "bf16"))
    assert half.dtype == torch.float32 and 0 < (half - whole).abs().mean() < 0.02
    with pytest.raises(MmfastError, match=r"precision.*'fp16'"):
        method(model, image, mask, precision="fp16")


def test_the_mode_of_the_model_is_kept(model):
    model.train()
    repaint(model, *problem(), steps=3, jump_length=1)
    assert model.training


# --- the parts -------------------------------------------------------------------------------------------------


def test_paths():
    """Worked by hand: with jumps of 2, twice each, from the levels 3 and 1 of six; algorithm 1 with U = 2; no jumps."""
    assert repaint_path(6, 6, 2, 2) == [6, 5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]
    assert repaint_path(30, 3, 1, 2) == [30, 20, 30, 20, 10, 20, 10, 0]
    assert repaint_path(1000, 4, 9, 1) == [1000, 750, 500, 250, 0]
    assert sdedit_path(1000, 4, 0.4) == [400, 300, 200, 100, 0]
    # 50 steps, and nine places (1, 6, ..., 41) with four jumps of five.
    assert evaluations(repaint_path(1000, 50, 5, 5)) == 50 + 9 * 4 * 5


def test_fills():
    """The mean by example and channel; the nearest by a search of its own; zeros where nothing is visible."""
    image, mask = problem(4)
    shown = mask.bool()
    known = image.masked_fill(~shown, 0)
    mean, nearest = (FILLS[name](known, shown).expand_as(image) for name in ("mean", "nearest"))
    assert not mean[0].any() and not nearest[0].any()
    for b in range(1, 4):
        at = shown[b, 0].nonzero().tolist()
        for c in range(3):
            assert mean[b, c, 0, 0] == pytest.approx(float(image[b, c][shown[b, 0]].mean()), abs=1e-6)
            for y in range(8):
                for x in range(8):
                    i, j = min(at, key=lambda p: ((p[0] - y) ** 2 + (p[1] - x) ** 2, p))
                    assert nearest[b, c, y, x] == image[b, c, i, j]


BAD = {
    "steps": (repaint, {"steps": 0}, "steps"),
    "resamplings": (repaint, {"resamplings": 0}, "resamplings"),
    "jump_length": (repaint, {"jump_length": 1.5}, "jump_length"),
    "no room to jump": (repaint, {"steps": 5, "jump_length": 5}, "jump_length"),
    "clamp": (repaint, {"clamp": 0}, "clamp"),
    "batch_size": (repaint, {"batch_size": 0}, "batch_size"),
    "sample_ids": (repaint, {"sample_ids": torch.arange(4)}, "sample_ids"),
    "an image of another size": (repaint, {"image": torch.zeros(5, 3, 4, 4)}, "image"),
    "an image of bytes": (repaint, {"image": torch.zeros(5, 3, 8, 8, dtype=torch.uint8)}, "image"),
    "a visible NaN": (repaint, {"image": torch.full((5, 3, 8, 8), math.nan)}, "image"),
    "a mask of another shape": (repaint, {"mask": torch.ones(5, 8, 8)}, "mask"),
    "a mask of halves": (repaint, {"mask": torch.full((5, 1, 8, 8), 0.5)}, "mask"),
    "fill": (sdedit, {"fill": "blurr"}, "fill"),
    "strength": (sdedit, {"strength": 0.0}, "strength"),
    "more steps than times": (sdedit, {"strength": 0.1, "steps": 30}, "steps"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(model, name):
    method, options, word = BAD[name]
    image, mask = problem()
    with pytest.raises(MmfastError, match=word) as caught:
        method(**{"model": model, "image": image, "mask": mask, **options})
    assert "\n" not in str(caught.value)


def test_a_model_of_more_than_the_anchor_is_refused():
    image = Image("image", ImageSpec(channels=1, size=8), SpaceShape(8, 8))
    parts = {"image": image, "label": Label("label", LabelSpec(classes=3), Model.space_shape(image, "own"))}
    schedule = Schedule.cosine(100, {"label": lambda abar: 0 * abar})
    model = Model("image", parts, schedule, lambda channels, size: Stand())
    with pytest.raises(MmfastError, match="label"):
        repaint(model, torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8))
