"""The cache: made once, made again if damaged, and by one process at a time."""

import json
import os
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from mmfast import lock
from mmfast.data import cache
from mmfast.files import save_tensors

CONTEXT = get_context("fork")


def name_of(key):
    return f"thing-{cache.digest(json.dumps(key))[:16]}.safetensors"


def test_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "mmfast" and cache.cache_folder("there") == Path("there")
    made = []

    def make():
        made.append(1)
        return {"x": torch.arange(3) + len(made)}

    def get(**key):
        return cache.kept("", "thing", key, make)["x"].tolist()

    assert get(a=1) == get(a=1) == [1, 2, 3] and get(a=2) == [2, 3, 4] and get(a=1) == [1, 2, 3]
    for file in (tmp_path / "mmfast").iterdir():
        file.write_bytes(file.read_bytes()[:-2])
    assert get(a=1) == [3, 4, 5] and get(a=1) == [3, 4, 5]  # damaged: made again, and kept
    file = tmp_path / "mmfast" / name_of({"a": 1})
    save_tensors(file, {"x": torch.zeros(3)}, {"a": 2})  # of another key
    assert get(a=1) == [4, 5, 6] and get(a=1) == [4, 5, 6]
    monkeypatch.setenv("XDG_CACHE_HOME", str(next((tmp_path / "mmfast").iterdir())))  # a file, no folder
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert get(a=1) == [5, 6, 7]


def get(folder, made):
    """What a process does; `made` is a file that has a line for each time it is made."""

    def make():
        with open(made, "a") as file:
            file.write("made\n")
        while not Path(folder, "go on").exists():
            time.sleep(0.01)
        return {"x": torch.arange(3)}

    assert cache.kept(folder, "thing", {"a": 1}, make)["x"].tolist() == [0, 1, 2]


def in_process(folder, made, log):
    with open(log, "w", buffering=1) as sys.stderr:
        get(folder, made)


def begun(tmp_path, name):
    process = CONTEXT.Process(target=in_process, args=(tmp_path, tmp_path / "made", tmp_path / name), daemon=True)
    process.start()
    return process


def until(holds):
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


def written(file):
    return file.read_text() if file.exists() else ""


@pytest.mark.skipif(lock.fcntl is None, reason="no locks here")
@pytest.mark.parametrize("dies", [False, True])
def test_other_processes_wait_for_the_first(tmp_path, dies):
    """If the first is killed, one of the others makes it, and the last waits for that."""
    first = begun(tmp_path, "first")
    until(lambda: written(tmp_path / "made") == "made\n")
    others = [begun(tmp_path, name) for name in ("second", "third")]
    file = tmp_path / name_of({"a": 1})
    said = f"mmfast: another process is computing {file}; waiting for it\n"
    until(lambda: written(tmp_path / "second") == written(tmp_path / "third") == said)
    if dies:
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: written(tmp_path / "made") == "made\n" * 2)
        time.sleep(0.5)  # the last tries again five times
    (tmp_path / "go on").touch()
    for process in (first, *others):
        process.join(60)
    assert [x.exitcode for x in (first, *others)] == [-signal.SIGKILL if dies else 0, 0, 0]
    assert written(tmp_path / "made") == "made\n" * (2 if dies else 1)
    assert [written(tmp_path / x) for x in ("first", "second", "third")] == ["", said, said]
    names = ["CACHEDIR.TAG", "first", "go on", "made", "second", file.name, "third"]
    assert sorted(x.name for x in tmp_path.iterdir()) == names


@pytest.mark.parametrize("refused", [OSError, PermissionError, None])
def test_without_locks_it_is_made_all_the_same(tmp_path, monkeypatch, refused, capsys):
    def take(path):
        if refused is None:  # a file system without locks
            path.touch()
            return
        raise refused

    monkeypatch.setattr(lock, "take", take)
    (tmp_path / "go on").touch()
    get(tmp_path, tmp_path / "made")
    get(tmp_path, tmp_path / "made")
    assert written(tmp_path / "made") == "made\n" and capsys.readouterr().err == ""
    assert not [*tmp_path.glob("*.lock")]
