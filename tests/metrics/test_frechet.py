"""The Frechet distance against scipy's matrix square root and against worked closed forms."""

import numpy as np
import pytest
import torch
from scipy import linalg

from mmfast import MmfastError
from mmfast.metrics.frechet import frechet_distance, pixel_features


def by_sqrtm(x, y):
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), the usual way."""
    S, R = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(S + R - 2 * np.real(linalg.sqrtm(S @ R)))


@pytest.mark.parametrize(("n", "m", "dimensions"), [(50, 70, 1), (200, 90, 3), (500, 500, 24)])
def test_against_sqrtm(n, m, dimensions):
    """Random features with correlations, scales from 0.1 to 10 and an offset."""
    rng = np.random.default_rng(dimensions)
    mixing = [rng.normal(size=(dimensions, dimensions)) * np.geomspace(0.1, 10, dimensions) for _ in range(2)]
    x, y = rng.normal(size=(n, dimensions)) @ mixing[0], rng.normal(size=(m, dimensions)) @ mixing[1] + 0.7
    expected = by_sqrtm(x, y)
    assert frechet_distance(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(torch.tensor(y), torch.tensor(x)) == pytest.approx(expected, rel=1e-8)


def with_moments(mean, covariance, n=9):
    """n points whose sample mean and covariance are exactly these."""
    d = len(mean)
    points = np.linalg.qr(np.column_stack((np.ones(n), np.random.default_rng(1).normal(size=(n, d)))))[0][:, 1:]
    return torch.tensor(points * np.sqrt(n - 1) @ np.linalg.cholesky(covariance).T + mean)


def test_closed_forms():
    """One dimension: (difference of means)^2 + (difference of deviations)^2; and commuting covariances."""
    one = with_moments([1.0], [[4.0]]), with_moments([-2.0], [[0.25]])
    assert frechet_distance(*one) == pytest.approx(9 + 1.5**2, rel=1e-12)
    turn = np.linalg.qr(np.array([[1.0, 2.0], [3.0, -1.0]]))[0]
    S, R = (turn @ np.diag(d) @ turn.T for d in ([1.0, 9.0], [4.0, 0.25]))
    # tr = (1 - 2)^2 + (3 - 0.5)^2 in the common axes; the means are 5 apart
    assert frechet_distance(with_moments([0, 0], S), with_moments([3, 4], R)) == pytest.approx(25 + 1 + 6.25, rel=1e-12)


def test_not_commuting_worked_by_hand():
    """S = diag(1, 4) and R = [[2, 1], [1, 2]]: tr sqrt(S R) = sqrt(tr(SR) + 2 sqrt det(SR)) for 2 x 2."""
    S, R = np.diag([1.0, 4.0]), np.array([[2.0, 1.0], [1.0, 2.0]])
    expected = 5 + 4 - 2 * np.sqrt(10 + 2 * np.sqrt(12))
    assert frechet_distance(with_moments([1, 1], S), with_moments([1, 1], R)) == pytest.approx(expected, rel=1e-12)


def test_degenerate_covariances():
    """More dimensions than points, and constant features: nothing is NaN, the same set is at distance 0."""
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    # An eigenvalue that is 0 but for rounding enters as its square root: 1e-8 of the scale, 40 times.
    assert frechet_distance(x, x) == pytest.approx(0, abs=40 * 40 * 1e-7)
    # Moved by 2 in each of 40 dimensions.
    assert frechet_distance(x, x + 2) == pytest.approx(160, abs=40 * 40 * 1e-7)
    flat = torch.ones(3, 2)
    assert frechet_distance(flat, flat + 2) == pytest.approx(8, rel=1e-12)


def test_pixel_features_are_block_means():
    """Large images shrink by averaging; small ones are taken as they are."""
    x = torch.randn(4, 3, 32, 32)
    expected = x.reshape(4, 3, 16, 2, 16, 2).mean((3, 5)).reshape(4, -1)
    torch.testing.assert_close(pixel_features(x), expected)
    assert torch.equal(pixel_features(x[..., :8, :8]), x[..., :8, :8].reshape(4, -1))
    # One long side is enough.
    wide = x[..., :16, :].reshape(4, 3, 16, 16, 2).mean(4).reshape(4, -1)
    torch.testing.assert_close(pixel_features(x[..., :16, :]), wide)
    tall = x[..., :16].reshape(4, 3, 16, 2, 16).mean(3).reshape(4, -1)
    torch.testing.assert_close(pixel_features(x[..., :16]), tall)


@pytest.mark.parametrize(
    "shapes", [((5, 2), (5, 3)), ((5,), (5,)), ((5, 2), (5,)), ((5, 2, 1),) * 2, ((1, 2), (5, 2)), ((5, 2), (0, 2))]
)
def test_errors(shapes):
    with pytest.raises(MmfastError) as caught:
        frechet_distance(*(torch.zeros(shape) for shape in shapes))
    a, b = map(list, shapes)
    assert str(caught.value) == f"features are {a} and {b}; they should be [n, D] and [m, D], n, m > 1"


def test_two_rows_are_enough():
    """0 and 2, 5 and 5: means 1 and 5, variances 2 and 0."""
    assert frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0]])) == pytest.approx(16 + 2)


def test_a_set_is_at_no_distance_from_itself_and_holds_numbers():
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    assert 0 <= frechet_distance(x, x) < 1e-4
    for bad in (float("nan"), float("inf")):
        with pytest.raises(MmfastError, match="features hold values that are not finite"):
            frechet_distance(x, torch.where(torch.arange(20)[:, None] == 3, bad, x))
