"""File locks: one process at a time, whatever becomes of the others' attempts and their errors."""

import errno
import gc
import os
from multiprocessing import get_context

import pytest

from mmfast import lock
from mmfast.errors import MmfastError
from mmfast.run import Run

CONTEXT = get_context("fork")

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="no locks here")


def holds(path, pipe):
    """Take the lock, say so, and hold it until told to drop it."""
    held = lock.take(path)
    pipe.send("held")
    pipe.recv()
    del held
    gc.collect()
    pipe.send("dropped")
    pipe.recv()


def tries(path, pipe):
    try:
        lock.take(path)
        pipe.send("taken")
    except BlockingIOError:
        pipe.send("blocked")


@pytest.fixture
def other(tmp_path):
    """Start `work` in another process; the end of its pipe."""
    started = []

    def start(work):
        mine, its = CONTEXT.Pipe()
        process = CONTEXT.Process(target=work, args=(tmp_path / "lock", its), daemon=True)
        process.start()
        started.append(process)
        assert mine.poll(60)
        return mine

    yield start
    for process in started:
        process.kill()


def test_an_error_that_is_kept_does_not_release_a_later_lock(tmp_path, other):
    """As in a notebook, which keeps the last error until there is another."""
    holder, path = other(holds), tmp_path / "lock"
    assert holder.recv() == "held"
    with pytest.raises(BlockingIOError) as caught:
        lock.take(path)
    holder.send("drop it")
    assert holder.recv() == "dropped"
    held = lock.take(path)
    assert held is not None and lock.take(path) is held
    del caught
    gc.collect()
    assert other(tries).recv() == "blocked"
    del held
    gc.collect()
    assert other(tries).recv() == "taken"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_a_lock_that_another_process_has(tmp_path, monkeypatch, number):
    """By either of the two errors that POSIX allows."""

    def lockf(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "lockf", lockf)
    with pytest.raises(BlockingIOError):
        lock.take(tmp_path / "lock")
    with pytest.raises(MmfastError, match="is being trained by another process; wait for it, or stop it"):
        Run(tmp_path)._take_lock()
    monkeypatch.setattr(lock.fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    assert lock.take(tmp_path / "lock") is None


def test_a_lock_that_may_not_be_opened_is_not_another_process(tmp_path, monkeypatch):
    """As another user's in a folder of a group."""
    run = Run(tmp_path)

    def refuses(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock.os, "open", refuses)
    with pytest.raises(MmfastError, match="cannot be written to: Permission denied; make room or permit it"):
        run.guard(run._take_lock)
