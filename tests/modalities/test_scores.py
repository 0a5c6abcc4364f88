"""Every modality's score by value: worked by hand, and against scikit-learn. Masks: tests/metrics."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmfast import modalities
from mmfast.modalities import SpaceShape


def part(kind, **options):
    found = modalities.kind(kind)
    return found("x", found.Spec(**options), SpaceShape(2, 2))


def test_what_the_scores_are_called():
    names = {name: (kind.metric, kind.joint_metric) for name, kind in modalities.KINDS.items()}
    assert names == {
        "image": ("rmse", "rmse"),
        "label": ("accuracy", "agreement"),
        "mask": ("iou", "iou"),
        "embedding": ("cosine", "cosine"),
        "caption": ("cosine", "cosine"),
        "table": ("rmse", "rmse"),
        "feature_map": ("cosine", "cosine"),
        "masked": ("rmse", "rmse"),
    }


def test_labels_by_hand():
    """Three of five."""
    assert part("label", classes=4).score(
        torch.tensor([0, 3, 2, 1, 1]), torch.tensor([0, 3, 1, 1, 2])
    ) == pytest.approx(0.6)


def test_images_by_hand():
    """Over all pixels of all images: the root of (4 x 0.09 + 2 x 0.01) / 8, and no mean of two images' roots."""
    truth = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, -0.5, 0.0, 0.0]]).reshape(2, 1, 2, 2)
    error = torch.tensor([[0.3, -0.3, 0.3, -0.3], [0.1, -0.1, 0.0, 0.0]]).reshape(2, 1, 2, 2)
    found = part("image", channels=1, size=2).score(truth + error, truth)
    assert found == pytest.approx(math.sqrt((4 * 0.09 + 2 * 0.01) / 8), rel=1e-5)


def test_embeddings_by_hand():
    """0, 90, 180 and 60 degrees, whatever the lengths."""
    x = torch.tensor([[2.0, 0], [0, 3], [-1, 0], [0.5, math.sqrt(0.75)]])
    truth = torch.tensor([[1.0, 0], [7, 0], [4, 0], [3, 0]])
    assert part("embedding", dim=2).score(x, truth) == pytest.approx((1 + 0 - 1 + 0.5) / 4, rel=1e-6)


def test_hidden_parts_by_hand():
    """Of the hidden pixels alone, all images' together: one of the first, three of the second, in three channels."""
    truth = torch.zeros(3, 4, 2, 2)
    truth[:, 3] = 1
    truth[0, 3, 0, 0] = 0
    truth[1, 3, :, :] = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    x = torch.full((3, 3, 2, 2), 100.0)  # what is seen does not count
    x[0, :, 0, 0] = torch.tensor([0.1, 0.2, 0.3])
    x[1, :, 0, :], x[1, :, 1, 0] = 0.5, -0.5
    expected = math.sqrt((0.01 + 0.04 + 0.09 + 9 * 0.25) / 12)
    masked = part("masked", channels=3, size=2)
    for plane in ((), (torch.ones(3, 1, 2, 2),)):  # with the plane that a generated one has, or the image alone
        assert masked.score(torch.cat((x, *plane), 1), truth) == pytest.approx(expected, rel=1e-6)
    assert masked.score(x[2:], truth[2:]) == 0.0  # nothing is hidden, so nothing is wrong


shapes = {"count": st.integers(1, 9), "size": st.integers(1, 5), "seed": st.integers(0, 2**32)}


@given(**shapes)
def test_against_scikit_learn(count, size, seed):
    metrics = pytest.importorskip("sklearn.metrics", reason="pip install scikit-learn")
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randint(0, size, (2, count), generator=g)
    assert part("label", classes=size).score(a, b) == pytest.approx(metrics.accuracy_score(a, b))
    x, y = torch.randn(2, count, 3, size, size, generator=g)
    expected = metrics.mean_squared_error(x.flatten(), y.flatten()) ** 0.5
    assert part("image", channels=3, size=size).score(x, y) == pytest.approx(expected, rel=1e-5)
    x, y = x.flatten(1), y.flatten(1)
    expected = 1 - metrics.pairwise.paired_cosine_distances(x.double(), y.double()).mean()
    assert part("embedding", dim=3 * size * size).score(x, y) == pytest.approx(expected, abs=1e-6)
