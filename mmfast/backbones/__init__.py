"""The backbones: one file a kind.

A backbone is a module made by `Backbone(spec, in_channels, size)`; the size is a square's side or (height, width). It
has two halves, an encoder that sees z_t and a decoder that is also told what is given:

    forward(x [B, in_channels, H, W], t int64 [B], beside [B, embedding_width], told [B, embedding_width]) -> Features

`beside` enters every layer as the embedding of t does; `told` enters the decoder alone, so what `Features.before`
holds was read before the network was told. Both may be None. The attributes `features`, `reads` and `embedding_width`
are the widths of the results and of the embedding. A backbone may say with what the anchor's head begins: `out_norm()`,
a module of [B, features, H, W].

A file in this folder is a kind: it defines the options as a dataclass, `Spec`, and the class, `Backbone`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from mmfast.backbones.features import Features
from mmfast.errors import unknown

KINDS = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "features"]
__all__ = ["KINDS", "Features", "kind"]


def kind(name: str) -> ModuleType:
    """The module of this kind of backbone. Raises MmfastError for an unknown one."""
    if name not in KINDS:
        raise unknown("backbone.kind", name, KINDS)
    return importlib.import_module(f"{__name__}.{name}")
