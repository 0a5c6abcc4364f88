"""The backbones: one file per kind.

A backbone is a module created by `Backbone(spec, in_channels, size)`; the size is a square's side or (height, width).
It has two halves, an encoder that sees z_t and a decoder that is also conditioned on what is given:

    forward(x [B, in_channels, H, W], t int64 [B], beside [B, embedding_width], told [B, embedding_width], decode=True)
        -> Features

`beside` enters every layer like the embedding of t. `told` enters only the decoder, so `Features.before` does not
depend on it. Both may be None. With decode=False only the encoder computes, and `Features.pixels` is None. The
attributes `features`, `reads` and `embedding_width` are the widths of the results and of the embedding. An encoder with
a grid also has `levels`, the channels of `Features.levels`, which heads of pictures can read. A backbone may define how
the anchor's head begins by a method `out_norm()`, which returns a module on [B, features, H, W].

Each file in this folder is a kind. It defines its options, the dataclass `Spec`, and the class `Backbone`. A module
that an installed package lists under the entry points "mmfast.backbones" is a kind too.
"""

from __future__ import annotations

from types import ModuleType

from mmfast.backbones.features import Features
from mmfast.kinds import ModuleKinds

KINDS = ModuleKinds(__name__, __path__, "backbone.kind", needs=("Spec", "Backbone"), beside=("features",))
__all__ = ["KINDS", "Features", "kind"]


def kind(name: str) -> ModuleType:
    """The module of this kind of backbone. Raises MmfastError if it is unknown or cannot be imported."""
    return KINDS.module(name)
