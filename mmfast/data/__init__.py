"""Data sets: one file per kind, each with `open(spec, modalities, anchor) -> Data`.

A new file in this folder is a new kind. HELPERS lists the modules that the kinds share.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from mmfast.data.base import Batch, Data, Examples
from mmfast.errors import unknown

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
KINDS = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS]


def kind(name: str) -> ModuleType:
    """The module of this kind of data. Raises MmfastError if it is unknown."""
    if name not in KINDS:
        raise unknown("data.kind", name, KINDS)
    return importlib.import_module(f"{__name__}.{name}")


__all__ = ["KINDS", "Batch", "Data", "Examples", "kind"]
