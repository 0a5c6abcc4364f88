"""What code of one's own has made is kept for that code alone: after a change of it, it is made again."""

import importlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import modalities, texts, trust
from mmfast.autoencoders import Autoencoder, AutoencoderSpec
from mmfast.data import Data, folder
from mmfast.data.base import InMemory
from mmfast.data.precompute import with_embeddings
from mmfast.modalities import caption

ENCODER = "import torch\ndef encode(texts):\n    return torch.full((len(texts), 2), {})\n"
KIND = """
from mmfast.modalities.label import Label
class Grade(Label):
    kind = "grade"
    @classmethod
    def read(cls, path, spec):
        return super().read(path, spec) * 0 + {}
"""
NETWORK = "import torch\ndef net():\n    return lambda x: x.flatten(1) * {} + torch.arange(16.0) * x[:, :1, 0, 0]\n"
AUTOENCODER = (
    "from torch import nn\nclass Net(nn.Module):\n    def encode(self, x): return x * {}\n    decode = encode\n"
)


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(trust, "_allowed", {("", "mine_here:encode"), ("", "mine_here:Net")})

    def write(text, value):
        """The module as it is in a process that begins after the change."""
        (tmp_path / "mine_here.py").write_text(text.format(value))
        sys.modules.pop("mine_here", None)
        importlib.invalidate_caches()
        texts.encoder.cache_clear()
        caption.vector.cache_clear()

    yield write
    sys.modules.pop("mine_here", None)
    texts.encoder.cache_clear()
    caption.vector.cache_clear()


@pytest.fixture
def opened(tmp_path):
    for k in range(8):
        for name in ("image", "beside"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 9 * k, np.uint8)).save(tmp_path / "data" / "image" / f"{k}.png")
        (tmp_path / "data" / "beside" / f"{k}.txt").write_text("1")

    def read(beside):
        specs = {"image": modalities.kind("image").Spec(channels=1, size=4), "beside": beside}
        spec = folder.Spec(root=str(tmp_path / "data"), cache=str(tmp_path / "cache"))
        data = folder.open(spec, specs, "image")
        return {float(x) for x in data.train.__getitems__(range(len(data.train))).data["beside"].flatten()}

    return read


def test_a_text_encoder_of_ones_own(written, opened):
    spec = modalities.kind("caption").Spec(dim=2, text_encoder="mine_here:encode")
    for value in (1.0, 2.0, 1.0):
        written(ENCODER, value)
        assert opened(spec) == opened(spec) == {value}


def test_a_kind_of_an_installed_package(written, opened, monkeypatch):
    for value in (1, 2):
        written(KIND, value)
        kind = importlib.import_module("mine_here").Grade
        monkeypatch.setitem(modalities.KINDS, "grade", kind)
        assert opened(kind.Spec(kind="grade", classes=3)) == {value}


def test_a_network_of_ones_own_whose_features_are_embeddings(written, tmp_path):
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = Data(InMemory({"image": images}), InMemory({"image": images}))
    found = []
    for value in (1.0, 3.0):
        written(NETWORK, value)
        whole = with_embeddings(data, "image", "embedding", "mine_here:net", 16, tmp_path / "cache", whole=True)
        found.append(whole.train.__getitems__(range(20)).data["embedding"])
    torch.testing.assert_close(found[1] - found[0], 2 * images.flatten(1))


def test_an_autoencoder_of_ones_own(written):
    digests = []
    for value in (1.0, 2.0, 1.0):
        written(AUTOENCODER, value)
        digests.append(Autoencoder("a.b", AutoencoderSpec("mine_here:Net"), (1, 4, 4)).digest())
    assert digests[0] == digests[2] != digests[1]
