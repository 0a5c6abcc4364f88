"""A file lock that a process may take repeatedly, and that it holds until it drops it or ends, however it ends."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from mmfast.files import NO_LINK


class Lock:
    """A locked file. Closing any handle of the file would release the lock, so a process opens it only once."""

    def __init__(self, handle: int) -> None:
        weakref.finalize(self, os.close, handle)


# By process, because a forked one does not inherit its parent's locks, and by file.
_taken: weakref.WeakValueDictionary[tuple[int, int, int], Lock] = weakref.WeakValueDictionary()


def _key(file: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), file.st_dev, file.st_ino


def take(path: Path, wait: bool = False) -> Lock | None:
    """Take the lock, which is held as long as the result is kept; None if the file system or Windows has no locks.

    If another process has it, this raises BlockingIOError or PermissionError, or waits. Raises OSError for a link.
    """
    if fcntl is None:
        return None
    if path.exists() and (lock := _taken.get(_key(os.lstat(path)))):
        return lock
    handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    lock = Lock(handle)
    try:
        # A record lock, which processes that load data do not inherit.
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        raise
    except OSError:  # a file system without locks
        return None
    return _taken.setdefault(_key(os.fstat(handle)), lock)
