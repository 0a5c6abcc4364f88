"""The diffusion space: which channels each modality has in z_t, and what a network sees of them at its time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmfast.data.base import Batch
from mmfast.errors import MmfastError, unknown
from mmfast.modalities import Modality, SpaceShape
from mmfast.model_checks import check_parts, check_schedule, check_unknown
from mmfast.ops import Block
from mmfast.process import TARGETS
from mmfast.schedule import Schedule

SPACES = ("own", "shared")


class Space(nn.Module):
    """The modalities' encoders and schedule over one diffusion space, in which every modality has its own time.

    The space is the anchor's channels, followed (space="own") by a block of channels for each other modality that
    leaves a trace in z_t, in which the anchor is zero; with space="shared" every encoding is added into the anchor's
    channels. A given modality is at time 0, an unknown one at time T.

    In own channels a network sees each block at its time: the encoding itself at time 0, and nothing at time T, where
    the block is mere noise. A given modality that leaves no trace is seen in channels next to the anchor's. In shared
    channels a network sees, next to z_t, the encodings of what is given and for each modality a plane that marks
    whether it is given.

    The arguments are those of `mmfast.model.Model`.
    """

    def __init__(
        self, anchor: str, parts: Mapping[str, Modality], schedule: Schedule, space: str, target: str, told: bool
    ) -> None:
        super().__init__()
        if target not in TARGETS:
            raise unknown("loss.target", target, TARGETS)
        if space not in SPACES:
            raise unknown("space", space, SPACES)
        if anchor not in parts:
            raise unknown("anchor", anchor, parts)
        check_parts(anchor, parts)
        self.shape: tuple[int, int, int] = parts[anchor].z0_shape
        self.anchor_name, self.space, self.target, self.told = anchor, space, target, told
        self.parts = nn.ModuleDict(parts)
        self.names = tuple(name for name in parts if name != anchor)
        if set(schedule.names) != set(self.names):
            raise MmfastError(f"schedule has weights for {schedule.names}; it should have them for {self.names}")
        self.schedule = schedule
        check_schedule(schedule, target, space)
        # What leaves a trace in z_t; the rest has nothing to diffuse.
        marks = schedule.W[:, schedule.index(self.names)].abs().amax(0) > 0
        self.traced = tuple(name for name, mark in zip(self.names, marks.tolist(), strict=True) if mark)
        # What fades: its block at time T is mere noise, because W_T is small.
        ends = schedule.W[-1, schedule.index(self.names)].abs() <= 0.1
        self.fading = tuple(name for name, end in zip(self.names, ends.tolist(), strict=True) if end)
        # The weight at time 0 of what is diffused itself, which scales its encoding there.
        first_W = self.schedule.W[0, schedule.index(self.names)].tolist()
        self.at_0 = {n: W for n, W in zip(self.names, first_W, strict=True) if self.part(n).diffused}
        check_unknown({name: self.part(name).spec for name in self.traced if name not in self.fading})
        self.starts: dict[str, int] = {}
        self.channels = self.shape[0]
        for name in self.traced:
            self.starts[name] = self.channels if space == "own" else 0
            self.channels += self.part(name).channels if space == "own" else 0

    @classmethod
    def space_shape(cls, anchor: Modality, space: str) -> SpaceShape:
        """The shape of the other modalities in the diffusion space of this anchor."""
        channels, height, width = anchor.z0_shape
        return SpaceShape(height, width, channels if space == "shared" else None)

    def part(self, name: str) -> Modality:
        """The modality of this name."""
        part = self.parts[name]
        assert isinstance(part, Modality)
        return part

    @property
    def anchor(self) -> Modality:
        """The modality that is diffused itself."""
        return self.part(self.anchor_name)

    @property
    def latent(self) -> bool:
        """Whether z_0 is an autoencoder's latents instead of the anchor's pixels."""
        return getattr(self.anchor, "autoencoder", None) is not None

    @property
    def without_bound(self) -> str:
        """Why there is no bound on the data's likelihood; "" if there is one."""
        if self.latent:
            key = f"modalities.{self.anchor_name}.autoencoder"
            return f"{key}: the bound is for pixels, and the model diffuses latents"
        for name in self.names:
            if self.part(name).diffused:
                return f"modalities.{name}.diffused: the bound needs a head, and there is none"
        return ""

    def anchor_block(self, z: Tensor) -> Tensor:
        """The anchor's channels of a tensor [B, C, H, W] in the space."""
        return z[:, : self.shape[0]]

    def seen_layout(self) -> list[tuple[str, str, int]]:
        """The channels that the backbone sees, in order: the modality, its role, and the index of the channel in it."""
        parts = {name: self.part(name) for name in self.names}
        if self.space == "shared":
            widths = {self.anchor_name: self.shape[0], **{name: part.channels for name, part in parts.items()}}
            blocks = [("", "z", self.channels), *((name, "told", width) for name, width in widths.items())]
            blocks += [(name, "flag", 1) for name in widths]
        else:
            blocks = [(self.anchor_name, "z", self.shape[0])]
            for name, part in parts.items():
                if name in self.traced:
                    blocks.append((name, "z", part.channels))
                elif not part.uniform:
                    blocks.append((name, "beside", self._beside_channels(part)))
        return [(name, what, k) for name, what, width in blocks for k in range(width)]

    def _reveals(self, part: Modality) -> bool:
        """Whether this modality may be seen in the anchor's block: unless it is made from another image."""
        return not part.derived or part.source == self.anchor_name

    def _in_place(self, name: str) -> bool:
        """Whether this modality is seen in the anchor's own pixels."""
        part = self.part(name)
        return name not in self.traced and part.in_place and self._reveals(part)

    @property
    def fades_image(self) -> bool:
        """Whether the image is seen scaled by its time, because pixels at time 0 are seen in it."""
        return self.space == "own" and self.target != "eps" and any(map(self._in_place, self.names))

    def _beside_channels(self, part: Modality) -> int:
        """The number of channels, next to the anchor's, in which a modality that leaves no trace is seen."""
        return part.shown_channels if self._reveals(part) else part.channels

    def reads_untold(self, name: str) -> bool:
        """Whether this modality's head reads features that were never told it, even if it is given."""
        part = self.part(name)
        return self.space == "own" and part.uniform and part.reads == "encoder"

    def in_space(self, name: str, encoding: Tensor) -> Block | Tensor:
        """An encoding as a term of the space: a block of channels, or in shared channels the tensor itself."""
        return Block(encoding, self.starts[name], self.channels) if self.space == "own" else encoding

    def anchor_in_space(self, z0: Tensor) -> Block | Tensor:
        """The anchor's z_0 as a term of the space."""
        return Block(z0, 0, self.channels) if self.space == "own" and self.traced else z0

    def terms(self, encodings: Mapping[str, Tensor]) -> dict[str, Block | Tensor]:
        """The encodings that leave a trace, as terms of the space."""
        return {name: self.in_space(name, encodings[name]) for name in self.traced if name in encodings}

    def complete(self, batch: Batch, seed: int, numbers: Tensor) -> Batch:
        """Add the modalities that are made from others to a batch. numbers: int64 [B], the examples' identity."""
        data, present = dict(batch.data), dict(batch.present)
        for name in self.names:
            part = self.part(name)
            if part.derived and name not in data and part.source in data:
                data[name] = part.derive(data[part.source], seed, numbers)
                if part.source in present:
                    present[name] = present[part.source]
        return Batch(data, present, batch.z0)

    def encode(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """E_i(x_i) of every modality in `data` except the anchor."""
        return {name: self.part(name).encode(data[name]) for name in self.names if name in data}

    def times(self, t: Tensor, given: Tensor) -> Tensor:
        """The modalities' times, int64 [B, 1 + N], the anchor's first: 0 for what is given, else t, [B] or [B, 1 + N].

        given: [B, 1 + N] of 0 and 1. For a network that is never told, all have the time of z_t.
        """
        t = self._each(t)
        return torch.where(given > 0, 0, t) if self.told else t[:, :1].expand_as(t)

    def _each(self, t: Tensor) -> Tensor:
        """Times as [B, 1 + N]; times [B] are those of all modalities."""
        return t if t.dim() == 2 else t[:, None].expand(-1, 1 + len(self.names))

    def tell(self, anchor: Tensor | None, encodings: Mapping[str, Tensor], times: Tensor) -> dict[str, Tensor]:
        """What the network is told, by name: the encodings of what is given, at time 0, and zeros elsewhere.

        anchor: its z_0; times: int64 [B, 1 + N], from `times`.
        """
        found = {} if anchor is None else {self.anchor_name: anchor}
        for k, name in enumerate((self.anchor_name, *self.names)):
            x = anchor if k == 0 else encodings.get(name)
            if x is not None:
                # where and not a product, because what is not given may be missing and hold anything.
                found[name] = torch.where((times[:, k] == 0)[:, None, None, None], x, 0.0)
        return found

    def _with_planes(self, z_t: Tensor, given: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """In shared channels: z_t, the encodings of what is given and a plane for each modality."""
        B, (C, H, W) = len(z_t), self.shape
        widths = {self.anchor_name: C, **{name: self.part(name).channels for name in self.names}}
        blank = z_t.new_zeros(1, 1, 1, 1)
        planes = [told.get(name, blank).expand(B, width, H, W) for name, width in widths.items()]
        return torch.cat((z_t, *planes, given.to(z_t.dtype)[:, :, None, None].expand(-1, -1, H, W)), 1)

    def _seen(self, z_t: Tensor, times: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """In own channels: every block at its time, and next to them what leaves no trace."""
        B, (_, H, W), T = len(z_t), self.shape, self.schedule.T
        image = self.anchor_block(z_t)
        if self.anchor_name in told:
            image = torch.where((times[:, 0] == 0)[:, None, None, None], told[self.anchor_name], image)
        # If some pixels are seen at time 0, the others fade as noise takes over: at T, hidden ones are zero like an
        # unknown block, and restoring has only what is visible. A network that predicts eps needs all of the noise.
        if self.fades_image:
            fade = self.schedule.alpha_bar[times[:, 0]].sqrt().to(image.dtype)
            image = image * fade[:, None, None, None]
        blocks = []
        for k, name in enumerate(self.names, 1):
            part, t = self.part(name), times[:, k, None, None, None]
            encoding = told.get(name)
            if name in self.traced:
                block = z_t.narrow(1, self.starts[name], part.channels)
                if name in self.fading:
                    block = torch.where(t == T, 0.0, block)
                if part.uniform:
                    blocks.append(torch.where(t == 0, 0.0, block))
                else:
                    if encoding is not None:
                        own = encoding * self.at_0[name] if part.diffused else encoding
                        block = torch.where(t == 0, own, block)
                    blocks.append(block)
            elif not part.uniform:
                if encoding is None:
                    blocks.append(image.new_zeros(B, self._beside_channels(part), H, W))
                elif not self._reveals(part):
                    blocks.append(encoding.expand(B, -1, H, W))
                else:
                    image, beside = part.reveal(image, encoding)
                    blocks.append(beside.expand(B, -1, H, W))
        return torch.cat((image, *blocks), 1)
