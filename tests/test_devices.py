"""Which device a name means, with the GPUs of this machine stood in for."""

import pytest
import torch

from mmfast import build
from mmfast.errors import MmfastError


def machine(monkeypatch, gpus=0, local=None):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(build, "local_rank", lambda: local)


@pytest.mark.parametrize(
    ("gpus", "local", "name", "device"),
    [
        (0, None, "auto", "cpu"), (1, None, "auto", "cuda"), (2, None, "cuda:1", "cuda:1"), (2, None, "cpu", "cpu"),
        (2, 1, "auto", "cuda"), (2, 0, "cuda", "cuda"), (2, 1, "cpu", "cpu"), (0, 3, "auto", "cpu"),
        (1, 3, "cpu", "cpu"),
    ],
)  # fmt: skip
def test_a_name_means_a_device(monkeypatch, gpus, local, name, device):
    machine(monkeypatch, gpus, local)
    assert build.pick_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "local", "name", "said"),
    [
        (0, None, "gpu", "it should be auto, cpu, cuda or cuda:N"),
        (1, None, "meta", "it should be auto, cpu, cuda or cuda:N"),
        (0, None, "cuda", "but torch finds no GPU; use cpu or auto"),
        (2, 0, "cuda:0", "under torchrun it should be auto, cuda (each rank its own) or cpu"),
    ],
)
def test_another_name_is_refused(monkeypatch, gpus, local, name, said):
    machine(monkeypatch, gpus, local)
    with pytest.raises(MmfastError) as error:
        build.pick_device(name, "train.device")
    assert str(error.value).startswith(f"train.device is '{name}'") and said in str(error.value)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    machine(monkeypatch, 2, 2)
    with pytest.raises(MmfastError) as error:
        build.pick_device("auto")
    assert str(error.value) == (
        "this machine has 2 GPUs, and this is its process 3; lower --nproc-per-node, or set --device to cpu"
    )
