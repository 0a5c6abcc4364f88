"""What the tests of data sets of other packages share: small configs, and what is decoded, counted."""

import numpy as np
import pytest
import torch

from mmfast import config as configs
from mmfast.data import huggingface, torchvision
from mmfast.data.items import Items
from mmfast.guess import DRAFT

SIZE, COUNT = 4, 30
FEW = {
    "train": {"steps": 1, "batch_size": 8, "sample_every": 0, "tensorboard": False, "device": "cpu"},
    "sample": {"steps": 1, "count": 1},
    "evaluate": {"samples": 0},
    "schedule": {"T": 4},
}
IMAGE, LABEL = {"kind": "image", "channels": 3, "size": SIZE}, {"kind": "label", "classes": 3}


def config(data, modalities=None):
    return configs.from_plain(
        {**DRAFT, **FEW, "data": data, "modalities": modalities or {"image": IMAGE, "label": LABEL}}, "x"
    )


def pixels(picture):
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def counted(monkeypatch):
    """The numbers of the examples that are read, in order."""
    found, read = [], Items._read

    def seen(self, index):
        found.append(index)
        return read(self, index)

    monkeypatch.setattr(Items, "_read", seen)
    return found


def everything(data):
    return [part.__getitems__(range(len(part))).data for part in (data.train, data.test)]


def same(a, b):
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


@pytest.fixture(autouse=True)
def opened_anew():
    yield
    torchvision._load.cache_clear()
    huggingface._load.cache_clear()
