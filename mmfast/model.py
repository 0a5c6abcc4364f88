"""The model: encoders into the diffusion space, one backbone, and a head out of it for every modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmfast.data.base import Batch
from mmfast.errors import MmfastError, unknown
from mmfast.modalities import Modality, SpaceShape
from mmfast.modalities.base import head_norm
from mmfast.modalities.image import Image
from mmfast.ops import Block
from mmfast.process import TARGETS
from mmfast.schedule import Schedule

SPACES = ("own", "shared")


@dataclass
class Prediction:
    """What the network says of z_t: of the anchor (eps, x0 or v) and of every other modality (its head's output)."""

    anchor: Tensor
    heads: dict[str, Tensor]


class Model(nn.Module):
    """Encoders, backbone and heads over one diffusion space.

    The space is the anchor's channels, followed (space="own") by a block of channels for each other modality,
    in which the anchor is zero; with space="shared" every encoding is added into the anchor's channels. The
    backbone sees z_t, and a plane for each modality that says whether it is told. In own channels the encodings of
    what it is told stand in the place of their noised view in z_t: of what is known that says nothing more, and
    the same weights read both. In shared channels they come beside z_t.

    Args:
        anchor: the name of the modality that is diffused itself, an image.
        parts: every modality by name, the anchor too; `build_head` not yet called.
        schedule: with a weight for every modality but the anchor.
        backbone: (in_channels, size) -> a module as mmfast.backbones describes.
        space: "own" or "shared".
        target: what the network predicts of the anchor: "eps", "x0" or "v".
        told: whether the network is told what is given, or has z_t alone.
    """

    def __init__(
        self,
        anchor: str,
        parts: Mapping[str, Modality],
        schedule: Schedule,
        backbone: object,
        space: str = "own",
        target: str = "eps",
        told: bool = True,
    ) -> None:
        super().__init__()
        if target not in TARGETS:
            raise unknown("loss.target", target, TARGETS)
        if space not in SPACES:
            raise unknown("space", space, SPACES)
        if anchor not in parts:
            raise unknown("anchor", anchor, parts)
        image = parts[anchor]
        if not isinstance(image, Image):
            raise MmfastError(f"anchor is {anchor!r}, a {image.kind}; it should be an image")
        for name, part in parts.items():
            size = getattr(part.spec, "size", image.spec.size)
            if size != image.spec.size:
                raise MmfastError(f"modalities.{name}.size is {size}; it should be {anchor}'s, {image.spec.size}")
            source = parts.get(part.source)
            if part.derived and (not isinstance(source, Image) or source.shape[0] != part.spec.channels):
                raise MmfastError(
                    f"modalities.{name}.of is {part.source!r}; it should be an image with {part.spec.channels} channels"
                )
        self.anchor_name, self.space, self.target, self.told = anchor, space, target, told
        self.parts = nn.ModuleDict(parts)
        self.names = tuple(name for name in parts if name != anchor)
        if set(schedule.names) != set(self.names):
            raise MmfastError(f"schedule has weights for {schedule.names}; it should have them for {self.names}")
        self.schedule = schedule
        self._check_schedule()
        self.shape: tuple[int, int, int] = image.shape
        self.starts: dict[str, int] = {}
        self.channels = self.shape[0]
        for name in self.names:
            self.starts[name] = self.channels if space == "own" else 0
            self.channels += self.part(name).channels if space == "own" else 0
        self.widths = (self.shape[0], *(self.part(name).channels for name in self.names))
        self.told_channels = sum(self.widths) + len(parts)
        if not callable(backbone):
            raise MmfastError("backbone should be a function of (in_channels, size) that makes the network")
        beside = len(parts) if space == "own" else self.told_channels
        self.backbone = backbone(self.channels + beside, self.shape[1])
        features = self.backbone.features
        self.norm, self.out = head_norm(features), nn.Conv2d(features, self.shape[0], 3, padding=1)
        nn.init.zeros_(self.out.weight)
        for name in self.names:
            self.part(name).build_head(features)

    def _check_schedule(self) -> None:
        if self.target == "eps" and float(self.schedule.alpha_bar[-1]) == 0:
            raise MmfastError("loss.target is 'eps', but alpha_bar_T = 0: z_0 cannot be read from it; use x0 or v")
        for name, W in zip(self.schedule.names, self.schedule.W[0], strict=True):
            if self.space == "shared" and float(W) != 0:
                raise MmfastError(
                    f"modalities.{name}.weight gives W_0 = {float(W):.3g}; in shared channels W_0 should be 0: use "
                    "bridge, or space=own"
                )

    @classmethod
    def space_shape(cls, image: Image, space: str) -> SpaceShape:
        """The shape in the diffusion space of the modalities beside this anchor."""
        channels, height, width = image.shape
        return SpaceShape(height, width, channels if space == "shared" else None)

    def part(self, name: str) -> Modality:
        """The modality of this name."""
        part = self.parts[name]
        assert isinstance(part, Modality)
        return part

    def anchor_block(self, z: Tensor) -> Tensor:
        """The anchor's channels of a tensor of the space [B, C, H, W]."""
        return z[:, : self.shape[0]]

    def in_space(self, name: str, encoding: Tensor) -> Block | Tensor:
        """An encoding as a term of the space: a block of channels, or the tensor itself in shared ones."""
        return Block(encoding, self.starts[name], self.channels) if self.space == "own" else encoding

    def anchor_in_space(self, x: Tensor) -> Block | Tensor:
        """The anchor as z_0."""
        return Block(x, 0, self.channels) if self.space == "own" and self.names else x

    def complete(self, batch: Batch, seed: int, numbers: Tensor) -> Batch:
        """The batch with the modalities that are made from others; numbers: int64 [B], the examples' identity."""
        data, present = dict(batch.data), dict(batch.present)
        for name in self.names:
            part = self.part(name)
            if part.derived and name not in data:
                data[name] = part.derive(data[part.source], seed, numbers)
                if part.source in present:
                    present[name] = present[part.source]
        return Batch(data, present)

    def encode(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """E_i(x_i) of every modality in `data` but the anchor."""
        return {name: self.part(name).encode(data[name]) for name in self.names if name in data}

    def tell(self, anchor: Tensor | None, encodings: Mapping[str, Tensor], given: Tensor) -> Tensor:
        """What the network is told: the encodings of the given modalities (zero elsewhere) and a plane for each.

        given: [B, 1 + N] of 0 and 1, the anchor first and the rest in the order of `names`.
        Returns [B, told_channels, H, W]: the encodings' channels, then 1 + N planes.
        """
        B, (_, H, W) = len(given), self.shape
        given = given if self.told else torch.zeros_like(given)
        flags = given.to(self.out.weight.dtype)[:, :, None, None]
        planes = []
        for k, name in enumerate((self.anchor_name, *self.names)):
            encoding = anchor if k == 0 else encodings.get(name)
            if encoding is None:
                planes.append(flags.new_zeros(B, self.widths[k], H, W))
            else:
                # where, not a product: what is not given may be missing, and hold anything.
                planes.append(torch.where(flags[:, k : k + 1] > 0, encoding, 0.0).expand(B, self.widths[k], H, W))
        return torch.cat([*planes, flags.expand(B, -1, H, W)], 1)

    def forward(self, z_t: Tensor, t: Tensor, told: Tensor) -> Prediction:
        """z_t: [B, C, H, W]; t: int64 [B]; told: `tell`'s -> predictions for the anchor and every modality."""
        features = self.backbone(self._seen(z_t, told), t)
        heads = {name: self.part(name).head(features) for name in self.names}
        return Prediction(self.out(self.norm(features)), heads)

    def _seen(self, z_t: Tensor, told: Tensor) -> Tensor:
        """What the backbone sees: z_t and what it is told, [B, in_channels, H, W]."""
        if self.space == "shared":
            return torch.cat((z_t, told), 1)
        encodings, flags = told.split((self.channels, len(self.widths)), 1)
        planes = zip(flags.split(1, 1), self.widths, strict=True)
        given = torch.cat([flag.expand(-1, width, -1, -1) for flag, width in planes], 1) > 0
        return torch.cat((torch.where(given, encodings, z_t.to(encodings.dtype)), flags), 1)
