"""The host's memory: keep it when freed, because getting it back from the system can cost more than the arithmetic."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from mmfast.errors import MmfastError

# glibc's numbers of the parameters that mallopt sets.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Make the process keep and reuse freed memory. Returns whether that was possible.

    A training step on a CPU frees and allocates the same hundreds of megabytes each time. By default, glibc maps and
    unmaps every large tensor, and the system clears each page again. The setting affects the whole process, so use it
    only in your own programs. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def peak(device: torch.device) -> int | None:
    """The peak memory of this process so far, in bytes: what torch has allocated on a GPU, else the host's.

    None if the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_room(what: str, count: int, size: int) -> None:
    """Raise MmfastError if the option `what` asks for more samples, of `size` bytes each, than fit in host memory.

    Nothing is checked if the system does not report how much memory it has.
    """
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # AttributeError: Windows
        return
    if count * size > there > 0:
        raise MmfastError(
            f"{what} asks for {count:,} samples, {count * size / 2**30:,.0f} GB; the memory here has "
            f"{there / 2**30:,.0f} GB, so choose a smaller number"
        )
