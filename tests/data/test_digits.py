"""The digits by value: scikit-learn's own numbers, the ink in them, the split and the judge."""

import functools

import numpy as np
import pytest
import torch

from mmfast.data import digits

datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install '.[test]'")


@pytest.fixture(scope="module")
def raw():
    return datasets.load_digits()


def opened(fraction=0.2):
    return digits.open(digits.Spec(test_fraction=fraction), {}, "image")


def whole(part):
    return part.__getitems__(range(len(part))).data


def rows_of(part, raw):
    """Which of scikit-learn's digits the images are: those of the same pixels (none is there twice)."""
    where = {image.astype(int).tobytes(): k for k, image in enumerate(raw.images)}
    assert len(where) == len(raw.images)
    levels = ((whole(part)["image"][:, 0].double() + 1) * 8).numpy()
    assert (levels == levels.round()).all()
    return [where[image.astype(int).tobytes()] for image in levels]


def test_every_digit_is_in_one_part_with_its_own_label_and_ink(raw):
    data, rows = opened(), []
    for part in (data.train, data.test):
        found, here = whole(part), rows_of(part, raw)
        assert found["image"].shape == (len(part), 1, 8, 8) and found["image"].dtype == torch.float32
        assert found["label"].tolist() == raw.target[here].tolist() and found["label"].dtype == torch.int64
        # Sixteen levels: from 7 on it is ink.
        assert np.array_equal(found["mask"].numpy(), raw.images[here] >= 7) and found["mask"].dtype == torch.int64
        rows.append(here)
    assert sorted(rows[0] + rows[1]) == [*range(1797)]
    assert len(rows[1]) == 359 and rows[1] != sorted(rows[1])  # a fifth, shuffled


def test_the_split_is_the_same_every_time_and_a_larger_one_holds_a_smaller(raw):
    small, again, large = (rows_of(opened(fraction).test, raw) for fraction in (0.1, 0.1, 0.5))
    assert small == again and len(small) == 180 and len(large) == round(1797 * 0.5) and {*small} < {*large}


def test_pixels_are_the_levels_of_the_file():
    """-1 .. 1 is 0 .. 16: the nearest whole number, and what strays outside is cut."""
    x = torch.tensor([-3.0, -1.0, -0.93, -0.94, 0.0, 0.18, 0.19, 0.99, 1.0, 2.0])
    assert digits.pixels(x).tolist() == [0, 0, 1, 0, 8, 9, 10, 16, 16, 16]
    assert digits.ink(torch.tensor([[[[6.4 / 8 - 1, 6.6 / 8 - 1]]], [[[-5.0, 5.0]]]])).tolist() == [[[0, 1]], [[0, 1]]]


def test_the_judges(raw, monkeypatch):
    """The label's is scikit-learn's regression fitted to every digit's levels over 16; the mask's is the ink."""
    from sklearn import linear_model

    asked = []

    class Regression:
        def __init__(self, max_iter):
            assert max_iter == 1000

        def fit(self, x, labels):
            asked.append((x, labels))
            return self

        def predict(self, x):
            asked.append(x)
            return np.arange(len(x)) % 10

    monkeypatch.setattr(linear_model, "LogisticRegression", Regression)
    monkeypatch.setattr(digits, "_classifier", functools.cache(digits._classifier.__wrapped__))  # none is fitted yet
    judges = opened().judges()
    assert opened(0.5).judges()["label"] is judges["label"], "one for all"
    assert set(judges) == {"label", "mask"} and judges["mask"] is digits.ink
    np.testing.assert_array_equal(asked[0][0], raw.data / 16)
    np.testing.assert_array_equal(asked[0][1], raw.target)
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    found = judges["label"](images)
    assert found.tolist() == [k % 10 for k in range(30)] and found.dtype == torch.int64
    levels = np.clip(np.round((images.flatten(1).double().numpy() + 1) * 8), 0, 16)
    np.testing.assert_array_equal(asked[1], levels / 16)
