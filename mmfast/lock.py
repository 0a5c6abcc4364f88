"""A file lock that a process may take repeatedly, and that it holds until it drops it or ends, however it ends."""

from __future__ import annotations

import errno
import os
import threading
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
        self.close = weakref.finalize(self, os.close, handle)


# By process, because a forked one does not inherit its parent's locks, and by file.
_taken: weakref.WeakValueDictionary[tuple[int, int, int], Lock] = weakref.WeakValueDictionary()
_one_thread = threading.Lock()


def _key(file: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), file.st_dev, file.st_ino


def take(path: Path) -> Lock | None:
    """Take the lock, which is held as long as the result is kept; None if the file system or Windows has no locks.

    Raises BlockingIOError if another process has it, and OSError for a link or a file that cannot be opened.
    """
    if fcntl is None:
        return None
    with _one_thread:
        if path.exists() and (lock := _taken.get(_key(os.lstat(path)))):
            return lock
        handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        lock = Lock(handle)
        try:
            # A record lock, which processes that load data do not inherit.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # At once: an error that is kept would keep the handle, whose closing releases a lock taken since then.
            lock.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
            return None  # a file system without locks
        return _taken.setdefault(_key(os.fstat(handle)), lock)
