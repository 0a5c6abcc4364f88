"""mmfast: multimodal, multitask diffusion on fused kernels.

One model generates images together with their masks, labels and embeddings, any of them given any other.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from mmfast import ops
from mmfast.errors import MmfastError
from mmfast.schedule import Schedule, Weight, bridge, carried, constant, none, shift

if TYPE_CHECKING:
    from mmfast.loaded import Loaded

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


def load(folder: str | PathLike[str], device: str = "auto") -> Loaded:
    """A trained run, ready to sample: `mmfast.load("runs/digits").sample(label=3, n=8)` (`mmfast.loaded.Loaded`)."""
    from mmfast.loaded import load  # what a program of ops alone need not wait for

    return load(folder, device)
