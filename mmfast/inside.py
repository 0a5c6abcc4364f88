"""Modalities that are given in part: which values of x are known, and their positions in the diffusion space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfast.errors import MmfastError, unknown
from mmfast.model import Model


@dataclass(frozen=True)
class Inside:
    """A modality that is given in part.

    x, known: [B, ...]. encoding: E(x), or z_0 for the anchor; where: the positions at which it is known. Both broadcast
    to [B, C, H, W].
    """

    x: Tensor
    known: Tensor
    encoding: Tensor
    where: Tensor

    @classmethod
    def of(cls, model: Model, name: str, x: Tensor, known: Tensor) -> Inside:
        part = model.part(name)
        encoding = part.to_z0(x) if part.bounded and name == model.anchor_name else part.encode_part(x)
        return cls(x, known, encoding, part.known_in_space(known))

    def put_in(self, encoding: Tensor) -> Tensor:
        """An encoding, or z_0, with the true values put in where they are known."""
        return torch.where(self.where, self.encoding.to(encoding.dtype), encoding)

    def put_in_x(self, x: Tensor) -> Tensor:
        """An x with the true values put in where they are known."""
        return torch.where(self.known, self.x, x)


def check_known(model: Model, given: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is known of modalities given in part, bool [1 or count, ...]. Raises MmfastError if that is invalid."""
    found = {}
    for name, there in known.items():
        if name not in given:
            raise unknown("known's modality", name, given)
        shape = given[name].shape
        shapes = (shape, shape[1:], (1, *shape[1:]))
        if not isinstance(there, Tensor) or there.dtype != torch.bool or there.shape not in shapes:
            what = f"{there.dtype} {list(there.shape)}" if isinstance(there, Tensor) else f"a {type(there).__name__}"
            raise MmfastError(f"known[{name!r}] is {what}; it should be bool {list(shape)}, as what is given")
        if name == model.anchor_name and model.latent:
            raise MmfastError(f"known has {name}, which is diffused as an autoencoder's latents; give all of it")
        if model.part(name).in_place:
            raise MmfastError(
                f"known has {name}, whose hidden parts are those that are transparent; give a picture that is "
                "transparent there instead"
            )
        if name in model.names and name not in model.traced:
            raise MmfastError(f"{name} is given in part, but leaves no trace in z_t (weight none); give all of it")
        found[name] = there if there.dim() == len(shape) else there[None]
        model.part(name).known_in_space(found[name][:1])
    return found
