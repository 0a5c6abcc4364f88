"""Pictures for people: labelled grids of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PAPER, FAINT = (25, 25, 35), (250, 250, 248), (150, 150, 160)
GAP = 4


class Shown(Protocol):
    """What can draw an example of itself, as a modality can."""

    def show(self, x: Tensor, size: int) -> Image.Image: ...


def text_tile(text: str, size: int) -> Image.Image:
    """A square with a word in its middle, as large as fits."""
    tile = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(tile)
    points = size * 0.7
    while points > 8 and draw.textlength(text, ImageFont.load_default(points)) > size * 0.9:
        points *= 0.85
    draw.text((size / 2, size / 2), text, INK, ImageFont.load_default(points), anchor="mm")
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
            page.paste(text_tile("none", tile) if missing else modalities[name].show(values[i], tile), (x, y))
            draw.rectangle((x - 1, y - 1, x + tile, y + tile), outline=FAINT)
    return page
