"""What the heads read of a backbone's features: the decoder's pixels, or the encoder's averages or levels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmfast.backbones.features import Features
from mmfast.errors import MmfastError
from mmfast.modalities import Modality


def widths(part: Modality, backbone: nn.Module) -> Any:
    """The channels or numbers of what the head of a modality reads, for `Modality.build_head`.

    Raises MmfastError if it reads levels and the backbone's encoder has none.
    """
    if part.reads == "decoder":
        return backbone.features
    if not part.reads_levels:
        return backbone.reads
    levels = getattr(backbone, "levels", ())
    if not levels:
        raise MmfastError(
            f"modalities.{part.name}.reads is encoder, but the encoder of this backbone has no grid; use decoder, or "
            "another backbone, such as unet"
        )
    return levels


def features(part: Modality, found: Features, cast: bool = False) -> Tensor | list[Tensor]:
    """The features that the head of a modality reads; cast: in float32, from a network of another type."""
    if part.reads == "encoder" and part.reads_levels:
        return [level.float() if cast else level for level in found.levels]
    of = found.before if part.reads == "encoder" else found.pixels
    assert of is not None
    return of.float() if cast else of
