"""An embedding's principal components, and the way back, against numpy's own decompositions and least squares."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import config as configs
from mmfast import load, modalities
from mmfast.build import build_data, build_model
from mmfast.data.base import Data, InMemory
from mmfast.errors import MmfastError
from mmfast.modalities import SpaceShape
from mmfast.modalities.components import Components
from mmfast.run import Run
from mmfast.training import Trainer, train
from mmfast.training.try_out import fitted

DIM, COUNT, N = 12, 3, 200


def vectors(rank=DIM, noise=0.3, seed=0):
    """[N, DIM], most of whose variance lies along a few directions, off the origin."""
    rng = np.random.default_rng(seed)
    strong = rng.normal(size=(N, rank)) * np.geomspace(5, noise, rank)
    return torch.from_numpy(strong @ np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:rank] + 4).float()


def part(components=COUNT, **options):
    spec = modalities.kind("embedding").Spec(dim=DIM, components=components, **options)
    return modalities.kind("embedding")("vector", spec, SpaceShape(4, 4))


def test_they_are_numpys():
    """The right singular vectors of what is centred, but for their signs; orthonormal; of unit RMS."""
    x = vectors()
    reduced = Components(DIM, COUNT)
    reduced.fit(x)
    centred = x.double().numpy() - x.double().numpy().mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    axes = reduced.axes.double().numpy()
    np.testing.assert_allclose(axes.T @ axes, np.eye(COUNT), atol=1e-6)
    np.testing.assert_allclose(np.abs(right[:COUNT] @ axes), np.eye(COUNT), atol=1e-5)
    assert float(reduced.project(x).square().mean()) == pytest.approx(1, abs=1e-5)
    assert float(reduced.scale) ** 2 == pytest.approx((singular[:COUNT] ** 2).sum() / N / COUNT, rel=1e-5)


def test_the_way_back_is_the_nearest_that_the_axes_reach():
    """Against numpy's least squares; and what is lost is the variance along the other axes, as the docs say."""
    x = vectors()
    reduced = Components(DIM, COUNT)
    reduced.fit(x)
    back = reduced.unproject(reduced.project(x)).double().numpy()
    mean, axes = x.double().numpy().mean(0), reduced.axes.double().numpy()
    nearest = mean + (axes @ np.linalg.lstsq(axes, (x.double().numpy() - mean).T, rcond=None)[0]).T
    np.testing.assert_allclose(back, nearest, atol=1e-4)
    lost = np.square(x.double().numpy() - back).sum(1)
    left_out = np.linalg.svd(x.double().numpy() - mean, compute_uv=False)[COUNT:] ** 2 / N
    assert lost.mean() == pytest.approx(left_out.sum(), rel=1e-4)
    y = torch.randn(5, COUNT)
    torch.testing.assert_close(reduced.project(reduced.unproject(y)), y, atol=1e-5, rtol=1e-5)


def test_vectors_that_are_all_one_have_no_scale():
    """Nothing is divided by zero: each is the mean, whose components are zeros."""
    x = torch.tensor([[1.0, -2.0, 3.0]]).repeat(5, 1)
    reduced = Components(3, 2)
    reduced.fit(x)
    assert float(reduced.scale) == 1 and torch.equal(reduced.project(x), torch.zeros(5, 2))
    assert torch.equal(reduced.unproject(torch.zeros(5, 2)), x)


def test_with_as_many_as_numbers_nothing_is_lost_and_the_length_is_kept():
    x = vectors()
    whole = part(DIM)
    whole.fit(x)
    torch.testing.assert_close(whole.decode(whole.numbers_of(x)), x, atol=1e-4, rtol=1e-5)
    few = part(COUNT)
    few.fit(vectors(rank=COUNT))
    torch.testing.assert_close(
        few.decode(few.numbers_of(vectors(rank=COUNT))), vectors(rank=COUNT), atol=1e-4, rtol=1e-5
    )
    direction = part(None)  # of a vector whose direction counts, the length is lost
    assert float(direction.decode(x).square().mean(1).std()) < 1e-5


@pytest.mark.parametrize("layout", ["grid", "channels"])
def test_the_encoding_the_head_and_the_losses_are_of_components(layout):
    x = vectors()
    own = part(layout=layout)
    own.fit(x)
    y = own.reduced.project(x)
    laid = own.encode(x)
    assert laid.shape[1:] == ((1, 4, 4) if layout == "grid" else (COUNT, 1, 1))
    numbers = laid.flatten(1)[:, :COUNT]
    torch.testing.assert_close(numbers / numbers.square().mean().sqrt(), y, atol=1e-5, rtol=1e-4)
    assert 0.9 < float(laid.square().mean()) < 1.1
    own.build_head(32)
    assert own.head(torch.randn(2, 32)).shape == (2, COUNT)
    torch.testing.assert_close(own.loss(y + 0.5, x), torch.full((N,), 0.25), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own.encode_prediction(y), laid)
    with pytest.raises(MmfastError, match="vector, whose components mix its numbers"):
        own.known_in_space(torch.ones(1, DIM, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"components": DIM + 1}, "components is 13; it should be at most dim, 12"),
        ({"encoder": "learned"}, "with encoder=fixed, which is learned"),
    ],
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(MmfastError, match=says):
        part(**options)


