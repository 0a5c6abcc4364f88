"""mmfast: multimodal, multitask diffusion on fused kernels.

One model generates images together with their masks, labels and embeddings, and any of them given any other.
"""

from __future__ import annotations

import importlib
from os import PathLike
from typing import TYPE_CHECKING, Any

from mmfast.errors import MmfastError

if TYPE_CHECKING:
    from mmfast import ops
    from mmfast.loaded import Loaded
    from mmfast.schedule import Schedule, Weight, bridge, carried, constant, none, shift

__version__ = "0.1.0"

__all__ = [
    "MmfastError",
    "Schedule",
    "Weight",
    "__version__",
    "bridge",
    "carried",
    "constant",
    "load",
    "none",
    "ops",
    "shift",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import modules that need torch on first use: that takes seconds, and a command handles Ctrl-C before."""
        if name in __all__ and name != "ops":
            found = getattr(importlib.import_module("mmfast.schedule"), name)
        else:
            try:
                found = importlib.import_module(f"mmfast.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"mmfast.{name}":
                    raise
                raise AttributeError(f"module 'mmfast' has no attribute {name!r}") from None
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def load(folder: str | PathLike[str], device: str = "auto", weights: str = "last") -> Loaded:
    """Load a trained run for sampling: `mmfast.load("runs/digits").sample(label=3, n=8)`.

    weights: "last", or "best" for the best on held-out examples. Returns a `mmfast.loaded.Loaded`. Raises MmfastError
    if the folder holds no run, its files are damaged, it has no best weights or the device does not exist.
    """
    from mmfast.loaded import load  # imported here so that programs that only use the ops need not wait for it

    return load(folder, device, weights)
