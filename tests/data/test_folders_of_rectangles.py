"""A folder of rectangles: read and kept so, told of by the survey, and guessed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rectangles import as_floats, config, fill, parts, spec

from mmfast import config as configs
from mmfast import sizes
from mmfast.build import build_model
from mmfast.data import folder
from mmfast.guess import guess
from mmfast.propose import options as proposed
from mmfast.survey import survey


def test_a_folder_is_read_so_and_kept_so(tmp_path):
    truth = fill(tmp_path / "data")
    specs = {"image": spec("image", size=[20, 40]), "mask": spec("mask", classes=3, size=[20, 40])}
    options = {"root": str(tmp_path / "data"), "cache": str(tmp_path / "cache"), "cache_gb": 1.0}
    for _ in range(2):  # decoded, and then from the cache
        data = folder.open(folder.Spec(**options), specs, "image")
        batch = data.train.__getitems__(range(len(data.train)))
        for k, stem in enumerate(data.train.stems):
            pixels, mask = truth[stem]
            torch.testing.assert_close(batch.data["image"][k], as_floats(pixels[:, 5:45]), atol=1e-6, rtol=0)
            assert batch.data["mask"][k].tolist() == mask[:, 5:45].tolist()
    assert len([*(tmp_path / "cache").glob("*.rows")]) == 2
    tall = {name: replace(x, size=[40, 20]) for name, x in specs.items()}
    x = folder.open(folder.Spec(**options), tall, "image").train.__getitems__([0]).data["image"]
    assert x.shape == (1, 3, 40, 20)  # rows of another size are not these


def test_the_survey_tells_what_is_cropped_and_enlarged(tmp_path):
    fill(tmp_path / "data")
    odd = lambda size: {what for _, what in survey(config(parts(size), data=where)).odd}  # noqa: E731
    where = {"kind": "folder", "root": str(tmp_path / "data"), "cache_gb": 0}
    cropped, enlarged = "of another shape than the size in the config: the middle is taken", "smaller than the size in"
    assert odd((20, 50)) == set()
    assert odd((8, 16)) == {cropped}
    assert odd((8, 8)) == {"not square: the middle square is taken"}
    assert {x.startswith(enlarged) for x in odd((22, 55))} == {True}


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        ([(64, 48)] * 20, [24, 32]),
        ([(48, 64)] * 20, [32, 24]),
        ([(160, 90)] * 19 + [(90, 90)], [24, 40]),
        ([(160, 90)] * 10 + [(90, 90)] * 10, 32),
        ([(136, 128)] * 20, 32),  # an eighth of each would be gained at most
        ([(10, 20)] * 8, [10, 6]),
    ],
)
def test_init_proposes_a_rectangle_where_nearly_all_have_one_shape(tmp_path, pictures, expected):
    (tmp_path / "image").mkdir()
    for k, size in enumerate(pictures):
        Image.new("RGB", size, (k, 2 * k, 9)).save(tmp_path / "image" / f"{k}.png")
    found = guess(tmp_path, 32)
    size = found.modalities["image"]["size"]
    assert size == expected
    build_model(configs.from_plain(proposed(found, 4), "init"))  # whose network halves that
    assert math.prod(sizes.height_width(size)) <= 32 * 32


def test_a_map_of_the_images_shape_is_guessed(tmp_path):
    for name in ("image", "map"):
        (tmp_path / name).mkdir()
    for k in range(4):
        Image.new("RGB", (64, 48)).save(tmp_path / "image" / f"{k}.png")
        np.save(tmp_path / "map" / f"{k}.npy", np.ones((5, 3, 4), np.float32))
    assert guess(tmp_path, 32).modalities["map"] == {"kind": "feature_map", "dim": 5, "cells": [3, 4]}