def config(**data):
    return configs.from_plain(
        {
            "modalities": {
                "image": {"kind": "image", "channels": 1, "size": 4},
                "vector": {"kind": "embedding", "dim": DIM, "components": COUNT, "weight": {"kind": "none"}},
            },
            "backbone": {"kind": "mlp", "width": 16, "blocks": 2, "features": 4},
            "data": data or {"kind": "digits"},
            "train": {"steps": 2, "batch_size": 4, "sample_every": 0, "tensorboard": False, "device": "cpu"},
            "sample": {"steps": 2, "count": 1},
            "evaluate": {"samples": 0},
        },
        "x",
    )


def test_they_are_fitted_to_those_who_have_a_vector():
    x, there = vectors(), torch.arange(N) % 2 == 0

    class Half(InMemory):
        def __getitems__(self, indices):
            batch = super().__getitems__(indices)
            batch.data["vector"][~there[list(indices)]] = 1e6
            return type(batch)(batch.data, {"vector": there[list(indices)]})

    examples = Half({"image": torch.zeros(N, 1, 4, 4), "vector": x})
    model = fitted(build_model(config()), Data(examples, examples))
    torch.testing.assert_close(model.part("vector").reduced.mean, x[there].mean(0), atol=1e-4, rtol=1e-4)
    alone = Trainer(config(), Run(Path()), Data(examples, examples)).model  # as one that times its steps is made
    assert torch.equal(alone.part("vector").reduced.mean, model.part("vector").reduced.mean)
    there[:] = False
    with pytest.raises(MmfastError, match="no training example has vector, whose components"):
        fitted(build_model(config()), Data(examples, examples))


def test_a_run_keeps_them_and_its_samples_have_the_files_length(tmp_path):
    """Also by --save, whose files are read again; and a run that goes on has those of its beginning."""
    for name in ("image", "vector"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for k, x in enumerate(vectors()[:40].numpy()):
        Image.fromarray(np.full((4, 4), 6 * k, np.uint8)).save(tmp_path / "data" / "image" / f"{k:02}.png")
        np.save(tmp_path / "data" / "vector" / f"{k:02}.npy", x)
    made = config(kind="folder", root=str(tmp_path / "data"), cache_gb=0)
    train(made, str(tmp_path / "run"), quiet=True)
    data = build_data(made).train
    x = data.__getitems__(range(len(data))).data["vector"].double().numpy()
    _, _, right = np.linalg.svd(x - x.mean(0))
    run = load(tmp_path / "run", "cpu")
    reduced = run.model.part("vector").reduced
    np.testing.assert_allclose(reduced.mean.numpy(), x.mean(0), atol=1e-4)
    np.testing.assert_allclose(np.abs(right[:COUNT] @ reduced.axes.double().numpy()), np.eye(COUNT), atol=1e-4)
    drawn = run.sample(n=3, seed=1)
    assert drawn["vector"][0].shape == (DIM,)
    off = drawn.data["vector"].double().numpy() - x.mean(0)
    np.testing.assert_allclose(off @ right[COUNT:].T, 0, atol=1e-3)  # within the plane of the axes
    folder = drawn.save(tmp_path / "drawn")
    np.testing.assert_array_equal(np.load(folder / "vector" / "000.npy"), drawn["vector"][0])
    assert json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["modalities"]["vector"]
    given = run.sample(n=1, vector=str(folder / "vector" / "001.npy"))
    np.testing.assert_array_equal(given["vector"][0], drawn["vector"][1])


def test_a_networks_own_vectors_are_kept_whole(tmp_path, monkeypatch):
    """The features of a network, of their own length, where they have components."""
    (tmp_path / "net_of_sums.py").write_text(
        "import torch\ndef net():\n    w = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))\n"
        "    return lambda x: x.flatten(1) @ w\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("mmfast.build.check_code", lambda *_: None)
    (tmp_path / "data" / "image").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(20):
        picture = Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8))
        picture.save(tmp_path / "data" / "image" / f"{k:02}.png")
    made = config(kind="folder", root=str(tmp_path / "data"), cache_gb=0, cache=str(tmp_path / "cache"))
    made.modalities["vector"].network = "net_of_sums:net"
    data = build_data(made)
    batch = data.test.__getitems__(range(len(data.test)))
    w = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.data["vector"], batch.data["image"].flatten(1) @ w, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(data.judges()["vector"](batch.data["image"]), batch.data["vector"], atol=1e-5, rtol=1e-5)
    made.modalities["vector"].dim = 7
    with pytest.raises(MmfastError, match=r"dim is 7; with components it should be the length .* 12"):
        build_data(made)
