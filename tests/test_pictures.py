"""Grids of samples, pixel by pixel: what stands where, the truth beside it, and sizes at which it can be read."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from mmfast.pictures import (
    ABOVE,
    FAINT,
    GAP,
    LINE,
    PAPER,
    WIDEST,
    bars,
    fit,
    sample_grid,
    scatter_matrix,
    shortened,
    tile_size,
    wrapped,
)  # fmt: skip

SMALL = ImageFont.load_default(11)


class Flat:
    """Shows an example as a square of one colour, its own number."""

    def show(self, x, size):
        return Image.new("RGB", (size, size), (int(x), 0, 0))


def tiles(page, tile, columns, each, top):
    """The colour in the middle of each place, row by row."""
    pixels, cell = np.asarray(page), each * (tile + 4) + 12
    rows = (page.height - top - 4) // (tile + 8)
    return [
        [
            int(pixels[top + r * (tile + 8) + tile // 2, 8 + c * cell + k * (tile + 4) + tile // 2, 0])
            for k in range(each)
        ]
        for r in range(rows)
        for c in range(columns)
    ]


def test_the_truth_stands_beside_what_was_drawn():
    data = {name: torch.arange(3) + start for name, start in (("image", 10), ("mask", 20), ("label", 30))}
    truth = {"mask": torch.arange(3) + 120, "label": torch.arange(3) + 130}
    page = sample_grid({name: Flat() for name in data}, data, "x", ["image"], 2, 64, beside={"true": truth})
    assert tiles(page, 64, 2, 5, 58)[:3] == [[10 + k, 20 + k, 120 + k, 30 + k, 130 + k] for k in range(3)]
    plain = sample_grid({name: Flat() for name in data}, data, "x", columns=2, tile=64)
    assert tiles(plain, 64, 2, 3, 46)[:3] == [[10 + k, 20 + k, 30 + k] for k in range(3)]
    # What an example lacks is not what its sample lacks.
    missing = {"mask": torch.tensor([False, True, True])}
    page = sample_grid({name: Flat() for name in data}, data, "x", ["image"], 2, 64, missing, {"true": truth})
    assert tiles(page, 64, 2, 5, 58)[0][2] == 120 and np.asarray(page)[58, 8 + 2 * 68 + 10].tolist() != [20, 0, 0]


def test_what_was_given_in_part_stands_beside_what_was_drawn_around_it():
    data, whole = {"a": torch.tensor([10, 11]), "b": torch.tensor([20, 21])}, {"b": torch.tensor([30, 31])}
    parts, beside = {"a": Flat(), "b": Flat()}, {"given in part": whole}
    page = sample_grid(parts, data, "t", ["a"], columns=1, tile=64, beside=beside)
    assert tiles(page, 64, 1, 3, 58) == [[10, 20, 30], [11, 21, 31]]


def test_names_stay_over_their_pictures():
    """A header of any length leaves the gap before the next tile free."""
    data = {name: torch.zeros(1) for name in ("a" * 40, "image", "w" * 9)}
    page = sample_grid({name: Flat() for name in data}, data, "", list(data), 1, 64)
    header = np.asarray(page)[25:56]
    for k in range(3):
        gap, over = header[:, 8 + k * 68 + 64 : 8 + (k + 1) * 68], header[:, 8 + k * 68 : 8 + k * 68 + 64]
        assert (gap == PAPER).all() and (over != PAPER).any()


@pytest.mark.parametrize(("value", "left", "right"), [(3.0, 30, 59), (1.5, 30, 44), (-3.0, 1, 30), (-99.0, 1, 30)])
def test_a_bar_reaches_the_edge_at_three(value, left, right):
    """From the middle, over the middle 70 per cent of its row; above zero in one colour, below in another."""
    tile = np.asarray(bars([value, 0.0], 60)).astype(int)
    colour = {tuple(x) for x in tile[15, :].tolist()} - {PAPER, FAINT}
    assert colour == {(60, 110, 190) if value < 0 else (200, 70, 60)}  # blue and red
    assert colour != {tuple(x) for x in np.asarray(bars([-value, 0.0], 60))[15, :].tolist()}
    drawn = (tile == np.array([*colour])).all(2) | (tile == np.array(FAINT)).all(2)
    columns, rows = np.nonzero(drawn[15])[0], np.nonzero(drawn[:30, left + 3])[0]
    assert (columns.min(), columns.max()) == (left, right)
    assert (rows.min(), rows.max()) == (4, 24)
    assert np.asarray(bars([1.0], 60, most=1.0))[30, 59].tolist() != list(PAPER)


@pytest.mark.parametrize("text, width", [("image", 64), ("segmentation of the photo", 64), ("w" * 9, 64), ("image", 5)])
def test_a_text_is_shortened_to_its_width(text, width):
    short = shortened(text, width, SMALL)
    if SMALL.getlength(text) <= width:
        assert short == text
    else:
        kept = short.removesuffix("...")
        assert text.startswith(kept) and short.endswith("...") and len(kept) < len(text)
        assert not kept or SMALL.getlength(short) <= width < SMALL.getlength(f"{text[: len(kept) + 1]}...")


@pytest.mark.parametrize(
    "shapes, tile",
    [
        ([(2,)], 64),
        ([(2, 7)], 64),
        ([(2, 3, 8, 8), (2,)], 64),
        ([(2, 3, 28, 28)], 84),
        ([(2, 3, 48, 24)], 96),
        ([(2, 33, 33)], 66),
        ([(2, 3, 32, 32), (2, 128, 128)], 128),
        ([(2, 3, 300, 20)], 256),
    ],
)
def test_each_pixel_of_the_largest_picture_is_as_large_as_any_other(shapes, tile):
    assert tile_size([torch.zeros(shape) for shape in shapes]) == tile


@pytest.mark.parametrize("words", [["one"], ["w" * 90, "and", "so"], ["some", "words"] * 40, [""]])
def test_lines_are_as_long_as_fits(words):
    """No word is lost but on a last line that is too long; the next word would not have fitted."""
    lines = wrapped(" ".join(words), 100, SMALL, most=50)
    assert all(SMALL.getlength(line) <= 100 for line in lines)
    for line, following in pairwise(lines):
        assert SMALL.getlength(f"{line} {following.split(' ')[0]}") > 100 or line.endswith("...")
    if max(map(len, words)) < 90:
        assert " ".join(lines) == " ".join(words)
    few = wrapped(" ".join(words), 100, SMALL, most=2)
    assert few == lines or (len(few) == 2 and few[0] == lines[0] and few[1].endswith("..."))


def test_a_long_title_takes_several_lines_above_all_else():
    data = {"image": torch.arange(3) + 10}
    short, long = (sample_grid({"image": Flat()}, data, title, columns=3, tile=64) for title in ("x", "a b " * 120))
    assert short.width < long.width <= WIDEST + 4 * GAP and (long.height - short.height) % LINE == 0
    more = long.height - short.height
    assert more >= LINE and tiles(long, 64, 3, 1, 46 + more) == tiles(short, 64, 3, 1, 46)
    header, moved = np.asarray(short)[26:46, : short.width], np.asarray(long)[26 + more : 46 + more, : short.width]
    assert (header == moved).all()


def test_a_picture_is_enlarged_by_squares_and_reduced_to_means():
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    picture = Image.fromarray(pixels)
    assert (np.asarray(fit(picture, 8)) == pixels.repeat(2, 0).repeat(2, 1)).all()
    assert (np.asarray(fit(picture, 2)) == pixels.reshape(2, 2, 2, 2).mean((1, 3))).all()


def test_a_page_is_no_wider_than_can_be_read():
    """Of four modalities of 256 pixels one example, of one of 64 four; as many as are asked for."""
    images = {name: torch.zeros(9, 3, 256, 256) for name in "abcd"}
    flat = type("Blank", (), {"show": lambda self, x, size: Image.new("RGB", (size, size), FAINT)})()
    assert sample_grid({name: flat for name in images}, images, "").width == 4 * 260 + 12 + 8
    one = {"a": torch.zeros(9)}
    assert sample_grid({"a": Flat()}, one, "").width == 4 * (68 + 12) + 8
    assert sample_grid({"a": Flat()}, one, "", columns=9).width == 9 * (68 + 12) + 8


def test_every_column_is_drawn_against_every_other():
    """Of two columns: a dot's place is its share of the range, upwards; real ones in grey, under drawn ones in red.

    On the diagonal is the histogram, of whose 16 bins the first and the last hold the two real rows.
    """
    real, drawn = np.array([[0.0, 10.0], [4.0, 30.0]]), np.array([[2.0, 25.0]])
    cell, pad = 150, 6
    page = np.asarray(scatter_matrix(["width", "height"], real, drawn, cell))
    assert page.shape == (2 * cell + GAP + 18, 2 * cell + GAP, 3)
    inner = cell - 2 * pad - GAP

    def at(i, j, across, up):
        """The pixel of cell (row i, column j) at these shares of its inside."""
        x, y = GAP + j * cell + pad + inner * across, 18 + (i + 1) * cell - GAP - pad - inner * up
        return tuple(page[round(y), round(x)].tolist())

    for i, j, across, up, colour in (
        (0, 1, 0, 0, FAINT), (0, 1, 1, 1, FAINT), (0, 1, 0.75, 0.5, ABOVE), (0, 1, 0, 1, PAPER),
        (1, 0, 0, 0, FAINT), (1, 0, 1, 1, FAINT), (1, 0, 0.5, 0.75, ABOVE), (1, 0, 1, 0, PAPER),
    ):  # fmt: skip
        assert at(i, j, across, up) == colour, (i, j, across, up)
    pixel, step = 1 / inner, 1 / 16  # a line is one pixel high, wherever its end is rounded to

    def top(across):
        return {at(0, 0, across, 0.8 + k * pixel) for k in (-1, 0, 1)} - {PAPER}

    assert top(step / 2) == top(1 - step / 2) == {FAINT}  # half of the rows each, which is the most
    assert top(0.5 + step / 2) == {ABOVE} and top(4.5 * step) == set()
