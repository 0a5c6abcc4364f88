"""The plots of a report: points lie where the axes say, by the texts and places in the SVG."""

import math

import numpy as np
import pytest
from html_page import Page

from mmfast.report.plot import curve, number, plot, powers, running_mean, ticks


def places(svg):
    """The points of the curve, and the heights and places of the axes' texts by what they say."""
    found = Page(svg)
    points = [tuple(map(float, pair.split(","))) for pair in found.of("polyline")[0]["points"].split()]
    texts = list(zip(found.of("text"), found.said("text"), strict=True))
    heights = {text: float(a["y"]) - 4 for a, text in texts if a["text-anchor"] == "end"}
    across = {text: float(a["x"]) for a, text in texts if a["text-anchor"] == "middle"}
    return points, heights, across


def test_points_lie_where_the_axes_say():
    points, heights, across = places(plot("p", "about", curve([0, 100, 400], [0.0, 10.0, 5.0]), "step"))
    assert points[1] == pytest.approx((across["100"], heights["10"]), abs=0.2)
    assert points[2] == pytest.approx((across["400"], heights["5"]), abs=0.2)
    assert heights["0"] > heights["5"] > heights["10"] and across["0"] < across["100"]


def test_what_spans_powers_of_ten_is_drawn_to_a_logarithmic_scale():
    points, heights, _ = places(plot("p", "about", curve([1, 2, 3], [1e-4, 1e-2, 1.0]), "step"))
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.2)
    assert points[1][1] == pytest.approx(heights["0.01"], abs=0.2)


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-1.0, 1e90], [1e-30, 1e-29], [0.0, 1e5], [1.0, 1.0 + 1e-13]])
def test_any_values_make_a_plot_of_finite_places(values):
    svg = plot("p", "about", curve(range(len(values)), values), "step")
    points, heights, _ = places(svg)
    assert len(points) == len(values) and "nan" not in svg and "inf" not in svg and len(heights) < 12
    assert all(0 <= x <= 400 and 0 <= y <= 230 for x, y in points)


def test_a_long_curve_keeps_its_extremes_and_its_end():
    y = np.sin(np.arange(100_000)) + np.linspace(0, 3, 100_000)
    y[54_321], y[12_345] = 50, -40
    found = curve(range(100_000), y, 100)
    assert len(found.x) == 300 and found.x[-1] == 99_999 and found.high.max() == 50 and found.low.min() == -40
    assert found.y[-1] == pytest.approx(np.mean(y[-100:]), rel=1e-12)


def test_the_running_mean_is_of_the_values_before():
    y = np.array([1e12, 1.0, 2.0, 6.0, 4.0])
    assert running_mean(y, 2) == pytest.approx([1e12, (1e12 + 1) / 2, 1.5, 4.0, 5.0], rel=1e-9)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="numpy has no longer float here")
def test_a_beginning_that_is_far_higher_leaves_the_rest_its_digits():
    assert running_mean(np.array([1e17, 1.0, 3.0, 5.0]), 2).tolist()[2:] == [2.0, 4.0]


def test_ticks_are_round_and_within():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] or ticks(0, 10) == [0, 5, 10]
    assert ticks(-0.13, 0.27) == [-0.1, 0, 0.1, 0.2]
    assert [number(x) for x in (1234567, 0.000123456, 78.2235, 435198.06, math.nan)] == [
        "1,234,567", "0.0001235", "78.22", "4.352e+05", "nan",
    ]  # fmt: skip


