"""What a data set of another package gives of an example: values of all sorts, as files of them are read."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import config as configs
from mmfast.data.items import Items, parted, x_of
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT

IMAGE, LABEL = {"kind": "image", "channels": 3, "size": 4}, {"kind": "label", "classes": 3}


def specs(modalities):
    return configs.from_plain({**DRAFT, "data": {"kind": "digits"}, "modalities": modalities}, "x").modalities


def test_values_of_other_packages():
    kinds = specs({
        "image": {"kind": "image", "channels": 1, "size": 2}, "label": {**LABEL, "names": ["2", "1", "0"]},
        "vector": {"kind": "embedding", "dim": 4}, "mask": {"kind": "mask", "classes": 3, "size": 2},
    })  # fmt: skip
    assert int(x_of(kinds["label"], 2, "x")) == 2 and int(x_of(kinds["label"], np.int64(0), "x")) == 0
    assert int(x_of(kinds["label"], torch.tensor([1]), "x")) == 1 and int(x_of(kinds["label"], "2", "x")) == 0
    assert x_of(kinds["vector"], [1, 2, 3, 4], "x").tolist() == [1, 2, 3, 4] and x_of(kinds["label"], None, "x") is None
    assert x_of(kinds["mask"], np.array([[0, 1], [2, 2]], np.uint8), "x").tolist() == [[0, 1], [2, 2]]
    image = x_of(kinds["image"], np.array([[0, 255], [51, 0]], np.uint8), "x")
    torch.testing.assert_close(image, torch.tensor([[[-1, 1], [51 / 127.5 - 1, -1]]]))
    for name, value, words in (
        ("label", 3, "x runs from 3 to 3; it should be in 0 .. 2"),
        ("label", 0.5, "float"), ("label", "9", "not a label"),
        ("vector", [1, 2], r"shape \[2\]; it should be \[4\]"), ("vector", {"a": 1}, "dict"), ("image", 3, "shape"),
        ("vector", "text", "converted to kind embedding"), ("label", [1, 2], "shape"), ("image", object(), "object"),
    ):  # fmt: skip
        with pytest.raises(MmfastError, match=words):
            x_of(kinds[name], value, "x")


def parts(**modalities):
    return specs({"image": {**IMAGE, "size": 2}, **modalities})


def test_arrays_of_class_numbers_are_read_as_a_file_s_are():
    kinds = parts(mask={"kind": "mask", "classes": 3, "size": 2, "ignore": 255}, two={"kind": "mask", "size": 2})
    numbers = [[0, 255], [2, 1]]
    for value in (
        numbers,
        np.array(numbers),
        torch.tensor(numbers),
        np.array(numbers, np.uint16),
        np.array(numbers, "u1"),
    ):
        assert x_of(kinds["mask"], value, "x").tolist() == [[0, -1], [2, 1]]
    assert x_of(kinds["two"], np.array([[0, 255], [255, 0]]), "x").tolist() == [[0, 1], [1, 0]]
    larger = np.kron(np.array(numbers), np.ones((3, 3), int))
    assert x_of(kinds["mask"], larger, "x").tolist() == [[0, -1], [2, 1]]
    for value, words in (
        (np.array([[0, -1], [0, 0]]), "holds class -1; the mask has classes 0 .. 2"),
        (np.array([[0, -(2**31)], [0, 0]]), "holds class -2147483648; the mask has classes 0 .. 2"),
        (np.array([[0, 3], [0, 0]]), "holds class 3"), (np.array([[0, 2**40], [0, 0]]), "should be class numbers"),
        (np.zeros((2, 2)), "be converted to kind mask"), (np.zeros((3, 5, 5), np.uint8), r"a picture is \[H, W\]"),
        (Image.fromarray(np.array([[0, -1], [0, 0]], np.int32)), "holds class -1"),
        (Image.fromarray(np.zeros((2, 2), np.float32)), "x is a picture of floats"),
    ):  # fmt: skip
        with pytest.raises(MmfastError, match=words):
            x_of(kinds["mask"], value, "x")


def test_pictures_of_other_depths_are_read_in_their_range_or_refused():
    image = parts()["image"]
    grey = Image.fromarray(np.array([[0, 65535], [13107, 0]], np.int32))
    expected = torch.tensor([[-1, 1], [2 * 0.2 - 1, -1]]).expand(3, 2, 2)
    torch.testing.assert_close(x_of(image, grey, "x"), expected, atol=1e-6, rtol=0)
    for mode in ("La", "LA"):  # of Pillow's modes the first can become nothing but the second
        half = Image.fromarray(np.full((2, 2, 2), (100, 128), np.uint8), "LA").convert(mode)
        behind = 2 * (100 * 128 + 255 * 127) / 255**2 - 1
        assert (x_of(image, half, "x") - behind).abs().max() < 2 / 127
    for value, words in (
        (Image.fromarray(np.array([[0, 70000], [0, 0]], np.int32)), r"x runs from 0 to 70000; .* in 0 \.\. 65535"),
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), "x is a picture of floats"),
        (np.zeros((3, 5, 5), np.uint8), r"x is ndarray \[3, 5, 5\]; a picture is"),
    ):
        with pytest.raises(MmfastError, match=words):
            x_of(image, value, "x")


def test_pictures_of_one_example_have_one_shape():
    """What Items gives of each, as folders have it: of each the middle is taken, so another shape is another part."""
    kinds = parts(mask={"kind": "mask", "size": 2})
    sizes = [((8, 4), (4, 2)), ((8, 4), (4, 4)), ((8, 4), (8, 4))]

    def get(index):
        (width, height), mask = sizes[index]
        return {"image": Image.new("RGB", (width, height)), "mask": Image.new("L", mask)}

    items = Items(3, get, kinds, "pets", "image")
    assert len(items.__getitems__([0, 2])) == 2
    with pytest.raises(
        MmfastError, match=r"example 1 of pets, mask is 4 x 4 and .*, image is 8 x 4: they differ in shape"
    ):
        items.__getitems__([0, 1])


def test_a_share_is_held_out_by_number():
    train, test = parted(1000, 0.1)
    assert sorted([*train.tolist(), *test.tolist()]) == [*range(1000)] and 70 <= len(test) <= 130
    assert parted(2000, 0.1)[1][: len(test)].tolist() == test.tolist()  # more examples move none
    one = parted(1, 0.1)
    assert [x.tolist() for x in one] == [[], [0]] and {x.dtype for x in one} == {torch.int64}
