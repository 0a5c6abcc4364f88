"""Line plots as inline SVG, in the page's colours and with a text alternative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmfast.report.elements import Markup, element, join

# In units of the view box, which is scaled to the available width, about 1 to 1 on a phone.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 230, 58, 18, 10, 36
# The most points of a curve; more would be indistinguishable.
POINTS = 300
# A positive quantity that spans at least this factor is drawn on a logarithmic scale.
WIDE = 30.0


@dataclass(frozen=True)
class Curve:
    """y against x, both finite, x increasing; low and high: the ends of a band behind it, as long as y."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


def running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and the window - 1 values before it; of fewer at the beginning."""
    sums = np.concatenate(([0.0], np.cumsum(y, dtype=np.longdouble)))  # a high start costs the rest no digits
    ends = np.arange(1, len(y) + 1)
    starts = np.maximum(ends - window, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).astype(float)


def curve(x: Sequence[float], y: Sequence[float], window: int = 1) -> Curve:
    """The running mean of y and the range of its values, in at most POINTS points that include the last."""
    there, values = np.asarray(x, float), np.asarray(y, float)
    mean = running_mean(values, window)
    starts = np.unique(np.linspace(0, len(values), min(POINTS, len(values)), endpoint=False).astype(int))
    ends = np.append(starts[1:], len(values)) - 1
    low, high = (f.reduceat(values, starts) for f in (np.minimum, np.maximum))
    return Curve(there[ends], mean[ends], np.minimum(low, mean[ends]), np.maximum(high, mean[ends]))


def number(x: float) -> str:
    """Format a number for reading: four digits, thousands separators, an exponent only where it helps."""
    if math.isfinite(x) and x == int(x) and abs(x) < 1e7:
        return f"{int(x):,}"
    return f"{x:,.4g}" if 1e-3 <= abs(x) < 1e5 else f"{x:.4g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers within low .. high."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= count + 0.5)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """At most five evenly spaced powers of ten within low .. high; if fewer than two, multiples by 2 and 5 as well."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    found = [10.0**k for k in range(first, last + 1, 1 + (last - first) // 5)]
    if len(found) > 1:
        return found
    return [x for k in range(first - 1, last + 1) for m in (1, 2, 5) if low <= (x := m * 10.0**k) <= high]


def plot(
    name: str, about: str, curve: Curve, x_label: str, x_ticks: Sequence[tuple[float, str]] = (), dots: bool = False
) -> Markup:
    """Draw one curve with axes. about: the text alternative. x_ticks: (place, text); empty for round numbers."""
    positive = bool((curve.low > 0).all())
    logarithmic = positive and curve.high.max() / curve.low.min() >= WIDE
    scale = np.log10 if logarithmic else np.asarray
    low, high = float(curve.low.min()), float(curve.high.max())
    if low == high:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    bottom, top = float(scale(low)), float(scale(high))
    left, right = float(curve.x[0]), float(curve.x[-1])
    if left == right:
        left, right = left - 1, right + 1

    def across(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (float(scale(y)) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    def path(x: np.ndarray, y: np.ndarray) -> str:
        return " ".join(f"{across(a):.1f},{down(b):.1f}" for a, b in zip(x, y, strict=True))

    parts: list[Markup] = []
    for y in powers(low, high) if logarithmic else ticks(low, high):
        at = f"{down(y):.1f}"
        parts += [
            element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="rule"),
            element("text", number(y), x=LEFT - 6, y=f"{down(y) + 4:.1f}", text_anchor="end"),
        ]
    for x, text in x_ticks or [(x, number(x)) for x in ticks(left, right)]:
        parts.append(element("text", text, x=f"{across(x):.1f}", y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", x_label, x=middle, y=HEIGHT - 5, text_anchor="middle", class_="label"))
    if (curve.high > curve.low).any():
        around = f"{path(curve.x, curve.high)} {path(curve.x[::-1], curve.low[::-1])}"
        parts.append(element("polygon", points=around, class_="band"))
    parts.append(element("polyline", points=path(curve.x, curve.y), class_="curve"))
    if dots or len(curve.x) == 1:
        places = zip(curve.x, curve.y, strict=True)
        parts += [element("circle", cx=f"{across(x):.1f}", cy=f"{down(y):.1f}", r=3, class_="dot") for x, y in places]
    svg = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=about)
    return element("figure", element("figcaption", join(name, " (logarithmic)" if logarithmic else "")), svg)
