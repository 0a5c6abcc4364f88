"""Pictures for people: labelled grids of samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmfast.fonts import lettering

INK, PAPER, FAINT = (25, 25, 35), (250, 250, 248), (150, 150, 160)
BELOW, ABOVE = (60, 110, 190), (200, 70, 60)
GAP = 4
LINE = 19  # from one line of a title to the next
# The smallest and largest side of a square with one modality of an example, and a page's greatest width, in pixels.
SMALLEST, LARGEST, WIDEST = 64, 256, 1100


class Shown(Protocol):
    """Anything that can draw one of its examples, such as a modality."""

    def show(self, x: Tensor, size: int) -> Image.Image: ...


def fit(picture: Image.Image, size: int) -> Image.Image:
    """Resize a picture so that its longer side is `size`: enlarged pixels are squares, reduced ones are averaged."""
    longer = max(picture.size)
    width, height = (max(1, round(side * size / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST if longer <= size else Image.Resampling.BOX)


def tile_size(data: Iterable[Tensor]) -> int:
    """The side, 64 .. 256, of a square in which all pixels of the largest picture have the same size.

    data: tensors [B, ...], and [B, ..., H, W] for pictures and masks.
    """
    longest = max((max(x.shape[-2:]) for x in data if x.dim() > 2), default=SMALLEST)
    return min(longest * -(-SMALLEST // longest), LARGEST)


def text_tile(text: str, size: int) -> Image.Image:
    """A square with centred text, of one or more lines, as large as fits."""
    tile = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(tile)
    points = size * 0.7
    text, sized = lettering(text)
    lines = text.split("\n") or [""]

    def fits(points: float) -> bool:
        font = sized(points)
        wide = max(draw.textlength(line, font) for line in lines)
        return wide <= size * 0.9 and (len(lines) == 1 or len(lines) * points * 1.2 <= size * 0.95)

    while points > 8 and not fits(points):
        points *= 0.85
    draw.text((size / 2, size / 2), text, INK, sized(points), anchor="mm", align="center")
    return tile


def sample_grid(
    modalities: Mapping[str, Shown],
    data: Mapping[str, Tensor],
    title: str,
    given: Sequence[str] = (),
    columns: int | None = None,
    tile: int | None = None,
    present: Mapping[str, Tensor] | None = None,
    beside: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Image.Image:
    """Draw examples in a grid, each one's modalities side by side under their names; `given` ones are marked.

    columns: None for four, or as many as a page holds. tile: the side of each picture; None for `tile_size`. present:
    bool [B] for modalities that some examples lack, as in a `Batch`. beside: other values [B, ...] of some modalities,
    shown next to theirs, by what they are ("true").
    """
    there, tile = present or {}, tile_size(data.values()) if tile is None else tile
    shown: list[tuple[str, str, Tensor]] = []
    for name, values in data.items():
        shown.append((name, "given" if name in given else "", values))
        shown += [(name, what, others[name]) for what, others in (beside or {}).items() if name in others]
    count = len(next(iter(data.values())))
    title, sized = lettering(title)
    font, small = sized(15), ImageFont.load_default(11)  # modalities' names are ASCII
    cell = len(shown) * (tile + GAP) + 3 * GAP
    columns = min(max(1, min(4, WIDEST // cell)) if columns is None else columns, count)
    rows = -(-count // columns)
    top = 46 + (12 if any(mark for _, mark, _ in shown) else 0)
    lines = wrapped(title, max(columns * cell - 2 * GAP, WIDEST), font)
    title = "\n".join(lines)
    below = LINE * (len(lines) - 1)  # how much further down all but the title is
    top += below
    width = max(columns * cell + 2 * GAP, int(max(map(font.getlength, lines))) + 4 * GAP)
    page = Image.new("RGB", (width, top + rows * (tile + 2 * GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    draw.multiline_text((2 * GAP, GAP), title, INK, font, spacing=LINE - 15)
    for column in range(columns):
        for k, (name, mark, _) in enumerate(shown):
            x = 2 * GAP + column * cell + k * (tile + GAP)
            draw.text((x, below + 28), shortened(name, tile, small), FAINT, small)
            draw.text((x, below + 40), mark, FAINT, small)
    for i in range(count):
        y = top + (i // columns) * (tile + 2 * GAP)
        for k, (name, mark, values) in enumerate(shown):
            x = 2 * GAP + (i % columns) * cell + k * (tile + GAP)
            missing = mark in ("", "given") and name in there and not bool(there[name][i])
            picture = text_tile("none", tile) if missing else modalities[name].show(values[i], tile)
            page.paste(picture, (x + (tile - picture.width) // 2, y + (tile - picture.height) // 2))
            draw.rectangle((x - 1, y - 1, x + tile, y + tile), outline=FAINT)
    return page


def wrapped(text: str, width: float, font: Any, most: int = 6) -> list[str]:
    """The text as lines of at most `width` pixels, broken at spaces; the last of `most` lines is shortened."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width and len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = longer
    return [shortened(line, width, font) for line in lines]


def shortened(text: str, width: float, font: Any) -> str:
    """The text, shortened with an ellipsis if it is wider than `width` pixels."""
    short = text
    while short and font.getlength(short + ("..." if short != text else "")) > width:
        short = short[:-1]
    return short if short == text else f"{short}..."


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
    """Plot every column against every other, with histograms on the diagonal: real rows in grey, drawn ones in red.

    real, drawn: float [n, D] and [m, D], D the number of columns. Rows with a number that is not finite are left out.
    """
    count, pad, font = len(columns), 6, ImageFont.load_default(11)
    # In float32, a column's values may be too close for bins between them.
    real, drawn = (np.asarray(rows, np.float64)[np.isfinite(rows).all(1)] for rows in (real, drawn))
    both = np.concatenate((real, drawn))
    both = both if len(both) else np.zeros((1, count))
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
                shares = (rows[:, j] - low[j]) / span[j]
                u = x0 + pad + inner * shares
                if i == j:
                    heights = np.histogram(shares, bins, (0, 1))[0] / max(1, len(rows))
                    tops = y0 + cell - GAP - pad - inner * 0.8 * heights / max(heights.max(), 1e-9)
                    step = inner / bins
                    line = [(x0 + pad + (k + d) * step, top) for k, top in enumerate(tops) for d in (0, 1)]
                    draw.line(line, colour)
                else:
                    v = y0 + cell - GAP - pad - inner * (rows[:, i] - low[i]) / span[i]
                    for a, b in zip(u, v, strict=True):
                        draw.ellipse((a - 1.5, b - 1.5, a + 1.5, b + 1.5), fill=colour)
            if i == j:
                name, sized = lettering(columns[i][: cell // 7])
                draw.text((x0 + pad, y0 + 2), name, INK, sized(11))
    return page
