"""By how many timesteps each block is ahead of the last, worked by hand: T is 1000, and the anchor's share is 0."""

import pytest
from tiny import tiny

from mmfast.build import build_model
from mmfast.path import leads


@pytest.fixture(scope="module")
def model():
    return build_model(tiny())


CASES = {
    "none": ({}, (), (0, 0, 0)),
    "ahead": ({"mask": 0.2}, (), (0, 0, 200)),
    "behind": ({"mask": -0.2}, (), (200, 200, 0)),
    # In the order of their shares, which is not that of their names.
    "both": ({"label": 0.3, "mask": -0.2}, (), (200, 500, 0)),
    "the other way": ({"label": -0.3, "mask": 0.2}, (), (300, 0, 500)),
    "far apart": ({"label": 0.9, "mask": -0.9}, (), (900, 1800, 0)),
    # What is given goes with the last block, and between two that are left there are at most T steps.
    "nothing between": ({"label": 0.9, "mask": -0.9}, ("image",), (0, 1000, 0)),
    "one is left": ({"label": 0.9, "mask": -0.9}, ("image", "mask"), (0, 0, 0)),
    "given": ({"label": 0.3, "mask": -0.2}, ("label",), (200, 0, 0)),
    "all given": ({"label": 0.3}, ("image", "label", "mask"), (0, 0, 0)),
}


@pytest.mark.parametrize(("offset", "known", "expected"), CASES.values(), ids=CASES)
def test_leads(model, offset, known, expected):
    assert leads(model, offset, known) == dict(zip(("image", "label", "mask"), expected, strict=True))
