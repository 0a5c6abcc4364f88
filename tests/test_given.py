"""What a value of a modality may be, as x: which forms are the same, and which are refused in which words."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import MmfastError
from mmfast.given import known_part, taken
from mmfast.modalities import kind
from mmfast.modalities.base import SpaceShape


def made(name, **options):
    return kind(name)("x", kind(name).Spec(**options), SpaceShape(4, 4))


LABEL, IMAGE = made("label", classes=3, names=["a", "b", "c"]), made("image", channels=3, size=4)
MASK, VECTOR = made("mask", classes=2, size=4), made("embedding", dim=3)


@pytest.mark.parametrize("value", ["b", "1", 1, np.int64(1), torch.tensor(1), torch.tensor([1]), np.uint8(1), ["b"]])
def test_one_label_is_one_x(value):
    assert taken(LABEL, value, "label").tolist() == [1]


def test_several_are_one_for_each_sample():
    for value in (["a", 2, "1"], ("0", "c", torch.tensor(1)), torch.tensor([0, 2, 1]), np.array([0, 2, 1], np.int16)):
        assert taken(LABEL, value, "label").tolist() == [0, 2, 1]
    assert taken(VECTOR, np.ones((2, 3)), "v").tolist() == [[1, 1, 1]] * 2
    assert taken(VECTOR, np.array([1, 2, 3]), "v").tolist() == [[1, 2, 3]]  # whole numbers are real ones
    for value, count in (([], 0), ([1, torch.tensor([1, 2])], 2), ([torch.tensor([1, 2])], 1), ([[1, 2], 0], 2)):
        with pytest.raises(MmfastError, match=f"label is a list of {count}; it should hold one value for each sample"):
            taken(LABEL, value, "label")


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        (LABEL, 1.0, r"x is float32; it should be whole numbers"),
        (LABEL, True, r"x is bool; it should be whole numbers"),
        (VECTOR, torch.zeros(3, dtype=torch.bool), r"x is bool; it should be real numbers"),
        (VECTOR, np.zeros(3, complex), r"x is complex128; it should be real numbers"),
        (MASK, np.zeros((4, 4)), r"x is float64; it should be whole numbers"),
        (LABEL, object(), r"x is of type object; it should be a number, a name, a path, a picture, an array"),
        (LABEL, None, r"x is of type NoneType; it should be a number"),
        (IMAGE, np.zeros((4, 4, 5), np.uint8), r"x is uint8 \[4, 4, 5\]; a picture is \[H, W\] or \[H, W, 3\]"),
        (LABEL, 3, "x"),
        (VECTOR, torch.zeros(4), "x"),
    ],
)
def test_what_is_no_x_is_named(part, value, says):
    with pytest.raises(MmfastError, match=f"^{says}"):
        taken(part, value, "x")


def test_a_picture_is_one_for_what_is_read_from_pictures_alone():
    """An array of bytes is a picture for an image or a mask, and numbers for a label or a vector."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    wanted = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    for value in (pixels, Image.fromarray(pixels), wanted, wanted.numpy(), wanted[None]):
        torch.testing.assert_close(taken(IMAGE, value, "x"), wanted[None])
    mask = np.array([[0, 255, 0, 0]] * 4, np.uint8)
    assert taken(MASK, mask, "x").tolist() == [[[0, 1, 0, 0]] * 4]
    assert taken(VECTOR, np.array([3, 200, 1], np.uint8), "x").tolist() == [[3, 200, 1]]


def test_what_is_read_from_a_path(tmp_path):
    (tmp_path / "x.txt").write_text("c")
    assert taken(LABEL, tmp_path / "x.txt", "x").tolist() == [2]
    np.save(tmp_path / "x.npy", np.array([1.0, 2.0, 4.0]))
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy")):
        assert taken(VECTOR, path, "x").tolist() == [[1, 2, 4]]


def test_what_is_known_of_one():
    """Of an image for all channels, or for each; as a picture above 127, as 0 and 1, and as bool."""
    left = np.array([[1, 1, 0, 0]] * 4)
    wanted = torch.from_numpy(left).bool().expand(3, 4, 4)
    pictures = left * 255, left * 128 + 127 * (1 - left), left * 200 + 3
    values = [left, left.astype(bool), left.astype(float), torch.from_numpy(left), wanted, left.astype(np.uint8)]
    for value in [*values, *(x.astype(np.uint8) for x in pictures)]:
        found = known_part(IMAGE, value, "known")
        assert found.dtype == torch.bool and torch.equal(found, wanted)
    channel = np.zeros((3, 4, 4), np.uint8)
    channel[1] = 1
    assert torch.equal(known_part(IMAGE, channel, "known"), torch.from_numpy(channel).bool())
    assert not known_part(IMAGE, np.zeros((4, 4), np.uint8), "known").any()
    assert known_part(VECTOR, "0,2", "known").tolist() == [True, False, True]
    for wrong in (np.zeros((5, 4)), np.zeros(0, np.uint8), object()):
        with pytest.raises(
            MmfastError, match=r"^known is .*; it should be a path, a text or an array of bool \[3, 4, 4\]"
        ):
            known_part(IMAGE, wrong, "known")


def test_a_file_that_is_missing_is_said_to_be():
    """Where a modality of one's own opens it: its text may have been meant as a value."""
    part = SimpleNamespace(parse=lambda text: Path(text).read_text(), extensions=(".txt", ".dat"))
    said = r"^number is '2', and no such file exists in the current folder, /.*; it should be a file \(.txt, .dat\)$"
    with pytest.raises(MmfastError, match=said):
        taken(part, "2", "number")
