"""The convolutions of a trunk come in the order of their numbers, whatever order the file has them in."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mmfast import MmfastError
from mmfast.metrics.pretrained import package_folder, read_convolutions, read_pickle, read_state

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


KERNEL, BIAS = np.zeros((3, 2, 4, 5)), np.zeros(5)
NONE = {
    "a list": [1],
    "no trunk": {"ResNet_0": {"Conv_0": {"kernel": KERNEL, "bias": BIAS}}},
    "a trunk that is none": {"AlexNet_0": [KERNEL]},
    "no bias": {"AlexNet_0": {"Conv_0": {"kernel": KERNEL}}},
    "a bias that is none": {"AlexNet_0": {"Conv_0": {"kernel": KERNEL, "bias": 0.0}}},
    "no kernel": {"VGG16_0": {"Conv_0": {"bias": BIAS}}},
    "a kernel of three dimensions": {"AlexNet_0": {"Conv_0": {"kernel": KERNEL[0], "bias": BIAS}}},
}


@pytest.mark.parametrize("content", NONE.values(), ids=NONE)
def test_a_pickle_without_convolutions(content, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(MmfastError) as caught:
        read_convolutions(path)
    wanted = "it should hold AlexNet_0 or VGG16_0 with Conv_N"
    assert str(caught.value) == f"weights {path} holds no convolutions; {wanted}"


@pytest.mark.parametrize(
    "names", [(), ("features.0.weight",), ("other.0.weight", "other.0.bias"), ("features.0.bias",)]
)
def test_a_state_dict_without_convolutions(names, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({name: torch.zeros(2) for name in names}, path)
    with pytest.raises(MmfastError) as caught:
        read_convolutions(path)
    wanted = "it should hold features.N.weight and features.N.bias"
    assert str(caught.value) == f"weights {path} holds no convolutions; {wanted}"


def test_what_is_no_state_dict_is_named(tmp_path):
    path = tmp_path / "x.pth"
    for content, kind in (([torch.zeros(2)], "list"), ({"x": torch.zeros(2), "y": 3}, "dict")):
        torch.save(content, path)
        with pytest.raises(MmfastError, match=rf"holds {kind}; it should be a state dict of tensors by name"):
            read_state(path)


@pytest.mark.parametrize("read", [read_pickle, read_state])
def test_the_reason_is_what_the_reader_said_in_one_line(read, tmp_path, monkeypatch):
    """Its first line, or the kind of error where it has no words."""
    path = tmp_path / "x"
    path.write_bytes(b"anything")
    for error, reason in ((ValueError("the first\nthe second\nthe third"), "the first"), (EOFError(), "EOFError")):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr("mmfast.metrics.pretrained._Arrays", fails)
        monkeypatch.setattr(torch, "load", fails)
        with pytest.raises(MmfastError, match=rf"{path} cannot be read as a .*: {reason}; get it again$"):
            read(path)


def test_the_folder_of_a_package_is_found_without_importing_it():
    assert package_folder("json") == Path(json.__file__).parent
    assert package_folder("csv") is None  # a module, without a folder
    assert package_folder("no_such_package_at_all") is None
