"""Values of samples as files, each read back by another library."""

import csv

import numpy as np
import pytest
from PIL import Image

from mmfast.saved import cells, write_file, write_rows

PICTURE = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize(
    ("value", "ending", "read"),
    [
        (PICTURE, ".png", lambda path: np.asarray(Image.open(path)).tolist() == np.asarray(PICTURE).tolist()),
        ("größer, \N{SNOWMAN}\n", ".txt", lambda path: path.read_bytes() == "größer, \N{SNOWMAN}\n".encode()),
        ({"a": 1.5, "b c": "x,y"}, ".csv", lambda path: rows(path) == [{"a": "1.5", "b c": "x,y"}]),
        (np.array([[1.5, -2], [0, 7]]), ".npy", lambda path: np.load(path).tolist() == [[1.5, -2], [0, 7]]),
    ],
)
def test_each_value_has_a_file_of_its_ending(tmp_path, value, ending, read):
    path = write_file(value, tmp_path / "0001-name")
    assert path == tmp_path / f"0001-name{ending}" and read(path)


def test_a_value_of_another_type_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="bytes"):
        write_file(b"x", tmp_path / "x")


def test_a_sample_is_a_row_of_its_names_and_numbers(tmp_path):
    """Columns and labels; what is no number or name has a file of its own."""
    sample = {"image": PICTURE, "label": "cats", "row": {"width": 2.5, "kind": "a"}, "vector": np.zeros(2)}
    assert cells(sample) == {"label": "cats", "width": 2.5, "kind": "a"}
    write_rows(tmp_path / "x.csv", [cells(sample), {"label": "dogs", "width": 1.0, "kind": "b"}])
    assert rows(tmp_path / "x.csv") == [
        {"label": "cats", "width": "2.5", "kind": "a"},
        {"label": "dogs", "width": "1.0", "kind": "b"},
    ]
