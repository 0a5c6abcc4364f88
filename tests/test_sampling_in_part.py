"""What is given in part: it comes back exactly, and the rest follows the law that the method has in closed form.

The oracle's rows are two normal numbers of correlation R, so the best prediction is linear in z_t, and what the sampler
draws around a known number is normal, with a mean and a variance that a recursion of 2 x 2 matrices gives.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny import tiny

from mmfast import MmfastError, Schedule
from mmfast.build import build_data, build_model
from mmfast.generate import generate
from mmfast.inside import Inside
from mmfast.modalities import kind
from mmfast.modalities.base import SpaceShape
from mmfast.model import Model, Prediction
from mmfast.sample import sample
from mmfast.samplers import timesteps

R, KNOWN = 0.8, 2.0
COV = np.array([[1.0, R], [R, 1.0]])
UNITS = {"means": [10.0, -3.0], "scales": [2.0, 0.5]}  # of the columns


class Features(torch.nn.Module):
    features = reads = embedding_width = 4


class Oracle(Model):
    """E[z_0 | z_t] of the rows, which it has in its weights."""

    def __init__(self, T=400):
        part = kind("table")("row", kind("table").Spec(columns=["a", "b"], **UNITS), SpaceShape(1, 1))
        super().__init__("row", {"row": part}, Schedule.cosine(T, {}), lambda channels, size: Features(), "own", "x0")

    def forward(self, z, times, told):
        abar = float(self.schedule.alpha_bar[int(times[0, 0])])
        gain = math.sqrt(abar) * COV @ np.linalg.inv(abar * COV + (1 - abar) * np.eye(2))
        return Prediction(torch.einsum("ij,bjhw->bihw", torch.tensor(gain, dtype=torch.float32), z), {})


def law(steps, resample, T=400):
    """Mean and variance of what is drawn beside the known number, by recursion in float64."""
    at = np.arange(T + 1) / T
    f = np.cos((at + 0.008) / 1.008 * np.pi / 2) ** 2
    abar = np.concatenate(([1.0], np.cumprod(np.minimum(f[1:] / f[:-1], 1).clip(min=1 - 0.999))))
    mean, cov, grid = np.zeros(2), np.eye(2), timesteps(T, steps)
    for t, s in itertools.pairwise(grid):
        a, v_t, v_s = abar[t] / abar[s], 1 - abar[t], 1 - abar[s]
        gain = math.sqrt(abar[t]) * COV @ np.linalg.inv(abar[t] * COV + v_t * np.eye(2))
        gain[1] = 0  # of the second the truth is known
        of_z0, of_z = math.sqrt(abar[s]) * (1 - a) / v_t, math.sqrt(a) * v_s / v_t
        for again in range(resample if s else 1):
            move = of_z0 * gain + of_z * np.eye(2)
            new = move @ mean + of_z0 * np.array([0, KNOWN]), move @ cov @ move.T + (1 - a) * v_s / v_t * np.eye(2)
            if s and again < resample - 1:
                mean, cov = math.sqrt(a) * new[0], a * new[1] + (1 - a) * np.eye(2)
        mean, cov = new
    return mean[0], cov[0, 0]


@pytest.mark.parametrize("resample", [1, 4])
def test_the_rest_of_a_row_has_the_law_of_the_method(resample):
    count, model = 3000, Oracle()
    row = torch.tensor([[math.nan, KNOWN * 0.5 - 3.0]])  # what is not known may be anything
    known = {"row": torch.tensor([False, True])}
    drawn = sample(model, count, {"row": row}, known=known, steps=25, resample=resample)["row"]
    assert bool((drawn[:, 1] == row[0, 1]).all())
    x = (drawn[:, 0].double() - 10) / 2
    mean, variance = law(25, resample)
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / count)
    assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2 / count)


def test_taking_steps_again_brings_the_law_nearer_to_the_right_one():
    """Of the method itself: the docs' figures."""
    right = R * KNOWN, 1 - R**2
    off = [abs(law(100, n)[0] - right[0]) for n in (1, 5, 20)]
    assert off[0] > off[1] > off[2] and off[2] < 0.1


@pytest.fixture(scope="module")
def small():
    config = tiny(
        modalities__label__weight="{kind: carried}", backbone="{kind: mlp, width: 16, blocks: 1, features: 4}"
    )
    model = build_model(config)
    torch.nn.init.normal_(model.out.weight, std=0.3)  # which begins at zero
    return config, model, build_data(config).test.__getitems__(range(3)).data


