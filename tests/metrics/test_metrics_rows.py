"""Distances of rows: worked by hand, and what they are not measured of. test_tables compares with scipy's."""

import pytest
import torch

from mmfast import MmfastError
from mmfast.metrics.rows import energy_distance, ks_distances


def test_worked_by_hand():
    """Column 0: F of x steps at 0, 1 and 2, of y at 1 and 3, so they differ most at 2, by 1 - 1/2.
    Column 1: all of x before all of y. Rows (0, 0) and (3, 4) are 5 apart."""
    x, y = torch.tensor([[0.0, 0], [1, 1], [2, 2]]), torch.tensor([[1.0, 5], [3, 6]])
    assert ks_distances(x, y).tolist() == pytest.approx([1 / 2, 1])
    assert energy_distance(torch.tensor([[0.0, 0]]), torch.tensor([[3.0, 4]])) == pytest.approx(10)
    assert energy_distance(x, x) == 0


@pytest.mark.parametrize("measure", [ks_distances, energy_distance])
@pytest.mark.parametrize(
    "shapes", [((5, 2), (4, 3)), ((5,), (5,)), ((5, 2), (5,)), ((5,), (5, 2)), ((0, 2), (5, 2)), ((5, 2), (0, 2))]
)
def test_what_are_no_rows_of_one_width_is_refused(measure, shapes):
    with pytest.raises(MmfastError) as caught:
        measure(*(torch.zeros(shape) for shape in shapes))
    a, b = map(list, shapes)
    assert str(caught.value) == f"rows are {a} and {b}; they should be [n, D] and [m, D], n, m > 0"
