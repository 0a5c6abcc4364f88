"""The host's memory: keep what was freed, where asking the system for it again costs more than the arithmetic."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from mmfast.errors import MmfastError

# glibc's names for what mallopt sets.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the process keep freed memory and use it again: no page is asked for twice. Whether it could be set.

    A training step on a CPU frees and allocates the same hundreds of megabytes each time; glibc otherwise maps and
    unmaps every large tensor, and the system clears each page anew. Only for programs of one's own: it holds for the
    whole process. Elsewhere than with glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def peak(device: torch.device) -> int | None:
    """The most memory in bytes that this process has had so far: of a GPU that torch took, else the host's.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_room(what: str, count: int, size: int) -> None:
    """Raise MmfastError where an option `what` asks for more samples, of `size` bytes each, than the host holds.

    Nothing is checked where the system does not tell how much memory it has.
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
