"""A modality that is diffused itself, as the anchor is: the network predicts its encoding; the kind's head is not used.

This is what UniDiffuser does (Bao et al., 2023), except that it predicts x0 instead of the noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmfast.errors import MmfastError
from mmfast.modalities.base import Modality, SpaceShape
from mmfast.modalities.heads import Pooled, head_norm


class Diffused(Modality):
    """A mixin in front of a kind that replaces its head: the network predicts z_0 of its block, the encoding E(x).

    The network sees it only in its own block, which holds W_0 E(x) if it is given, so no head reads features from
    before conditioning.
    """

    diffused = True

    def __init__(self, name: str, spec: Any, space: SpaceShape) -> None:
        super().__init__(name, spec, space)
        where = f"modalities.{name}.diffused is true"
        if self.derived:
            raise MmfastError(f"{where}, but a {self.kind} is made from another modality; leave it out")
        if space.channels is not None or spec.encoder != "fixed" or spec.weight.kind != "carried":
            raise MmfastError(f"{where}; it needs space=own, encoder=fixed and weight.kind=carried")
        if (type(self).from_encoding, type(self).from_z0) == (Modality.from_encoding, Modality.from_z0):
            raise MmfastError(f"{where}, but a {self.kind} has no way back from its encoding (from_encoding)")
        self.uniform, self.reads = False, "decoder"

    def build_head(self, features: int) -> None:
        self.shape = tuple(self.encode(self.blank(self.spec)[None]).shape[1:])
        if self.shape[1:] == (1, 1):  # one encoding for the whole image
            self.out: nn.Module = nn.Sequential(Pooled(features, self.channels), nn.Unflatten(1, self.shape))
        else:
            self.out = nn.Sequential(head_norm(features), nn.Conv2d(features, self.channels, 3, padding=1))

    def head(self, features: Tensor) -> Tensor:
        """The network's estimate of E(x) given z_t: [B, *shape of E]."""
        found: Tensor = self.out(features)
        return found

    def loss(self, prediction: Tensor, x: Tensor) -> Tensor:
        """The mean of |E(x) - E-hat|^2 over what is known of x, [B]: the simple loss with the target x0."""
        error = (self.counted(prediction, x) - self.encode(x)).square().flatten(1).sum(1)
        return error / self.counted(torch.ones_like(prediction), x).flatten(1).sum(1).clamp(min=1)

    def nll(self, prediction: Tensor, x: Tensor) -> Tensor:
        raise MmfastError(f"modalities.{self.name}.diffused is true, so there is no p(x | z_t) of a head")

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        return prediction.float()

    def decode(self, prediction: Tensor) -> Tensor:
        return self.from_encoding(prediction.float())

    def prior(self) -> None:
        """None, because a kind's prior is in terms of its head."""

    def draw(self, prediction: Tensor, normal: Tensor) -> Tensor:
        """The nearest x, because a prediction of z_0 is not a distribution."""
        return self.decode(prediction)


def diffused_itself(kind: type[Modality]) -> type[Modality]:
    """The class of this kind of modality, diffused itself."""
    return type(f"Diffused{kind.__name__}", (Diffused, kind), {})
