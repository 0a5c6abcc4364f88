"""The backbones: one file a kind.

A backbone is a module made by `Backbone(spec, in_channels, size)` with an attribute `features` and
`forward(x [B, in_channels, H, W], t int64 [B]) -> [B, features, H, W]`. Its file defines the options as a
dataclass, `Spec`, and the class, `Backbone`; a new file in this folder is a new kind.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from mmfast.errors import unknown

KINDS = [module.name for module in pkgutil.iter_modules(__path__)]


def kind(name: str) -> ModuleType:
    """The module of this kind of backbone. Raises MmfastError for an unknown one."""
    if name not in KINDS:
        raise unknown("backbone.kind", name, KINDS)
    return importlib.import_module(f"{__name__}.{name}")
