"""The plots of a report: points lie where the axes say, by the texts and places in the SVG."""

import math

import numpy as np
import pytest
from html_page import Page

from mmfast.report.plot import curve, number, plot, running_mean, ticks


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


def test_ticks_are_round_and_within():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] or ticks(0, 10) == [0, 5, 10]
    assert ticks(-0.13, 0.27) == [-0.1, 0, 0.1, 0.2]
    assert [number(x) for x in (1234567, 0.000123456, 78.2235, 435198.06, math.nan)] == [
        "1,234,567", "0.0001235", "78.22", "4.352e+05", "nan",
    ]  # fmt: skip
