"""A row of a table by value: its statistics, how it is written, and what is refused. test_tables.py trains on one."""

import numpy as np
import pytest
import torch

from mmfast import MmfastError
from mmfast.modalities import table as module
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.table import Table, TableSpec, statistics
from mmfast.pictures import bars


def made(columns=("a", "b"), channels=None, **options):
    return Table("row", TableSpec(columns=list(columns), **options), SpaceShape(1, 1, channels))


UNITS = {"means": [10.0, -3.0], "scales": [2.0, 0.5]}


def test_the_statistics_of_columns():
    """0 and 4, and 1, 1, 1, 5 with 2 and its root of 3 about it."""
    mean, scale = statistics(np.array([[0.0, 1], [4, 1], [0, 1], [4, 5]]))
    assert mean == [2, 2] and scale == pytest.approx([2, 3**0.5])


@pytest.mark.parametrize("value", [0.1, 5.1, -1e9 - 0.1, 0.0])
def test_a_column_of_one_number_has_a_scale_of_one(value):
    """Whatever rounding makes of its deviation: divided by 1e-17, the float32 of 0.1 would be 5e7 deviations away."""
    rows = np.full((30, 2), value)
    rows[:, 1] = np.arange(30)
    mean, scale = statistics(rows)
    assert scale[0] == 1 and scale[1] == pytest.approx(np.sqrt((30**2 - 1) / 12))
    found = made(means=mean, scales=scale).encode(torch.from_numpy(rows).float())
    assert float(found[:, 0].abs().max()) <= abs(value) * 2**-24


def test_what_cannot_be_a_table():
    for options, says in (
        ({"columns": ()}, r"modalities\.row\.columns is empty; it should name the columns"),
        ({"columns": ("a", "b", "a")}, r"modalities\.row\.columns has 'a' twice"),
        ({"columns": ("a", "b", "b")}, r"modalities\.row\.columns has 'b' twice"),
        ({"means": [1.0]}, r"modalities\.row\.means has 1 number; it should have 2, one per column"),
        ({"scales": [1.0, 2.0, 3.0]}, r"modalities\.row\.scales has 3 numbers; it should have 2"),
        ({"encoder": "learned"}, "modalities.row is a table, which needs space=own and encoder=fixed"),
        ({"channels": 2}, "modalities.row is a table, which needs space=own and encoder=fixed"),
    ):
        with pytest.raises(MmfastError, match=says):
            made(**options)


def test_a_row_as_text_and_as_a_file(tmp_path):
    part = made()
    assert part.parse("1.5, -2").tolist() == [1.5, -2] and part.values("1,2") == ["1,2"]
    for content in ("1.5,-2\n", "a,b\n1.5,-2\n", "b, a\n-2,1.5", "\ufeffa,b\n\n1.5,-2\n\n"):
        (tmp_path / "x.csv").write_text(content)
        assert part.parse(str(tmp_path / "x.csv")).tolist() == [1.5, -2]
    for content, says in (
        ("", r"x\.csv holds 0 lines; it should hold one row of numbers, or names above it"),
        ("1,2\n3,4\n5,6\n", r"x\.csv holds 3 lines"),
        ("a,b\n1\n", r"x\.csv holds 2 lines"),
        ("1\n", r"x\.csv holds 1 lines"),
        ("a,c\n1,2\n", r"x\.csv: column is 'b'; it should be one of a, c"),
        ("a,b\n1,nan\n", r"x\.csv: column 'b' is 'nan'; it should be a number"),
        ('a,b\n1,"2\n', r"x\.csv cannot be read as a table \(\.csv\)"),
    ):
        (tmp_path / "x.csv").write_text(content)
        with pytest.raises(MmfastError, match=says):
            part.parse(str(tmp_path / "x.csv"))
    with pytest.raises(MmfastError, match=r"row=1,2,3 has 3 numbers; it should have 2, one per column, or be a \.csv"):
        part.parse("1,2,3")
    with pytest.raises(MmfastError, match="row: column 'a' is 'x'; it should be a number"):
        part.parse("x,2")


def test_some_columns_by_name():
    part = made(("a", "b", "c=d"))
    for value in ("b=2", {"b": 2}, " b =2"):
        x, known = part.in_part(value)
        assert x.tolist() == [0, 2, 0] and known.tolist() == [False, True, False]
    x, known = part.in_part("c=d=4,a=-1")
    assert x.tolist() == [-1, 0, 4] and known.tolist() == [True, False, True]
    for whole in ("1,2,3", "a=1.csv", 3, None):
        assert part.in_part(whole) is None
    with pytest.raises(MmfastError, match="row's column is 'e'; it should be one of a, b"):
        part.in_part("e=1")
    with pytest.raises(MmfastError, match="row: column 'b' is 'x'; it should be a number"):
        part.in_part("b=x")
    assert part.parse_known("c=d, a").tolist() == [True, False, True]
    with pytest.raises(MmfastError, match="known row's column is 'e'"):
        part.parse_known("a,e")


def test_what_is_shown_of_rows(monkeypatch):
    """Bars of standard deviations; the scatter matrix of five columns at most, in their own units."""
    part = made(**UNITS)
    x = torch.tensor([13.0, -4.0])
    assert part.show(x, 40).tobytes() == bars([1.5, -2.0], 40).tobytes()
    assert part.plain(x) == {"a": 13, "b": -4}
    wide, asked = made("abcdefg"), []
    monkeypatch.setattr(module, "scatter_matrix", lambda *what: asked.append(what) or "picture")
    rows = torch.arange(21.0).reshape(3, 7)
    assert wide.overview(rows, rows + 100) == "picture"
    ((names, real, drawn),) = asked
    assert (
        names == list("abcde")
        and drawn.tolist() == rows[:, :5].tolist()
        and real.tolist() == (rows + 100)[:, :5].tolist()
    )


def test_distances_are_of_standardised_rows():
    """Each pair (13, -4) and (11, -3) is (1.5, -2) and (0.5, 0): 1 and 2 apart; all of one before all of the other."""
    part = made(**UNITS)
    a, b = torch.tensor([[13.0, -4.0]]), torch.tensor([[11.0, -3.0]])
    assert part.score(a, b) == pytest.approx(((1 + 4) / 2) ** 0.5)
    assert part.distances(a, b) == pytest.approx({"ks": 1, "energy": 2 * 5**0.5})
    x = torch.tensor([[13.0, -3.0], [13, -4]])
    assert part.distances(x, torch.tensor([[13.0, -3.0]]))["ks"] == pytest.approx((0 + 1 / 2) / 2)
