"""Maps of features: laid out by hand, their loss and density by torch's and scipy's, read from files, trained."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from mmfast import MmfastError, config
from mmfast.build import build_data, load_run
from mmfast.generate import generate
from mmfast.modalities import SpaceShape
from mmfast.modalities.base import unit_rms
from mmfast.modalities.feature_map import FeatureMap, FeatureMapSpec
from mmfast.training import train


def make(size=8, channels=None, **options):
    torch.manual_seed(0)
    part = FeatureMap("map", FeatureMapSpec(**{"dim": 3, "cells": 2, **options}), SpaceShape(size, size, channels))
    part.build_head(12)
    return part


def maps(count=5, dim=3, cells=2, seed=1):
    return torch.randn(count, dim, cells, cells, generator=torch.Generator().manual_seed(seed)) * 4


def test_each_cell_fills_its_pixels():
    part = make(size=4, dim=1)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]])
    rms = math.sqrt((1 + 4 + 9 + 25) / 4)
    expected = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 5, 5], [3, 3, 5, 5]]) / rms
    torch.testing.assert_close(part.encode(x)[0, 0], expected)
    assert part.channels == 1 and not part.uniform
    # Only the direction counts.
    torch.testing.assert_close(part.encode(7 * x), part.encode(x))


@pytest.mark.parametrize("channels", [None, 6])
def test_learned_encodings_have_unit_rms_and_learn(channels):
    part = make(encoder="learned", channels=channels)
    E = part.encode(maps())
    assert E.shape == (5, channels or 3, 8, 8)
    torch.testing.assert_close(E.square().mean((1, 2, 3)), torch.ones(5), atol=1e-4, rtol=0)
    E.sum().backward()
    assert float(part.proj.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("encoder", ["fixed", "learned"])
def test_the_expected_encoding_of_a_sure_head_is_the_encoding(encoder):
    part, x = make(encoder=encoder), maps()
    torch.testing.assert_close(part.encode_prediction(unit_rms(x)), part.encode(x))
    if encoder == "fixed":  # short where unsure
        torch.testing.assert_close(part.encode_prediction(0.3 * unit_rms(x)), 0.3 * part.encode(x))


def test_the_head_says_the_mean_of_what_it_says_at_a_cells_pixels():
    part, features = make(), torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(3))
    pixels = F.conv2d(part.norm(features), part.out.weight, part.out.bias, padding=1)
    expected = torch.stack(
        [pixels[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean((2, 3)) for i in range(2) for j in range(2)], 2
    )
    torch.testing.assert_close(part.head(features).flatten(2), expected)


def test_a_head_that_reads_the_encoder_says_every_number_of_every_cell():
    """By numpy: normalised features, two layers, and the numbers cell by cell of each of the map's channels."""
    part, features = make(reads="encoder"), torch.randn(2, 12, generator=torch.Generator().manual_seed(3))
    _, inner, _, outer = part.out
    x = features.numpy()
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    h = x @ inner.weight.detach().numpy().T + inner.bias.detach().numpy()
    said = h / (1 + np.exp(-h)) @ outer.weight.detach().numpy().T + outer.bias.detach().numpy()
    found = part.head(features)
    assert found.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(found.detach().numpy(), said.reshape(2, 3, 2, 2), atol=1e-5)
    with pytest.raises(MmfastError, match="reads"):
        config.load("image-embedding", [("modalities.embedding.reads", "middle")])


def test_loss_and_density_by_other_libraries():
    part, x, said = make(sigma=0.3), maps(), maps(seed=2) / 4
    true = unit_rms(x)
    torch.testing.assert_close(
        part.loss(said, x), torch.stack([F.mse_loss(a, b) for a, b in zip(said, true, strict=True)])
    )
    density = stats.norm.logpdf(true.numpy(), said.numpy(), 0.3).reshape(5, -1).sum(1)
    np.testing.assert_allclose(part.nll(said, x).numpy(), -density, rtol=1e-4)
    torch.testing.assert_close(part.decode(said), unit_rms(said))
    normal = maps(seed=4)
    torch.testing.assert_close(part.draw(said, normal), unit_rms(said + 0.3 * normal))


