"""data.flip: an example and its mirror image, in all that has a left and a right, as a function of its number."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.data import Batch
from mmfast.training import fit
from mmfast.training.augment import mirrored
from mmfast.training.objective import losses

SIZE, COUNT = 4, 400
PARTS = {
    "image": {"kind": "image", "channels": 3, "size": SIZE},
    "mask": {"kind": "mask", "classes": 3, "size": SIZE},
    "label": {"kind": "label", "classes": 5},
    "vector": {"kind": "embedding", "dim": 4},
    "map": {"kind": "feature_map", "dim": 2, "cells": 2},
    "hidden": {"kind": "masked", "channels": 3, "size": SIZE, "block": 2},
}
FEW = {
    "backbone": {"kind": "mlp", "width": 8, "blocks": 1, "features": 4},
    "train": {"steps": 8, "batch_size": 8, "sample_every": 0, "tensorboard": False, "device": "cpu"},
    "sample": {"steps": 1, "count": 1},
    "evaluate": {"samples": 0},
    "schedule": {"T": 4},
}


def config(**more):
    return configs.from_plain({**FEW, "modalities": PARTS, **more}, "x")


def batch():
    generator = torch.Generator().manual_seed(0)
    data = {
        "image": torch.rand(COUNT, 3, SIZE, SIZE, generator=generator),
        "mask": torch.randint(0, 3, (COUNT, SIZE, SIZE), generator=generator),
        "label": torch.arange(COUNT) % 5,
        "vector": torch.randn(COUNT, 4, generator=generator),
        "map": torch.randn(COUNT, 2, 2, 2, generator=generator),
    }
    return Batch(data, {"mask": torch.arange(COUNT) % 3 > 0})


def test_all_of_an_example_is_mirrored_together_or_nothing():
    model, given, numbers = build_model(config()), batch(), torch.arange(7000, 7000 + COUNT)
    found = mirrored(model, given, 3, numbers)
    flips = (found.data["image"] != given.data["image"]).flatten(1).any(1)
    assert 0.4 < float(flips.float().mean()) < 0.6 and [*found.data] == [*given.data]
    for name, x in given.data.items():
        for k in range(COUNT):
            own = x[k].numpy()
            expected = own[..., ::-1] if flips[k] and name in ("image", "mask", "map") else own
            assert np.array_equal(found.data[name][k].numpy(), expected), (name, k)
    assert found.present is given.present
    parts = [mirrored(model, Batch({n: x[rows] for n, x in given.data.items()}), 3, numbers[rows])
             for rows in (slice(0, 150), slice(150, COUNT))]  # fmt: skip
    for name in given.data:
        assert torch.equal(torch.cat([part.data[name] for part in parts]), found.data[name])
    for seed, start in ((4, 7000), (3, 7400)):  # another run; another epoch
        other = mirrored(model, given, seed, torch.arange(start, start + COUNT))
        again = (other.data["image"] != given.data["image"]).flatten(1).any(1)
        assert 0.4 < float((again ^ flips).float().mean()) < 0.6


@pytest.mark.parametrize("flip", [True, False])
def test_training_sees_both_and_the_rest_never(tmp_path, flip):
    """Pictures that are dark on the left, with masks of it; hidden parts are made of what is seen then."""
    for k in range(12):
        for name, shape in (("image", (SIZE, SIZE, 3)), ("mask", (SIZE, SIZE))):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels = np.zeros(shape, np.uint8)
            pixels[:, 2:] = 2 if name == "mask" else 255
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    parts = {name: PARTS[name] for name in ("image", "mask", "hidden")}
    chosen = config(data={"kind": "folder", "root": str(tmp_path), "flip": flip}, modalities=parts)
    data, seen = build_data(chosen), []
    assert data.flip is flip
    left = torch.tensor([-1.0, -1, 1, 1])

    def watched(model, batch, numbers, config):
        whole = model.complete(batch, config.seed, numbers).filled()
        seen.append(whole)
        return losses(model, batch, numbers, config)

    fit(chosen, str(tmp_path / "run"), data, losses=watched, quiet=True)
    seen = {name: torch.cat([x[name] for x in seen[1:]]) for name in parts}  # the first is a look before training
    mirror = (seen["image"] == left.flip(-1)).flatten(1).all(1)
    assert bool(((seen["image"] == left).flatten(1).all(1) | mirror).all())
    assert 0.25 < float(mirror.float().mean()) < 0.75 if flip else not bool(mirror.any())
    assert torch.equal(seen["mask"] == 2, seen["image"][:, 0] > 0)
    assert torch.equal(seen["hidden"][:, :3], seen["image"])
    held_out = data.test.__getitems__(range(len(data.test))).data
    assert bool((held_out["image"] == left).all())


def test_labels_with_few_and_features_keep_the_option(tmp_path):
    from mmfast.data.base import Data, InMemory
    from mmfast.data.labelled import with_few_labels

    part = InMemory({"image": torch.zeros(4, 1, 2, 2), "label": torch.zeros(4, dtype=torch.int64)})
    spec = config().modalities["label"]
    spec.labelled_fraction = 0.5
    assert with_few_labels(Data(part, part, flip=True), {"label": spec}).flip
