"""Embeddings of the data's images: scikit-learn's axes, the same from the cache, and the network as their judge."""

import sys

import numpy as np
import pytest
import torch

from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.data import Batch, Data, precompute
from mmfast.data.base import InMemory
from mmfast.data.precompute import principal_axes, with_embeddings
from mmfast.errors import MmfastError
from mmfast.modalities import SpaceShape
from mmfast.modalities.embedding import Embedding, EmbeddingSpec


def data(train=60, test=20):
    g = torch.Generator().manual_seed(0)
    return Data(*(InMemory({"image": torch.rand(n, 1, 4, 4, generator=g) * 2 - 1}) for n in (train, test)))


def test_principal_axes_are_those_of_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition", reason="needs scikit-learn: pip install '.[test]'")
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.arange(1.0, 13)) + 5
    mean, axes = principal_axes(x, 4)
    pca = decomposition.PCA(4, svd_solver="full").fit(x.double().numpy())
    np.testing.assert_allclose(mean, pca.mean_, rtol=1e-5)
    # An axis has no sign of its own.
    np.testing.assert_allclose(np.abs(axes.T), np.abs(pca.components_), atol=1e-5)
    assert bool((axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all())


def test_the_examples_carry_what_the_judge_says_of_them(tmp_path):
    whole = with_embeddings(data(), "image", "embedding", "pixels", 5, tmp_path)
    judge = whole.judges()["embedding"]
    for part, rows in ((whole.train, [3, 1, 59]), (whole.test, [0, 19])):
        batch = part.__getitems__(rows)
        assert batch.data["embedding"].shape == (len(rows), 5)
        torch.testing.assert_close(judge(batch.data["image"]), batch.data["embedding"])
    # Centred over the training data, and with no correlation between the axes.
    vectors = whole.train.__getitems__(range(60)).data["embedding"]
    covariance = vectors.T.cov()
    torch.testing.assert_close(vectors.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-5, rtol=0)


def test_of_more_than_one_batch_each_image_has_its_own(tmp_path):
    """600 examples, some of them without a label; and pixels that stray outside are cut before they are judged."""
    images = data(train=600).train.tensors["image"]

    class Some(InMemory):
        def __getitems__(self, rows):
            return Batch(super().__getitems__(rows).data, {"label": torch.as_tensor(rows) % 2 == 0})

    part = Some({"image": images, "label": torch.arange(600)})
    whole = with_embeddings(Data(part, part), "image", "embedding", "pixels", 16, tmp_path)
    rows = [599, 0, 255, 256, 257, 511, 512]
    batch = whole.train.__getitems__(rows)
    assert batch.data["label"].tolist() == rows and batch.present["label"].tolist() == [r % 2 == 0 for r in rows]
    assert len(whole.train) == 600
    # Sixteen axes of sixteen pixels: a rotation, which keeps the distances from the mean.
    expected = (images[rows] - images.mean(0)).flatten(1).norm(dim=1)
    torch.testing.assert_close(batch.data["embedding"].norm(dim=1), expected, rtol=1e-4, atol=1e-5)
    judge = whole.judges()["embedding"]
    torch.testing.assert_close(judge(images[rows]), batch.data["embedding"], rtol=1e-4, atol=1e-5)
    wild = images[rows] * 3
    torch.testing.assert_close(judge(wild), judge(wild.clamp(-1, 1)))


def test_features_are_computed_once(tmp_path, monkeypatch):
    first = with_embeddings(data(), "image", "embedding", "pixels", 5, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 2  # of the training images and the test images
    calls = []
    real = precompute.extractor

    def counted(name):
        found = real(name)
        network = found.network
        found.network = lambda images: calls.append(len(images)) or network(images)
        return found

    monkeypatch.setattr(precompute, "extractor", counted)
    second = with_embeddings(data(), "image", "embedding", "pixels", 5, tmp_path)
    assert not calls and sorted(tmp_path.glob("*.safetensors")) == files
    rows = range(20)
    assert torch.equal(
        first.test.__getitems__(rows).data["embedding"], second.test.__getitems__(rows).data["embedding"]
    )
    with_embeddings(data(train=61), "image", "embedding", "pixels", 5, tmp_path)
    assert calls  # other images: other features


def test_maps_have_the_same_axes_in_every_cell(tmp_path):
    """Against scikit-learn's principal components of all the cells, each cell's own mean taken off first."""
    decomposition = pytest.importorskip("sklearn.decomposition", reason="needs scikit-learn: pip install '.[test]'")
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(3, 3, generator=g)
    draw = lambda n: torch.einsum("bchw,cd->bdhw", torch.rand(n, 3, 4, 4, generator=g) - 0.5, mix).clamp(-1, 1)  # noqa: E731
    images = Data(*(InMemory({"image": draw(n)}) for n in (60, 20)))
    whole = with_embeddings(images, "image", "map", "pixels", 2, tmp_path, cells=2)
    cells = images.train.tensors["image"].reshape(60, 3, 2, 2, 2, 2).mean((3, 5))
    centred = (cells - cells.mean(0)).movedim(1, -1)
    pca = decomposition.PCA(2, svd_solver="full").fit(centred.reshape(-1, 3).double().numpy())
    found = whole.train.__getitems__(range(60)).data["map"]
    assert found.shape == (60, 2, 2, 2)
    expected = torch.from_numpy(pca.transform(centred.reshape(-1, 3).double().numpy())).reshape(60, 2, 2, 2).float()
    torch.testing.assert_close(found.abs(), expected.movedim(-1, 1).abs(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mean(0), torch.zeros(2, 2, 2), atol=1e-5, rtol=0)
    test = images.test.tensors["image"]
    torch.testing.assert_close(whole.judges()["map"](test), whole.test.__getitems__(range(20)).data["map"])


def test_maps_are_computed_once_and_their_axes_from_some_of_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(precompute, "FITTED", 20)
    asked = []
    real = precompute.features_of
    monkeypatch.setattr(precompute, "features_of", lambda n, x, cells: asked.append(len(x)) or real(n, x, cells))
    first = with_embeddings(data(), "image", "map", "pixels", 1, tmp_path, cells=2)
    assert asked == [20, 60, 20]  # every third for the axes, then all
    again = with_embeddings(data(), "image", "map", "pixels", 1, tmp_path, cells=2)
    assert len(asked) == 3 and len(list(tmp_path.glob("*.safetensors"))) == 1
    rows = range(60)
    assert torch.equal(first.train.__getitems__(rows).data["map"], again.train.__getitems__(rows).data["map"])
    with pytest.raises(MmfastError, match=r"modalities.map.dim is 2; 80 vectors of 1 features"):
        with_embeddings(data(), "image", "map", "pixels", 2, tmp_path, cells=2)


def test_too_many_dimensions_are_refused(tmp_path):
    with pytest.raises(MmfastError, match=r"modalities.embedding.dim is 17; 60 vectors of 16 features"):
        with_embeddings(data(), "image", "embedding", "pixels", 17, tmp_path)


def test_a_config_names_the_network(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[test]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = configs.load(
        "digits", [("modalities.vector", "{kind: embedding, dim: 6, network: pixels, layout: channels}")]
    )
    found = build_data(chosen)
    assert found.test.__getitems__([0, 1]).data["vector"].shape == (2, 6)
    assert {"label", "mask", "vector"} == set(found.judges())
    model = build_model(chosen)
    assert model.part("vector").channels == 6


def test_a_network_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def corners():\n    return lambda images: images[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = with_embeddings(data(), "image", "embedding", "mine:corners", 4, tmp_path)
    sys.modules.pop("mine", None)
    image = whole.test.__getitems__([0]).data["image"]
    again = whole.judges()["embedding"](image)
    assert again.shape == (1, 4)
    # All four directions are kept, so lengths from the mean are the corners' own.
    corners = image[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    mean = torch.stack([x[0, [0, 0, -1, -1], [0, -1, 0, -1]] for x in data().train.tensors["image"]]).mean(0)
    torch.testing.assert_close(again.norm(), (corners - mean).norm())


def test_a_channel_for_each_number():
    part = Embedding("x", EmbeddingSpec(dim=6, layout="channels"), SpaceShape(8, 8))
    x = torch.randn(3, 6)
    E = part.encode(x)
    assert E.shape == (3, 6, 1, 1)
    torch.testing.assert_close(E[:, :, 0, 0], x / x.square().mean(1, keepdim=True).sqrt())
    with pytest.raises(MmfastError, match="layout is channels, which has 6 of them"):
        Embedding("x", EmbeddingSpec(dim=6, layout="channels"), SpaceShape(8, 8, 3))
