"""Sampling from an untrained model: what is given, examples and batches, seeds, guidance, times, errors."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmfast import MmfastError, build, config
from mmfast.ops import backends
from mmfast.sample import sample
from mmfast.samplers import SAMPLERS, timesteps
from mmfast.streams import SAMPLE

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


@given(st.integers(1, 60), st.floats(1, 10), st.integers(0, 2000))
def test_finer_timesteps_near_0(steps, spacing, more):
    """T u^spacing, rounded, but at least 1 apart: below a point whole numbers in turn, above it those."""
    T = steps + more
    grid = timesteps(T, steps, spacing)[::-1]
    wanted = [T * (k / steps) ** spacing for k in range(steps + 1)]
    assert (grid[0], grid[-1], len(grid)) == (0, T, steps + 1)
    for k, (before, t) in enumerate(pairwise(grid), 1):
        assert t == before + 1 or (t > before and abs(t - wanted[k]) <= 0.5 + 1e-6)
        assert t >= wanted[k] - 0.5 - 1e-6


@pytest.mark.parametrize(
    ("spacing", "times"), [(1, [1000, 750, 500, 250]), (2, [1000, 562, 250, 62]), (3, [1000, 422, 125, 16])]
)
def test_the_times_that_the_network_sees(model, monkeypatch, spacing, times):
    seen, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda z, t, told: seen.append(int(t[0, 0])) or forward(z, t, told))
    sample(model, 1, steps=4, spacing=spacing, sampler="ddim")
    assert seen == times


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
    "a sample_id below 0": (
        {"sample_ids": torch.tensor([0, -1])},
        "sample_ids are -1 .. 0; they should be in 0 .. 2^48",
    ),
    "a sample_id of 49 bits": ({"sample_ids": torch.tensor([1 << 48, 0])}, "sample_ids are 0 .. 281474976710656"),
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
