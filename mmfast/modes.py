"""The mode of a network while it is asked: no dropout, and afterwards each part as it was."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn


@dataclass
class _Asked:
    """How many are asking a network now, and its parts that were in training mode before the first of them."""

    count: int = 0
    training: list[nn.Module] = field(default_factory=list)


_lock = threading.Lock()
_asked: weakref.WeakKeyDictionary[nn.Module, _Asked] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode within; some of it may have been so before, where it is frozen.

    Several threads may be within at once: the last one to leave puts it back.
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
