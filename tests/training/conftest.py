"""A run that nothing has happened to, and copies of it to damage."""

import shutil
import signal

import pytest
import torch
from rank_runs import command
from small_run import make

from mmfast.cli import main


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    make(folder)
    return folder


@pytest.fixture
def run(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def hang_ups_are_heard():
    """Under nohup they are ignored, in training too."""
    number = getattr(signal, "SIGHUP", None)
    before = number and signal.signal(number, signal.SIG_DFL)
    yield
    if number:
        signal.signal(number, before)


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """A run of 100 steps by one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main(command(folder, 100, train__checkpoint_every=30)) == 0
    return folder


@pytest.fixture
def fsdp2():
    """Before torch 2.6 there is none."""
    if not hasattr(pytest.importorskip("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip(f"torch {torch.__version__} cannot keep weights in shards")
