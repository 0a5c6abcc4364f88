"""What is odd about a picture file, by its header alone: each oddity, of which kinds, and where it does not hold."""

from pathlib import Path
from types import SimpleNamespace as Some

import pytest

from mmfast.image_files import Header
from mmfast.oddities import ODDITIES

PLAIN = {"size": (8, 8), "mode": "RGB", "format": "PNG", "orientation": 1, "frames": 1, "transparent": False}


def odd(kind="image", name="a.png", size=8, channels=3, **more):
    """The first two words of all that is odd about such a file."""
    header = Header(**{**PLAIN, **more})
    spec = Some(size=size, channels=channels) if kind == "image" else Some(size=size)
    found = [x for x in ODDITIES if kind in x.kinds and x.holds(header, Path(name), spec)]
    return {" ".join(x.what.replace(":", "").replace(",", "").split()[:2]) for x in found}


def test_a_picture_as_it_should_be_is_not_odd():
    for kind in ("image", "mask"):
        assert odd(kind) == odd(kind, orientation=0) == set()
    assert odd(mode="L", channels=1) == odd(mode="1", channels=1) == odd("mask", mode="P") == set()


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_what_is_odd_of_pictures_and_masks(kind):
    assert odd(kind, orientation=2) == odd(kind, orientation=8) == {"turned upright"}
    assert odd(kind, frames=2) == {"of several"}
    for name, form, is_odd in (
        ("a.JPG", "JPEG", False), ("a.jpeg", "JPEG", False), ("a.webp", "WEBP", False), ("a.bmp", "BMP", False),
        ("a.gif", "GIF", False), ("a.jpg", "PNG", True), ("a.tiff", "TIFF", True), ("a", "PNG", True),
    ):  # fmt: skip
        assert odd(kind, name, format=form) == ({"of another"} if is_odd else set()), name


@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize(
    ("width", "height", "size", "found"),
    [
        (8, 8, 8, set()),
        (9, 9, 8, set()),
        (7, 7, 8, {"smaller than"}),
        (16, 8, 8, {"not square"}),
        (16, 7, 8, {"not square", "smaller than"}),
        (16, 8, [4, 8], set()),
        (16, 8, [8, 8], {"not square"}),
        (16, 9, [4, 8], {"of another"}),
        (6, 3, [4, 8], {"smaller than"}),
        (7, 9, [4, 8], {"of another", "smaller than"}),
    ],
)
def test_what_is_odd_of_a_shape(kind, width, height, size, found):
    of = Some(size=size, channels=3)
    header = Header(**{**PLAIN, "size": (width, height)})
    held = {x.what for x in ODDITIES if kind in x.kinds and x.holds(header, Path("a.png"), of)}
    assert {" ".join(what.replace(":", "").split()[:2]) for what in held} == found


def test_what_is_odd_of_the_colours_of_an_image_alone():
    assert odd(mode="I;16") == {"of 16", "grey the"} and odd(mode="I;16", channels=1) == {"of 16"}
    assert odd(mode="I", transparent=True, channels=1) == {"of 16"}
    assert odd(mode="RGBA", transparent=True) == {"transparent the"}
    assert odd(mode="L") == odd(mode="1") == odd(mode="LA") == {"grey the"}
    assert odd(channels=1) == odd(mode="P", channels=1) == {"in colour"}
    assert odd(mode="CMYK") == {"of mode"} and odd(mode="CMYK", channels=1) == {"of mode", "in colour"}
    for mode in ("I;16", "RGBA", "L", "CMYK"):
        assert odd("mask", mode=mode, transparent=True) == set()
