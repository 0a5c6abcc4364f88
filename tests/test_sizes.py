"""A size, one number or two, and the middle of a picture of that shape."""

import pytest
from rectangles import config, parts

from mmfast import sizes
from mmfast.errors import MmfastError


@pytest.mark.parametrize(
    ("value", "expected"), [(8, 8), ("8", 8), ([8, 16], [8, 16]), ([8, 8], 8), ((4, 2), [4, 2]), (["3", 5], [3, 5])]
)
def test_a_size_is_one_number_or_two(value, expected):
    assert sizes.read("x", value) == expected
    assert sizes.plain(sizes.height_width(expected)) == expected


@pytest.mark.parametrize("value", [True, 2.5, "a", [8], [1, 2, 3], [], None, [8, "b"], {"a": 1}])
def test_no_size_is_an_error_that_names_the_option(value):
    with pytest.raises(
        MmfastError, match=r"image.size is .*; it should be a whole number, or two as \[height, width\]"
    ):
        sizes.read("image.size", value)


@pytest.mark.parametrize("bad", [0, [8, 0], [-1, 4]])
def test_a_size_is_at_least_one(bad):
    with pytest.raises(MmfastError, match=r"modalities.image.size is (0|-1); it should be at least 1"):
        config(parts() | {"image": {"kind": "image", "size": bad}})


def test_the_middle_is_the_largest_part_of_that_shape():
    """Against a search over all boxes of whole pixels whose shape is right to half a pixel."""
    for whole in [(20, 50), (50, 20), (7, 7), (1, 9), (40, 20)]:
        for size in [(16, 32), (3, 4), (8, 8), (5, 1)]:
            left, top, right, bottom = sizes.middle(whole, size)
            height, width = bottom - top, right - left
            assert left >= 0 and top >= 0 and right <= whole[1] and bottom <= whole[0]
            assert abs(left - (whole[1] - right)) <= 1 and abs(top - (whole[0] - bottom)) <= 1
            assert height == whole[0] or width == whole[1]
            ratio = size[1] / size[0]
            assert abs(width - height * ratio) <= 0.5 or abs(height - width / ratio) <= 0.5 or 1 in (height, width)
