"""Cosine and retrieval worked by hand, intersection over union against scikit-learn."""

import math

import pytest
import torch

from mmfast import MmfastError
from mmfast.metrics.similarity import cosine, mean_iou, retrieval_rank
from mmfast.modalities import SpaceShape, kind


def test_cosine_worked_by_hand():
    """Angles 0, 90, 180 and 45 degrees at any lengths, and a row of zeros, which counts 0."""
    a = torch.tensor([[3.0, 0], [1, 0], [2, 2], [5, 0], [0, 0]])
    b = torch.tensor([[0.5, 0], [0, 7], [-1, -1], [1, 1], [1, 0]])
    assert cosine(a, b) == pytest.approx((1 + 0 - 1 + math.sqrt(0.5) + 0) / 5)


def on_circle(*degrees):
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((angle.cos(), angle.sin()), 1)


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_ranks_worked_by_hand(block):
    """Six keys a hand's turn apart; each query leans so far past its own key that 0, 1, 2, ... others are nearer."""
    keys = on_circle(0, 10, 20, 30, 40, 50)
    queries = on_circle(1, 16, 46, 26, 11, 0)  # nearest keys first: 0; 20 10; 50 40 30 20; 30; 10 20 0 30 40; 0 .. 50
    rank = retrieval_rank(queries, keys, block)
    ranks = [1, 2, 4, 1, 5, 6]
    assert rank == pytest.approx((sum(ranks) / 6, 3, 2 / 6, 5 / 6))


def test_lengths_do_not_matter():
    keys = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    queries = keys + 0.8 * torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    rank = retrieval_rank(queries, keys)
    scaled = retrieval_rank(queries * torch.arange(1, 21)[:, None], keys * torch.arange(20, 0, -1)[:, None])
    assert rank == scaled and 1 < rank.mean < 10


def test_ties_count_in_the_middle():
    """Equal keys are chance, (n + 1) / 2, at lengths that make their unit vectors differ in the last bit too."""
    key = torch.tensor([0.1, 0.7, -0.3], dtype=torch.float64)
    queries, lengths = torch.randn(9, 3, dtype=torch.float64), torch.linspace(0.1, 3, 9, dtype=torch.float64)
    rank = retrieval_rank(queries, key * lengths[:, None])
    assert rank == (5, 5, 0, 1)
    # Keys 0 and 1 are equal and nearest to the first two queries; the third has its own.
    rank = retrieval_rank(on_circle(0, 0, 90), on_circle(10, 10, 80))
    assert rank == pytest.approx((4 / 3, 1.5, 1 / 3, 1))


@pytest.mark.parametrize("measure", [cosine, retrieval_rank])
def test_pairs_must_match(measure):
    for shapes in (((3, 2), (4, 2)), ((3,), (3,)), ((0, 2), (0, 2))):
        with pytest.raises(MmfastError, match=r"should be \[n, D\]"):
            measure(*(torch.ones(shape) for shape in shapes))


def mask_score(predicted, truth, classes):
    part = kind("mask")
    return part("x", part.Spec(classes=classes, size=8), SpaceShape(8, 8, None)).score(predicted, truth)


def test_iou_worked_by_hand():
    """Class 1: 1 of 3 elements in common; class 2: 2 of 3; class 3 nowhere; the background 1 of 2."""
    predicted, truth = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 2])
    assert mean_iou(predicted, truth, 4) == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert mean_iou(predicted, truth, 4, background=True) == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert mean_iou(torch.zeros(4).long(), torch.zeros(4).long(), 3) == 1
    assert mean_iou(torch.zeros(4).long(), torch.ones(4).long(), 3) == 0
    assert mean_iou(torch.zeros(0).long(), torch.zeros(0).long(), 3) == 1


@pytest.mark.parametrize("measure", [mean_iou, mask_score])
@pytest.mark.parametrize(("classes", "used"), [(2, 2), (5, 5), (7, 4)])
def test_iou_against_sklearn(measure, classes, used):
    """jaccard_score, macro-averaged over the classes that occur; the mask modality's own score too."""
    metrics = pytest.importorskip("sklearn.metrics", reason="pip install scikit-learn")
    g = torch.Generator().manual_seed(classes)
    truth = torch.randint(0, used, (6, 8, 8), generator=g)
    predicted = torch.where(
        torch.rand(6, 8, 8, generator=g) < 0.6, truth, torch.randint(0, used, (6, 8, 8), generator=g)
    )
    expected = metrics.jaccard_score(
        truth.flatten().numpy(), predicted.flatten().numpy(), labels=range(1, used), average="macro"
    )
    assert measure(predicted, truth, classes) == pytest.approx(expected, rel=1e-6)
    assert 0.2 < expected < 0.9


def test_iou_errors():
    x = torch.zeros(4, dtype=torch.int64)
    for wrong in (x[:3], x + 3, x - 1, x.float()):
        with pytest.raises(MmfastError, match="should h"):
            mean_iou(wrong, x, 3)