def test_a_curve_fills_the_view_from_axis_to_axis():
    svg = plot("p", "about it", curve([0, 5, 10], [0.0, 2.0, 1.0]), "the step")
    points, heights, across = places(svg)
    assert points == [(58, 194), (220, 10), (382, 102)]
    assert heights["0"] == 194 and heights["2"] == 10 and across["0"] == 58 and across["10"] == 382
    assert across["the step"] == 220 and 'viewBox="0 0 400 230"' in svg and 'aria-label="about it"' in svg
    rules = [(float(x["x1"]), float(x["x2"]), float(x["y1"]), float(x["y2"])) for x in Page(svg).of("line")]
    assert {(58, 382, 194, 194), (58, 382, 10, 10)} <= {*rules} and all(a == b for _, _, a, b in rules)
    assert not Page(svg).of("polygon") and not Page(svg).of("circle")
    assert "(logarithmic)" not in svg and "(logarithmic)" in plot("p", "", curve([0, 1], [1.0, 30.0]), "x")
    assert "(logarithmic)" not in plot("p", "", curve([0, 1], [1.0, 29.9]), "x")
    assert "(logarithmic)" not in plot("p", "", curve([0, 1], [0.0, 30.0]), "x")


def test_the_band_spans_all_values_and_dots_are_the_points():
    svg = plot("p", "about", curve([0, 1, 2], [0.0, 4.0, 2.0], 3), "x", [(0.0, "none"), (2.0, "all")], True)
    points, _, across = places(svg)
    assert [y for _, y in points] == [194, pytest.approx(102, abs=0.05), pytest.approx(102, abs=0.05)]
    band = [tuple(map(float, pair.split(","))) for pair in Page(svg).of("polygon")[0]["points"].split()]
    assert band == [(58, 194), (220, 10), (382, 102), (382, 102), (220, 102), (58, 194)]
    dots = [(float(x["cx"]), float(x["cy"])) for x in Page(svg).of("circle")]
    assert dots == points and across["none"] == 58 and across["all"] == 382 and "1" not in across
    [one] = Page(plot("p", "about", curve([3], [5.0]), "x")).of("circle")
    assert (float(one["cx"]), float(one["cy"])) == (220, 102)


def test_a_short_curve_has_all_of_its_points():
    found = curve([2, 4, 6, 8], [1.0, 5.0, 3.0, 7.0], 2)
    assert found.x.tolist() == [2, 4, 6, 8] and found.y.tolist() == [1, 3, 4, 5]
    assert found.low.tolist() == [1, 3, 3, 5] and found.high.tolist() == [1, 5, 4, 7]
    assert len(curve(range(300), range(300)).x) == len(curve(range(301), range(301)).x) == 300


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (1e-4, 1.0, [1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        (1.0, 1e5, [1.0, 1e2, 1e4]),
        (1.0, 1e12, [1.0, 1e3, 1e6, 1e9, 1e12]),
        (2.0, 70.0, [2.0, 5.0, 10.0, 20.0, 50.0]),
        (2.0, 50.0, [2.0, 5.0, 10.0, 20.0, 50.0]),
        (2.0, 100.0, [10.0, 100.0]),
        (3.0, 40.0, [5.0, 10.0, 20.0]),
    ],
)
def test_powers_of_ten_within_a_range(low, high, found):
    ticks = powers(low, high)
    assert ticks == pytest.approx(found) or ((low, high) == (2.0, 70.0) and ticks == pytest.approx(found))


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 4, [0, 1, 2, 3, 4]),
        (0, 10, [0, 5, 10]),
        (0, 9, [0, 2, 4, 6, 8]),
        (1, 1000, [500, 1000]),
        (-3.2, 0.1, [-3, -2, -1, 0]),
        (0.0101, 0.0149, [0.012, 0.014]),
    ],
)
def test_round_numbers_within_a_range(low, high, found):
    assert ticks(low, high) == pytest.approx(found, rel=1e-9)


def test_numbers_for_people():
    shown = {0.0: "0", -5.0: "-5", 1e7: "1e+07", 9_999_999.0: "9,999,999", 0.001: "0.001", 0.00099: "0.00099",
             1234.5678: "1,235", 123456.5: "1.235e+05", -2.5: "-2.5",
             math.inf: "inf"}  # fmt: skip
    assert {x: number(x) for x in shown} == shown
