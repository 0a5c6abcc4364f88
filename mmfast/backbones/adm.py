"""The exact network of ADM (Dhariwal and Nichol, 2021), which the published checkpoints fit (mmfast/warm_start.py).

Its blocks and their order are those of mmfast.backbones.unet, with three differences: the number of attention heads may
be fixed, a class may be added to the time embedding, and the network counts timesteps from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmfast.backbones import unet
from mmfast.backbones.features import Features, plus
from mmfast.errors import MmfastError
from mmfast.options import option, with_default
from mmfast.sizes import Size


@dataclass
class Spec(unet.Spec):
    """ADM's network for ImageNet at 64 x 64."""

    kind: str = "adm"
    channels: int = with_default(unet.Spec, "channels", 192)
    multipliers: list[int] = with_default(unet.Spec, "multipliers", [1, 2, 3, 4])
    blocks: int = with_default(unet.Spec, "blocks", 3)
    attention: list[int] = with_default(unet.Spec, "attention", [32, 16, 8])
    head_channels: int = with_default(unet.Spec, "head_channels", 64)
    patch: int = with_default(unet.Spec, "patch", 1)
    norm: str = with_default(unet.Spec, "norm", "group")
    heads: int = option(0, "heads of every attention layer, whatever its channels; 0: as head_channels says", min=0)
    classes: int = option(
        0, "classes that `forward` takes besides z_t; 0: none, since a label modality conditions the network", min=0
    )


class Backbone(unet.Backbone):
    """The U-Net with ADM's number of attention heads and, if it has classes, their embedding."""

    def __init__(self, spec: Spec, in_channels: int, size: Size) -> None:
        super().__init__(spec, in_channels, size)
        for layer in self.modules():
            if spec.heads and isinstance(layer, unet.Attention):
                if layer.qkv.in_channels % spec.heads:
                    raise MmfastError(
                        f"backbone.heads is {spec.heads}; it should divide the channels of every attention, here "
                        f"{layer.qkv.in_channels}"
                    )
                layer.heads = spec.heads
        self.label = nn.Embedding(spec.classes, 4 * spec.channels) if spec.classes else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        beside: Tensor | None = None,
        told: Tensor | None = None,
        decode: bool = True,
        y: Tensor | None = None,
    ) -> Features:
        """Like every backbone, plus a class y (int64 [B]), which conditions ADM's encoder too.

        Without y the class is unknown. ADM has no embedding for that, so the mean over the classes is used.
        Raises MmfastError if y is not int64 [B], or if the network was built without classes.
        """
        # Step t of 1 .. T here is ADM's t - 1. A given image, at t = 0, counts as one with the least noise.
        emb = plus(self.embedding(x, (t - 1).clamp(min=0)), beside)
        if y is not None:
            self._check(y, t)
        if self.label is not None:
            emb = emb + (self.label.weight.mean(0) if y is None else self.label(y))
        return self.features_of(x, emb, told, decode)

    def _check(self, y: Tensor, t: Tensor) -> None:
        if self.label is None:
            raise MmfastError("y is given, but backbone.classes is 0; leave y out, or build the network with classes")
        if y.shape != t.shape or y.dtype != torch.int64:
            raise MmfastError(f"y is {y.dtype} {list(y.shape)}; it should be int64 {list(t.shape)}, as t")
