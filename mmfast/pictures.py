"""Pictures for people: labelled grids of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PAPER, FAINT = (25, 25, 35), (250, 250, 248), (150, 150, 160)
BELOW, ABOVE = (60, 110, 190), (200, 70, 60)
GAP = 4


class Shown(Protocol):
    """What can draw an example of itself, as a modality can."""

    def show(self, x: Tensor, size: int) -> Image.Image: ...


def fit(picture: Image.Image, size: int) -> Image.Image:
    """A picture resized, pixels as squares, so that its longer side is `size`."""
    longer = max(picture.size)
    width, height = (max(1, round(side * size / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST)


def text_tile(text: str, size: int) -> Image.Image:
    """A square with a word, or lines of them, in its middle, as large as fits."""
    tile = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(tile)
    points = size * 0.7
    lines = text.split("\n") or [""]

    def fits(points: float) -> bool:
        font = ImageFont.load_default(points)
        wide = max(draw.textlength(line, font) for line in lines)
        return wide <= size * 0.9 and (len(lines) == 1 or len(lines) * points * 1.2 <= size * 0.95)

    while points > 8 and not fits(points):
        points *= 0.85
    draw.text((size / 2, size / 2), text, INK, ImageFont.load_default(points), anchor="mm", align="center")
    return tile


def sample_grid(
    modalities: Mapping[str, Shown],
    data: Mapping[str, Tensor],
    title: str,
    given: Sequence[str] = (),
    columns: int = 4,
    tile: int = 64,
    present: Mapping[str, Tensor] | None = None,
) -> Image.Image:
    """Examples in a grid, each one's modalities side by side under their names; `given` ones are marked.

    present: bool [B] for the modalities that not all have, as in a `Batch`.
    """
    there = present or {}
    count = len(next(iter(data.values())))
    columns = min(columns, count)
    rows = -(-count // columns)
    font, small = ImageFont.load_default(15), ImageFont.load_default(11)
    cell = len(data) * (tile + GAP) + 3 * GAP
    top = 46
    width = max(columns * cell + 2 * GAP, int(font.getlength(title)) + 4 * GAP)
    page = Image.new("RGB", (width, top + rows * (tile + 2 * GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((2 * GAP, GAP), title, INK, font)
    for column in range(columns):
        for k, name in enumerate(data):
            x = 2 * GAP + column * cell + k * (tile + GAP)
            draw.text((x, top - 18), name + (" (given)" if name in given else ""), FAINT, small)
    for i in range(count):
        y = top + (i // columns) * (tile + 2 * GAP)
        for k, (name, values) in enumerate(data.items()):
            x = 2 * GAP + (i % columns) * cell + k * (tile + GAP)
            missing = name in there and not bool(there[name][i])
            shown = text_tile("none", tile) if missing else modalities[name].show(values[i], tile)
            page.paste(shown, (x + (tile - shown.width) // 2, y + (tile - shown.height) // 2))
            draw.rectangle((x - 1, y - 1, x + tile, y + tile), outline=FAINT)
    return page


def bars(values: Sequence[float], size: int, most: float = 3.0) -> Image.Image:
    """A square with a horizontal bar for each value, from the middle: `most` reaches the edge."""
    tile = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(tile)
    middle, height = size / 2, size / max(1, len(values))
    for i, value in enumerate(values):
        end = middle + max(-1.0, min(1.0, value / most)) * (middle - 1)
        top = i * height
        draw.rectangle(
            (min(middle, end), top + 0.15 * height, max(middle, end), max(top, top + 0.85 * height - 1)),
            fill=BELOW if value < 0 else ABOVE,
        )
    draw.line((middle, 0, middle, size), FAINT)
    return tile


def scatter_matrix(
    columns: Sequence[str], real: np.ndarray, drawn: np.ndarray, cell: int = 150, bins: int = 16
) -> Image.Image:
    """Every column against every other, histograms on the diagonal: real rows in grey, drawn ones over them.

    real, drawn: float [n, D] and [m, D], D the number of columns.
    """
    count, pad, font = len(columns), 6, ImageFont.load_default(11)
    both = np.concatenate((real, drawn))
    low, high = both.min(0), both.max(0)
    span = np.where(high > low, high - low, 1.0)
    page = Image.new("RGB", (count * cell + GAP, count * cell + GAP + 18), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 2), "grey: real; red: drawn", INK, font)
    for i in range(count):
        for j in range(count):
            x0, y0 = GAP + j * cell, 18 + i * cell
            inner = cell - 2 * pad - GAP
            draw.rectangle((x0, y0, x0 + cell - GAP, y0 + cell - GAP), outline=FAINT)
            for rows, colour in ((real, FAINT), (drawn, ABOVE)):
                u = x0 + pad + inner * (rows[:, j] - low[j]) / span[j]
                if i == j:
                    heights = np.histogram(rows[:, j], bins, (low[j], low[j] + span[j]))[0] / max(1, len(rows))
                    tops = y0 + cell - GAP - pad - inner * 0.8 * heights / max(heights.max(), 1e-9)
                    step = inner / bins
                    line = [(x0 + pad + (k + d) * step, top) for k, top in enumerate(tops) for d in (0, 1)]
                    draw.line(line, colour)
                else:
                    v = y0 + cell - GAP - pad - inner * (rows[:, i] - low[i]) / span[i]
                    for a, b in zip(u, v, strict=True):
                        draw.ellipse((a - 1.5, b - 1.5, a + 1.5, b + 1.5), fill=colour)
            if i == j:
                draw.text((x0 + pad, y0 + 2), columns[i][: cell // 7], INK, font)
    return page
