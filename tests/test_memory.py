"""The host's memory, with the system stood in for: what is asked of it, and what is refused."""

import os
import sys
import types

import pytest
import torch

from mmfast import memory
from mmfast.errors import MmfastError


def test_more_samples_than_the_memory_holds_are_refused(monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    memory.check_room("--n", 2**22, 1024)
    with pytest.raises(MmfastError) as error:
        memory.check_room("--n", 2**22 + 1, 1024)
    assert str(error.value) == (
        "--n asks for 4,194,305 samples, 4 GB; the memory here has 4 GB, so choose a smaller number"
    )
    pages["SC_PHYS_PAGES"] = -1  # the system does not tell
    memory.check_room("--n", 2**60, 1024)

    def fails(name):
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", fails)
    memory.check_room("--n", 2**60, 1024)


def test_freed_memory_is_kept_by_glibc_alone(monkeypatch):
    asked = []
    library = types.SimpleNamespace(mallopt=lambda what, value: asked.append((what, value)) or 1)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "linux")
    assert memory.keep_freed_memory() is True and asked == [(-4, 0), (-1, 2**31 - 1)]
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: types.SimpleNamespace())
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False


def test_the_most_memory_so_far(monkeypatch):
    monkeypatch.setattr("resource.getrusage", lambda who: types.SimpleNamespace(ru_maxrss=5000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: (device.index, 77))
    monkeypatch.setattr(sys, "platform", "linux")
    assert memory.peak(torch.device("cpu")) == 5000 * 1024 and memory.peak(torch.device("cuda:1")) == (1, 77)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.peak(torch.device("cpu")) == 5000
