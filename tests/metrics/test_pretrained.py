"""The convolutions of a trunk come in the order of their numbers, whatever order the file has them in."""

import pickle

import numpy as np
import pytest
import torch

from mmfast.metrics.pretrained import read_convolutions

NUMBERS = [10, 2, 0, 11, 1, 3]


@pytest.fixture
def arrays():
    """By number: a kernel [out, in, height, width] and a bias, no two sizes alike."""
    random = np.random.default_rng(0)
    return {n: (random.normal(size=(n + 5, 4, 3, 2)), random.normal(size=n + 5)) for n in NUMBERS}


def check(found, arrays):
    assert len(found) == len(NUMBERS)
    for (weight, bias), n in zip(found, sorted(NUMBERS), strict=True):
        assert weight.dtype == bias.dtype == torch.float32
        np.testing.assert_array_equal(weight, arrays[n][0].astype(np.float32))
        np.testing.assert_array_equal(bias, arrays[n][1].astype(np.float32))


@pytest.mark.parametrize("net", ["AlexNet_0", "VGG16_0"])
def test_of_a_pickle(net, arrays, tmp_path):
    """Whose kernels are [height, width, in, out]."""
    trunk = {f"Conv_{n}": {"kernel": w.transpose(2, 3, 1, 0), "bias": b} for n, (w, b) in arrays.items()}
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({net: trunk, "other": {"Conv_0": {}}}))
    check(read_convolutions(tmp_path / "x.ckpt"), arrays)


def test_of_a_state_dict(arrays, tmp_path):
    """The classifier's layers are no convolutions of the trunk."""
    state = {"classifier.6.weight": torch.zeros(3, 3), "classifier.6.bias": torch.zeros(3)}
    for n, (weight, bias) in arrays.items():
        state |= {f"features.{n}.weight": torch.from_numpy(weight), f"features.{n}.bias": torch.from_numpy(bias)}
    torch.save(state, tmp_path / "x.pth")
    check(read_convolutions(tmp_path / "x.pth"), arrays)