@pytest.mark.parametrize("heads", ["soft", "sampled"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_what_is_known_of_a_picture_and_its_mask_comes_back(small, sampler, heads):
    _, model, data = small
    left = torch.zeros(8, 8, dtype=torch.bool)
    left[:, :4] = True
    known = {"image": left.expand(1, 8, 8), "mask": left}
    given = {name: data[name] for name in ("image", "mask")}
    how = {"steps": 4, "sampler": sampler, "heads": heads, "resample": 2}
    drawn = sample(model, None, given, known=known, **how)
    for name in known:
        assert torch.equal(drawn[name][..., :4], data[name][..., :4])
        assert not torch.equal(drawn[name][..., 4:], data[name][..., 4:])
    # What is not known has no part in it, and a known part has one.
    other = {name: torch.where(there, given[name], 1) for name, there in known.items()}
    again = sample(model, None, other, known=known, **how)
    assert all(torch.equal(again[name], x) for name, x in drawn.items())
    moved = {"image": -given["image"], "mask": given["mask"]}
    assert not torch.equal(sample(model, None, moved, known=known, **how)["image"][..., 4:], drawn["image"][..., 4:])


def test_all_known_is_given_and_nothing_known_is_not(small):
    _, model, data = small
    whole = torch.ones(1, 8, 8, dtype=torch.bool)
    given = {"image": data["image"]}
    drawn = sample(model, None, given, known={"image": whole}, steps=3, resample=1)
    assert torch.equal(drawn["image"], data["image"])
    told = sample(model, None, given, steps=3)  # the network is told, and no step is taken twice
    known = sample(model, None, given, known={"image": whole}, steps=3)
    assert all(torch.equal(known[name], told[name]) for name in told)
    nothing = sample(model, None, given, known={"image": ~whole}, steps=3, resample=1)
    assert torch.equal(nothing["image"], sample(model, 3, steps=3)["image"])


def test_a_part_that_is_drawn_first(small):
    config, model, data = small
    known = {"mask": torch.zeros(8, 8, dtype=torch.bool)}
    known["mask"][0] = True
    drawn = generate(model, config, 3, {"mask": data["mask"]}, known=known, first=["mask"], steps=2)
    assert torch.equal(drawn["mask"][:, 0], data["mask"][:, 0])


def test_parts_of_an_embedding_keep_their_places():
    spec = kind("embedding").Spec(dim=5)
    for room in (SpaceShape(1, 1), SpaceShape(2, 2), SpaceShape(4, 4)):
        part = kind("embedding")("e", spec, room)
        x, known = torch.arange(1.0, 6.0)[None], torch.tensor([[True, False, True, False, False]])
        where = part.known_in_space(known)
        laid = part.encode_part(x)
        assert where.shape == laid.shape
        assert set((laid[where] / laid[where].min()).round().tolist()) == {1.0, 3.0}
        assert torch.equal(part.parse_known("0,2"), known[0])
    assert torch.equal(part.parse_known("1-3"), torch.tensor([False, True, True, True, False]))


def test_what_is_put_into_the_space_is_x_as_its_block_has_it():
    """An anchor's pixels are z_0; another image's are over its RMS; an embedding's are not scaled by what is known."""
    model = build_model(
        tiny(
            modalities="{image: {kind: image, channels: 1, size: 8, rms: 0.5}, "
            "other: {kind: image, channels: 1, size: 8, rms: 0.5}, text: {kind: embedding, dim: 4, layout: channels}}"
        )
    )
    x, vector = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), torch.tensor([[0.5, 0.0, 0.0, 0.0]])
    for name, given, encoding in (("image", x, x), ("other", x, 2 * x), ("text", vector, vector[..., None, None])):
        known = torch.arange(given.numel()).reshape(given.shape) % 2 == 0
        part = Inside.of(model, name, given, known)
        torch.testing.assert_close(part.encoding, encoding)
        assert torch.equal(part.where.expand(encoding.shape), known.reshape(encoding.shape))
        said = torch.full_like(encoding, 7.0)
        torch.testing.assert_close(part.put_in(said), torch.where(part.where, encoding, said))


def test_what_cannot_be_is_said_before_anything_is_shown(small, capsys):
    _, model, data = small
    with pytest.raises(MmfastError, match="a label, which has no parts"):
        sample(model, 3, {"label": data["label"]}, known={"label": torch.tensor(True)}, steps=2, progress=True)
    assert capsys.readouterr().err == ""


def test_latents_and_what_leaves_no_trace_are_given_whole(monkeypatch):
    """The mask, of weight none, has parts, but none in z_t."""
    untraced = build_model(tiny(modalities__mask__weight="{kind: none}"))
    mask, left = torch.zeros(1, 8, 8, dtype=torch.int64), torch.zeros(8, 8, dtype=torch.bool)
    with pytest.raises(MmfastError, match=r"mask is given in part, but leaves no trace .*; give all"):
        sample(untraced, 1, {"mask": mask}, known={"mask": left}, steps=2)
    latent, image = build_model(tiny()), torch.zeros(1, 1, 8, 8)
    monkeypatch.setattr(Model, "latent", True)
    with pytest.raises(MmfastError, match="known has image, which is diffused as an autoencoder's latents; give all"):
        sample(latent, 1, {"image": image}, known={"image": left.expand(1, 8, 8)}, steps=2)
    assert sample(latent, 1, {"mask": mask}, known={"mask": left}, steps=2)["mask"].shape == (1, 8, 8)


@pytest.mark.parametrize(
    "given, known, message",
    [
        (["label"], {"label": torch.tensor(True)}, "known has label, a label, which has no parts"),
        ([], {"image": torch.ones(1, 8, 8, dtype=torch.bool)}, "known's modality is 'image'; it should be one of"),
        (["image"], {"image": torch.ones(8, 8)}, r"known\['image'\] is torch.float32 \[8, 8\]; it should be bool"),
    ],
)
def test_what_cannot_be_known_in_part(small, given, known, message):
    _, model, data = small
    with pytest.raises(MmfastError, match=message):
        sample(model, 3, {name: data[name] for name in given}, known=known, steps=2)


@pytest.mark.parametrize("text", ["5", "2-1", "x", "0-9", ""])
def test_places_that_are_none(text):
    part = kind("embedding")("e", kind("embedding").Spec(dim=5), SpaceShape(2, 2))
    with pytest.raises(MmfastError, match=r"is not a place; it should be in 0 \.\. 4"):
        part.parse_known(text)
