"""A matrix of directions as a picture: a row for each given set, a column for each modality drawn, a score per cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

# In pixels.
ROW, COLUMN, LEFT, TOP = 22, 120, 260, 40
PAPER, INK, BEST, WORST = (255, 255, 255), (30, 30, 30), (198, 226, 205), (247, 222, 205)


def picture(rows: Sequence[tuple[str, str, float]], names: Sequence[str]) -> Image.Image:
    """Draw the matrix from rows (condition "given a, b: drawn", metric, score), showing each condition's first metric.

    The better a score is within its column, the greener its cell. A lower Frechet distance is better.
    """
    cells: dict[tuple[str, str], tuple[str, float]] = {}
    for where, metric, value in rows:
        given, _, drawn = where.removeprefix("given ").rpartition(": ")
        cells.setdefault((given, drawn), (metric, value))
    given = list(dict.fromkeys(row for row, _ in cells))
    image = Image.new("RGB", (LEFT + COLUMN * len(names), TOP + ROW * len(given)), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for k, name in enumerate(names):
        column = {row: cells[row, name] for row in given if (row, name) in cells}
        metric = next((metric for metric, _ in column.values()), "")
        left = LEFT + k * COLUMN
        draw.text((left + COLUMN / 2, TOP / 2), f"{name}\n{metric}", INK, font, anchor="mm", align="center")
        values = [-x if metric.startswith("FD-") else x for _, x in column.values() if math.isfinite(x)]
        for i, row in enumerate(given):
            if row not in column:
                continue
            value, top = column[row][1], TOP + i * ROW
            if not math.isfinite(value):
                draw.text((left + COLUMN / 2, top + ROW / 2), "failed", INK, font, anchor="mm")
                continue
            low, high = min(values), max(values)
            share = ((-value if metric.startswith("FD-") else value) - low) / (high - low) if high > low else 1.0
            colour = tuple(round(w + share * (b - w)) for b, w in zip(BEST, WORST, strict=True))
            draw.rectangle((left + 1, top + 1, left + COLUMN - 1, top + ROW - 1), fill=colour)
            draw.text((left + COLUMN / 2, top + ROW / 2), f"{value:.3g}", INK, font, anchor="mm")
    for i, row in enumerate(given):
        draw.text((LEFT - 8, TOP + i * ROW + ROW / 2), row, INK, font, anchor="rm")
    return image
