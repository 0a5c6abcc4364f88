"""Data sets: one file per kind, each with `open(spec, modalities, anchor) -> Data`.

A new file in this folder is a new kind. HELPERS lists the modules that the kinds share. A module that an installed
package lists under the entry points "mmfast.data" is a new kind too.
"""

from __future__ import annotations

from types import ModuleType

from mmfast.data.base import Batch, Data, Examples
from mmfast.kinds import ModuleKinds

HELPERS = (
    "base",
    "cache",
    "class_folders",
    "codings",
    "decoded",
    "example_files",
    "found",
    "items",
    "judge",
    "labelled",
    "listing",
    "metadata",
    "precompute",
    "rows",
    "skipping",
    "sprite_pixels",
)
KINDS = ModuleKinds(__name__, __path__, "data.kind", needs=("Spec", "open"), beside=HELPERS)


def kind(name: str) -> ModuleType:
    """The module of this kind of data. Raises MmfastError if it is unknown or cannot be imported."""
    return KINDS.module(name)


__all__ = ["KINDS", "Batch", "Data", "Examples", "kind"]
