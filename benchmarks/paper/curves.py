"""The pictures TASK-curves.png, the training loss against images seen, and TASK-errors.png, the error of z_0 against t.

Both have a line for each method and a band over its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mmfast.errors import missing_extra
from mmfast.files import write_atomically

CAPTION = (
    "Training loss against images seen: a running mean averaged over the seeds, and a band from the lowest seed to the "
    "highest. Each method has its own loss, so compare the shapes, not the levels."
)
# The condition of the rows whose metrics are "t = 1" and so on.
ERRORS = "mean squared error of the predicted image against t, held-out"
ERRORS_CAPTION = (
    "Mean squared error of the predicted image against the timestep, held-out, with nothing given: the mean over "
    "seeds, and a band from the lowest seed to the highest."
)
COLOURS = ("#d1495b", "#30638e", "#edae49", "#66788a", "#3d8b5f", "#7d5ba6", "#9fb1bd", "#8c5e3c")
POINTS = 200  # along the x axis
WINDOW = 25  # a running mean covers 1 / WINDOW of a curve's points

Curve = Sequence[Mapping[str, Any]]
# Places along the x axis, and the lowest, mean and highest seed there.
Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def draw(by_method: Mapping[str, Sequence[Curve]], out: Path) -> bool:
    """Draw the curves of each method's seeds. Returns whether there is a picture: it needs a curve and matplotlib."""
    bands = {method: band(seeds) for method, seeds in by_method.items()}
    found = {method: x for method, x in bands.items() if x is not None}
    return _picture(found, out, "images seen", "training loss", log_x=False)


def draw_errors(rows: Iterable[Any], out: Path) -> bool:
    """Draw the error of z_0 against t from the rows of condition `ERRORS`. Returns whether there is a picture."""
    return _picture(error_bands(rows), out, "t", "mean squared error", log_x=True)


def error_bands(rows: Iterable[Any]) -> dict[str, Band]:
    """By method: the ascending timesteps and the lowest, mean and highest seed's error, from report.Row objects."""
    found: dict[str, dict[int, Sequence[float]]] = {}
    for row in rows:
        if row.condition == ERRORS and not row.failed:
            found.setdefault(row.method, {})[int(row.metric.removeprefix("t = "))] = row.values
    bands = {}
    for method, values in found.items():
        times = sorted(values)
        low, mean, high = (np.array([of(values[t]) for t in times]) for of in (min, fmean, max))
        bands[method] = (np.array(times), low, mean, high)
    return bands


def _picture(bands: Mapping[str, Band], out: Path, x: str, y: str, log_x: bool) -> bool:
    """Draw a line and a band for each method as a PNG. Returns whether there is one: it needs a band and matplotlib."""
    if not bands:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
    except ImportError:
        print(f"no picture: {missing_extra('matplotlib', 'bench', 'the picture of the curves')}")
        return False
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axis = figure.add_subplot()
    for i, (method, (places, low, mean, high)) in enumerate(bands.items()):
        # Once all colours are used, repeat them dashed.
        colour, style = COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3]
        axis.plot(places, mean, style, color=colour, label=method, linewidth=1.6)
        axis.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.set_yscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if log_x:
        axis.set_xscale("log")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    # Losses seldom span two decades, so powers of ten alone would leave the axis bare.
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    for columns in range(min(len(bands), 3), 0, -1):
        legend = figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize="small")
        figure.set_figheight(4.0 + 0.2 * math.ceil(len(bands) / columns))
        canvas.draw()
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    write_atomically(out, lambda file: canvas.print_png(str(file)))
    return True


def band(seeds: Sequence[Curve]) -> Band | None:
    """Images seen and the lowest, mean and highest seed's loss there, each [POINTS]; None without any curve.

    The seeds are interpolated at common places that all of them cover. Losses that are not finite and positive are
    left out.
    """
    lines = [line for line in map(_smooth, seeds) if line is not None]
    if not lines:
        return None
    first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if first > last:
        return None
    images = np.linspace(first, last, POINTS)
    # Interpolate as a log axis shows it.
    losses = np.exp([np.interp(images, x, np.log(y)) for x, y in lines])
    return images, losses.min(0), losses.mean(0), losses.max(0)


def _smooth(curve: Curve) -> tuple[np.ndarray, np.ndarray] | None:
    """Images [n] and the running mean of the loss [n] over a centred window, which is shorter at the ends."""
    points = np.array([(p["images"], p["loss"]) for p in curve], dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(1) & (points[:, 1] > 0)]
    if not len(points):
        return None
    half = np.ones(2 * (len(points) // WINDOW // 2) + 1)
    sums = np.convolve(points[:, 1], half, "same") / np.convolve(np.ones(len(points)), half, "same")
    return points[:, 0], sums
