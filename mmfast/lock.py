"""A lock on a file that a process has, however often it takes it, until it drops it or ends, however it ends."""

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
    """A locked file. Closing the file again anywhere would end its lock, so this process opens it once."""

    def __init__(self, handle: int) -> None:
        weakref.finalize(self, os.close, handle)


# By process, for one that is forked has no lock of its parent's, and by file.
_taken: weakref.WeakValueDictionary[tuple[int, int, int], Lock] = weakref.WeakValueDictionary()


def _key(file: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), file.st_dev, file.st_ino


def take(path: Path) -> Lock | None:
    """The lock, while what is returned is kept; None where the file system or Windows has none.

    Raises BlockingIOError or PermissionError where another process has it, and OSError for a link.
    """
    if fcntl is None:
        return None
    if path.exists() and (lock := _taken.get(_key(os.lstat(path)))):
        return lock
    handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    lock = Lock(handle)
    try:
        # A record lock: processes that load data do not inherit it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:  # a file system without locks
        return None
    return _taken.setdefault(_key(os.fstat(handle)), lock)
