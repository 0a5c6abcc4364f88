"""Evaluation mode for a network while it is in use, after which each module is as it was."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn


@dataclass
class _Asked:
    """How many callers use a network now, and its modules that were in training mode before the first of them."""

    count: int = 0
    training: list[nn.Module] = field(default_factory=list)


_lock = threading.Lock()
_asked: weakref.WeakKeyDictionary[nn.Module, _Asked] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and afterwards back; frozen modules that were in it before stay in it.

    Several threads may be inside at once; the last one to leave restores the modes.
    """
    with _lock:
        asked = _asked.setdefault(network, _Asked())
        asked.count += 1
        if asked.count == 1:
            asked.training = [module for module in network.modules() if module.training]
            network.eval()
    try:
        yield
    finally:
        with _lock:
            asked.count -= 1
            if asked.count == 0:
                for module in asked.training:
                    module.training = True
                del _asked[network]
