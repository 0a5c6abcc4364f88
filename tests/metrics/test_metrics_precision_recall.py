"""Precision, recall, density and coverage against worked examples and against a double loop."""

import numpy as np
import pytest
import torch

from mmfast import MmfastError
from mmfast.metrics.precision_recall import precision_recall


def line(*points):
    return torch.tensor(points)[:, None]


def test_worked_by_hand():
    """k = 1. Real balls: [-1, 1], [0, 2], [1, 5], [3, 17]; fake: [0.5, 2.5], [1.5, 3.5], [12, 20], [19.5, 20.5] and
    [20, 21]. The fakes are in 2, 1, 1, 0 and 0 of them; reals 1 and 3 are in a fake's; all reals but 0 hold a fake."""
    found = precision_recall(line(0.0, 1, 3, 10), line(1.5, 2.5, 16, 20, 20.5), k=1)
    assert found == pytest.approx((3 / 5, 2 / 4, 4 / 5, 3 / 4))
    # The other way round: the roles of precision and recall change.
    turned = precision_recall(line(1.5, 2.5, 16, 20, 20.5), line(0.0, 1, 3, 10), k=1)
    assert (turned.precision, turned.recall) == pytest.approx((2 / 4, 3 / 5))


def test_the_edge_of_a_ball_is_in_it():
    """Points one apart with k = 1 have balls of radius 1; the fakes at 3 and -1 touch the last and the first."""
    found = precision_recall(line(0.0, 1, 2), line(3.0, -1, 50), k=1)
    assert (found.precision, found.density, found.coverage) == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def by_loops(real, fake, k):
    def radius(points, i):
        return sorted(np.linalg.norm(points[i] - p) for p in points)[k]

    def held(points, others):
        """held[i][j]: others[j] is in the ball of points[i]."""
        return np.array([[np.linalg.norm(p - q) <= radius(points, i) for q in others] for i, p in enumerate(points)])

    of_real, of_fake = held(real, fake), held(fake, real)
    return of_real.any(0).mean(), of_fake.any(0).mean(), of_real.sum(0).mean() / k, of_real.any(1).mean()


@pytest.mark.parametrize(
    ("n", "m", "dimensions", "k", "shrink"), [(40, 30, 2, 3, 1), (23, 50, 6, 5, 0.8), (30, 31, 40, 1, 1)]
)
def test_against_loops(n, m, dimensions, k, shrink):
    """Blocks that do not divide the rows, and an offset as features that are never negative have."""
    rng = np.random.default_rng(dimensions)
    real, fake = rng.normal(size=(n, dimensions)) + 30, rng.normal(size=(m, dimensions)) * shrink + 30.5
    found = precision_recall(torch.tensor(real), torch.tensor(fake), k, block=7)
    expected = by_loops(real, fake, k)
    assert min(expected) > 0 and min(expected) < 1 and found == pytest.approx(expected)


def test_identical_and_far_sets():
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    same = precision_recall(x, x.clone())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    # Closed balls: each point is in its own, and on average in k of the others'.
    assert same.density == pytest.approx(4 / 3)
    assert precision_recall(x, x + 100) == (0, 0, 0, 0)


def test_beyond_the_edge_by_a_millionth_is_out_however_many_there_are():
    """The slack for rounding is of the size of one row's square, and does not grow with their number."""
    many, few = (
        torch.arange(1000.0, dtype=torch.float64)[:, None],
        torch.tensor([[1000.0], [1100]], dtype=torch.float64),
    )
    at_edge, beyond = few, few + torch.tensor([[1e-6], [0]])
    assert precision_recall(many, at_edge, k=1).precision == 1 / 2
    assert precision_recall(many, beyond, k=1).precision == 0
    assert precision_recall(beyond, many, k=1).recall == 0


def test_features_that_are_all_the_same():
    """Every ball has radius 0 and holds every point: each of 7 fakes lies in 5 balls."""
    found = precision_recall(torch.ones(5, 4), torch.ones(7, 4), k=3)
    assert found == pytest.approx((1, 1, 5 / 3, 1))


@pytest.mark.parametrize("block", [1, 5, 7, 1024])
def test_repeated_points(block):
    """Balls of radius 0 hold their own points and not the next, at 1e-6 of the spread.

    A product is rounded by where its row lies in memory, so without slack a few of these fail.
    """
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = (1e4 * torch.randn(9, 64, dtype=torch.float64, generator=generator)).repeat(4, 1)
        assert precision_recall(x, x.flip(0)[:35], block=block) == (1, 1, pytest.approx(4 / 3), 1)
        assert precision_recall(x, x + 0.01, block=block) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("shapes", "k"), [(((5, 2), (5, 3)), 3), (((5,), (5,)), 3), (((3, 2), (5, 2)), 3), (((5, 2),) * 2, 0)]
)
def test_errors(shapes, k):
    with pytest.raises(MmfastError, match="it should be"):
        precision_recall(*(torch.zeros(shape) for shape in shapes), k=k)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_number_that_is_not_finite_is_refused(bad):
    good, other = torch.zeros(5, 2), torch.zeros(5, 2)
    other[3, 1] = bad
    with pytest.raises(MmfastError, match="fake holds values that are not finite"):
        precision_recall(good, other)
    with pytest.raises(MmfastError, match="real holds values that are not finite"):
        precision_recall(other, good)


def test_one_sample_that_is_far_away_changes_nothing_for_the_others():
    """What rounding may add is of a pair's own size: of the largest it would be wider than every ball."""
    real = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)).double()
    fake = torch.randn(200, 16, generator=torch.Generator().manual_seed(1)).double() + 5
    assert precision_recall(real, fake)[:2] == (0, 0)
    fake[3, 2] = 1e8
    assert precision_recall(real, fake)[:2] == (0, 0)
