"""Latents of the training images are computed once and kept, by image and by the autoencoder's weights."""

import errno
import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmfast import config as configs
from mmfast import trust
from mmfast.build import build_data, build_model, load_run
from mmfast.data.rows import Layout
from mmfast.training import train
from mmfast.training.latents import AT_ONCE, Latent, with_latents

COUNT, SIZE = 24, 8
CPU = torch.device("cpu")


class Net(torch.nn.Module):
    """A linear map of cells of 2 x 2 pixels, which counts the images that it encodes."""

    seen = 0

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 1, bias=False)
        torch.nn.init.orthogonal_(self.conv.weight, generator=torch.Generator().manual_seed(0))

    def encode(self, x):
        Net.seen += len(x)
        return self.conv(F.pixel_unshuffle(x, 2))

    def decode(self, z):
        return F.pixel_shuffle(F.conv2d(z, self.conv.weight.transpose(0, 1)), 2)


class Plain:
    """The same, and no torch module."""

    def __init__(self):
        self.net = Net()

    def encode(self, x):
        return self.net.encode(x)

    def decode(self, z):
        return self.net.decode(z)


def net():
    return Net()


def plain():
    return Plain()


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setattr(trust, "_allowed", {("", f"{__name__}:{name}") for name in ("net", "plain")})
    Net.seen = 0


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "image").mkdir(parents=True)
    for k in range(COUNT):
        pixels = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "image" / f"{k:02}.png")
    return tmp_path / "data"


def config(root, network="net", keep=True, **data):
    autoencoder = {"network": f"{__name__}:{network}", "keep": keep, "factor": 0.5}
    options = {"kind": "folder", "root": str(root), "cache": str(root.parent / "cache"), **data}
    return configs.from_plain(
        {
            "modalities": {"image": {"kind": "image", "channels": 1, "size": SIZE, "autoencoder": autoencoder}},
            "backbone": {"kind": "mlp", "width": 16, "blocks": 2, "features": 4},
            "data": options,
            "loss": {"target": "v"},
            "train": {
                "batch_size": 8, "steps": 9, "sample_every": 0, "tensorboard": False, "device": "cpu",
                "validate_every": 0, "log_every": 1,
            },
            "sample": {"steps": 1, "count": 1},
            "evaluate": {"samples": 0},
        },
        "test",
    )  # fmt: skip


def opened(made):
    model = build_model(made)
    return model, with_latents(build_data(made), model, made, CPU).train


def whole(examples):
    return examples.__getitems__(range(len(examples)))


def test_they_are_those_of_the_images(root):
    model, examples = opened(config(root))
    batch = whole(examples)
    torch.testing.assert_close(batch.z0, model.anchor.to_z0(batch.data["image"]), atol=1e-6, rtol=1e-6)
    some = examples.__getitems__([5, 2, 5])
    assert torch.equal(some.z0, batch.z0[[5, 2, 5]])
    assert torch.equal(some.to(CPU).z0, some.z0)


def test_each_is_computed_once(root):
    _, first = opened(config(root))
    Net.seen = 0
    _, second = opened(config(root))
    both = whole(first), whole(second)
    assert Net.seen == 1 and torch.equal(both[0].z0, both[1].z0)  # of the model that is built, for the shape


def test_an_image_that_changes_is_encoded_anew_and_no_other(root):
    _, examples = opened(config(root))
    before = whole(examples)
    stem = examples.stems[3]
    Image.fromarray(np.full((SIZE, SIZE), 200, np.uint8)).save(root / "image" / f"{stem}.png")
    Net.seen = 0
    model, examples = opened(config(root))
    after = whole(examples)
    torch.testing.assert_close(after.z0, model.anchor.to_z0(after.data["image"]), atol=1e-6, rtol=1e-6)
    others = [k for k in range(len(examples)) if k != 3]
    assert torch.equal(after.z0[others], before.z0[others]) and not torch.equal(after.z0[3], before.z0[3])
    assert Net.seen <= 2 * AT_ONCE + len(examples)


def test_other_weights_have_latents_of_their_own(root, monkeypatch):
    model, examples = opened(config(root))
    other = Net()
    with torch.no_grad():
        other.conv.weight.mul_(2)
    monkeypatch.setattr(sys.modules[__name__], "net", lambda: other)
    changed = build_model(config(root))
    assert changed.anchor.autoencoder.digest() != model.anchor.autoencoder.digest()
    found = with_latents(build_data(config(root)), changed, config(root), CPU).train
    torch.testing.assert_close(whole(found).z0, 2 * whole(examples).z0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"keep": False}, {"flip": True}, {"cache_gb": 0}, {"network": "plain"}])
def test_where_they_are_not_kept_training_encodes_as_it_goes(root, options):
    _, examples = opened(config(root, **options))
    assert not isinstance(examples, Latent) and whole(examples).z0 is None


def test_where_the_disk_takes_some_alone_training_encodes_as_it_goes(root, monkeypatch, capsys):
    """No process of train.workers may have to encode one: it could not, on a GPU."""
    put = Layout.put

    def full(self, file, index, row):
        if "z0" in self.packings and index >= AT_ONCE // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, file, index, row)

    monkeypatch.setattr(Layout, "put", full)
    Net.seen = 0
    _, examples = opened(config(root))
    assert Net.seen == 1 + AT_ONCE < len(examples)  # one to look at, and those until the disk was full
    assert not isinstance(examples, Latent) and whole(examples).z0 is None
    assert capsys.readouterr().err.count("cannot be written to (No space left on device)") == 1
    monkeypatch.undo()
    monkeypatch.setattr(trust, "_allowed", {("", f"{__name__}:net")})
    _, examples = opened(config(root))
    assert isinstance(examples, Latent) and len(whole(examples).z0) == len(examples) > AT_ONCE


def test_of_an_image_that_is_another_since_no_latents_are_taken(root):
    """As where another example stands for one that has become damaged."""
    _, examples = opened(config(root, cache_gb=1))
    inner = examples.examples
    examples.examples = type("Others", (), {"__getitems__": lambda self, rows: inner.__getitems__([0] * len(rows))})()
    assert examples.__getitems__([0]).z0 is not None and examples.__getitems__([0, 1]).z0 is None


@pytest.mark.slow
def test_training_is_the_same_and_encodes_no_image_again(root, tmp_path):
    def losses(name, **options):
        train(config(root, **options), str(tmp_path / name), quiet=True)
        return [json.loads(line)["loss"] for line in (tmp_path / name / "stats.jsonl").read_text().splitlines()]

    slow = losses("slow", keep=False)
    encoded = Net.seen
    assert losses("kept") == pytest.approx(slow, rel=1e-4)
    Net.seen = 0
    assert losses("again") == pytest.approx(slow, rel=1e-4)
    assert Net.seen < encoded - 9 * 8 + 9  # none of nine batches
    weights = [load_run(tmp_path / name, "cpu")[2].state_dict() for name in ("kept", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