def test_the_score_is_the_cosine_over_the_whole_map():
    a = torch.zeros(2, 1, 2, 2)
    b = torch.zeros(2, 1, 2, 2)
    a[0, 0, 0, 0], b[0, 0, 0, 0] = 3.0, 5.0  # alike
    a[1, 0, 0, 0], b[1, 0, 1, 1] = 1.0, 1.0  # at right angles
    assert make(dim=1).score(a, b) == pytest.approx(0.5)


def test_the_picture_shows_three_numbers_of_each_cell():
    x = torch.zeros(3, 2, 2)
    x[0, 0, 1] = 2.0
    colours = np.asarray(make().show(x, 4))
    assert colours.shape == (4, 4, 3)
    # Half of sqrt(12), the largest number at unit RMS, is beyond 1.
    assert colours[0, 3].tolist() == [255, 128, 128] and colours[3, 0].tolist() == [128, 128, 128]
    assert np.asarray(make(dim=1).show(torch.ones(1, 2, 2), 4)).shape == (4, 4, 3)


def test_what_does_not_fit_is_named():
    with pytest.raises(MmfastError, match=r"modalities\.map\.cells is 3; it should divide the image's 8 x 8"):
        make(cells=3)
    with pytest.raises(MmfastError, match=r"modalities\.map\.dim is 3; there are 2 shared channels"):
        make(channels=2)
    with pytest.raises(MmfastError, match=r"x is torch.float32 \[5, 3, 4\]; it should be float \[B, 3, 2, 2\]"):
        make().check(torch.zeros(5, 3, 4), "x")
    make().check(maps(), "x")


def test_maps_are_read_in_their_own_shape(tmp_path):
    file, spec, x = tmp_path / "a.npy", FeatureMapSpec(dim=3, cells=2), maps(1)[0]
    np.save(file, x.numpy().astype(np.float64))
    torch.testing.assert_close(FeatureMap.read(file, spec), x)
    assert FeatureMap.blank(spec).shape == (3, 2, 2)
    np.save(file, x.numpy().transpose(1, 2, 0))  # channels last
    with pytest.raises(MmfastError, match=r"a\.npy holds \[2, 2, 3\]; it should hold \[3, 2, 2\]"):
        FeatureMap.read(file, spec)
    np.save(file, x.numpy()[:2])
    with pytest.raises(MmfastError, match=r"a\.npy holds 8 numbers; it should hold 12"):
        FeatureMap.read(file, spec)


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "reads"), [("none", "decoder"), ("carried", "decoder"), ("none", "encoder")])
def test_it_trains_and_is_read_off_the_image(weight, reads, tmp_path, monkeypatch):
    """Of the pixels themselves in 4 x 4 cells: what a short training finds is far nearer than chance."""
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[test]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file, given = tmp_path / "map.yaml", 0.5 if reads == "decoder" else 0.0
    file.write_text(f"""
anchor: image
space: own
data: {{kind: digits}}
modalities:
  image: {{kind: image, channels: 1, size: 8, levels: 17, given_probability: {given}, given_at_T: 1.0}}
  map:
    {{kind: feature_map, dim: 1, cells: 4, network: pixels, weight: {{kind: {weight}}}, loss_weight: 1, reads: {reads}}}
schedule: {{kind: cosine, T: 1000}}
backbone: {{kind: mlp, width: 64, blocks: 1, features: 8}}
loss: {{target: x0}}
train: {{steps: 60, batch_size: 32, learning_rate: 0.005, ema_decay: 0.5, sample_every: 0, tensorboard: false,
  clean_pass: {1.0 if reads == "encoder" else 0.0}}}
sample: {{steps: 1, count: 2}}
evaluate: {{samples: 0}}
""")
    chosen = config.load(str(file))
    data = build_data(chosen)
    train(chosen, str(tmp_path / "run"), quiet=True)
    model = load_run(tmp_path / "run", "cpu")[2]
    truth = data.test.__getitems__(range(64)).data
    drawn = generate(model, chosen, 64, {"image": truth["image"]}, seed=1, steps=1)["map"]
    assert drawn.shape == truth["map"].shape == (64, 1, 4, 4)
    part = model.part("map")
    assert part.score(drawn, truth["map"]) > 0.7 > 0.3 > part.score(truth["map"].roll(1, 0), truth["map"])
