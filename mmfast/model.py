"""The model: encoders into the diffusion space, one backbone, and a head out of it for every modality."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmfast import head_inputs
from mmfast.backbones.features import Features, timestep_embedding
from mmfast.data.base import Batch
from mmfast.errors import MmfastError, unknown
from mmfast.modalities import Modality, SpaceShape
from mmfast.modalities.base import head_norm
from mmfast.model_checks import check_parts, check_schedule, check_unknown
from mmfast.ops import Block
from mmfast.process import TARGETS
from mmfast.schedule import Schedule
from mmfast.sizes import plain

SPACES = ("own", "shared")
TIME_WIDTH = 128  # of the sinusoids of a modality's time


@dataclass
class Prediction:
    """The network's predictions from z_t, for the anchor (eps, x0 or v) and every other modality (its head's output).

    features: the backbone's, from which all predictions are made. Without the decoder, `anchor` is None, and there are
    only the heads that were asked for.
    """

    anchor: Tensor | None
    heads: dict[str, Tensor]
    features: Features | None = None


class Model(nn.Module):
    """Encoders, backbone and heads over one diffusion space, in which every modality has its own time.

    The space is the anchor's channels, followed (space="own") by a block of channels for each other modality that
    leaves a trace in z_t, in which the anchor is zero; with space="shared" every encoding is added into the anchor's
    channels. A given modality is at time 0, an unknown one at time T. A cast (`.half()`, `.double()`) affects the
    backbone and the anchor's head; the tables, the encoders and the other heads stay as they are.

    In own channels the network sees each block at its time: the encoding itself at time 0, and nothing at time T, where
    the block is mere noise. A given modality that leaves no trace is seen in channels next to the anchor's. One that is
    the same at every pixel, such as a label, is told to the decoder alone, so that the encoder reads before it is told.
    In shared channels the network sees, next to z_t, the encodings of what is given and for each modality a plane that
    marks whether it is given.

    Args:
        anchor: the name of the modality that is diffused itself: an image, or a vector, which is one pixel.
        parts: every modality by name, including the anchor, before `build_head` is called.
        schedule: with a weight for every modality except the anchor.
        backbone: (in_channels, size) -> a module as described in mmfast.backbones; the size is a number for a square,
            else [height, width].
        space: "own" or "shared".
        target: what the network predicts for the anchor: "eps", "x0" or "v".
        told: whether the network is told what is given, or sees z_t alone.
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
        if not callable(backbone):
            raise MmfastError("backbone should be a function of (in_channels, size) that makes the network")
        self.backbone = backbone(len(self.seen_layout()), plain(self.shape[1:]))
        features, width = self.backbone.features, self.backbone.embedding_width
        pixels = self.shape[1] * self.shape[2]
        own_norm = getattr(self.backbone, "out_norm", lambda: head_norm(features, pixels))
        self.norm, self.out = own_norm(), nn.Conv2d(features, self.shape[0], 3, padding=1)
        nn.init.zeros_(self.out.weight)
        for name in self.names:
            part = self.part(name)
            part.build_head(head_inputs.widths(part, self.backbone))
        self.time_of, self.tell_decoder = nn.ModuleDict(), nn.ModuleDict()
        for name in self.names if space == "own" else ():
            part = self.part(name)
            if name in self.traced or not (part.uniform or self._in_place(name)):
                last = nn.Linear(width, width)
                self.time_of[name] = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU(), last)
                nn.init.zeros_(last.weight)  # at first the times have no effect
                nn.init.zeros_(last.bias)
            if part.uniform:
                # Of unit size from the start, like a class embedding; one input marks whether it is told.
                layer = nn.Linear(part.channels + 1, width, bias=False)
                self.tell_decoder[name] = layer
                nn.init.normal_(layer.weight, std=part.channels**-0.5)

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

    def forward(
        self, z_t: Tensor, times: Tensor, told: Mapping[str, Tensor], only_heads: Collection[str] | None = None
    ) -> Prediction:
        """z_t [B, C, H, W], times int64 [B, 1 + N] (or [B] for all), `told` from `tell` -> the predictions.

        only_heads: names of modalities whose heads read the encoder, to compute these alone, without the decoder.
        """
        decode = only_heads is None
        times = self._each(times)
        given = times == 0
        # In a model that was cast, for instance by .half(), only the network computes in that type.
        dtype = self.out.weight.dtype
        z_t, told = z_t.to(dtype), {name: x.to(dtype) for name, x in told.items()}
        how = {} if decode else {"decode": False}  # a backbone of your own needs it only for such passes
        if self.space == "shared":
            # The time of z_t, which is not the anchor's if that is given.
            found = self.backbone(self._with_planes(z_t, given, told), times.amax(1), **how)
        elif self.names:
            x = self._seen(z_t, times, told)
            found = self.backbone(x, times[:, 0], self._beside(x, times), self._told(x, given, told), **how)
        else:
            found = self.backbone(z_t, times[:, 0], **how)
        cast = dtype != torch.float32
        parts = [self.part(name) for name in (self.names if only_heads is None else only_heads)]
        heads = {part.name: part.head(head_inputs.features(part, found, cast)) for part in parts}
        return Prediction(self.out(self.norm(found.pixels)) if decode else None, heads, found)

    def restored(self, prediction: Prediction, z_t: Tensor, times: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """The prediction of the anchor that sampling uses, from `forward` and its arguments.

        At time T, if some visible pixels of the anchor are all that is given, and the head that restores the rest reads
        the encoder, it is that head's answer: it learnt to restore from them alone (`train.clean_pass`).
        """
        anchor = prediction.anchor
        assert anchor is not None
        if not self.fades_image:
            return anchor
        times = self._each(times)
        of_z, of_prediction = TARGETS[self.target].x0(self.schedule.alpha_bar[-1])
        for k, name in enumerate(self.names, 1):
            part = self.part(name)
            if part.restores and part.reads == "encoder" and self._in_place(name) and name in told:
                alone = (times == self.schedule.T).sum(1) == len(self.names)  # all but one are at T
                at = alone & (times[:, k] == 0) & (told[name][:, -1] > 0).flatten(1).any(1)
                # The prediction from which the head's z_0 follows.
                said = (prediction.heads[name] - of_z * self.anchor_block(z_t)) / of_prediction
                anchor = torch.where(at[:, None, None, None], said.to(anchor.dtype), anchor)
        return anchor

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

    def _beside(self, x: Tensor, times: Tensor) -> Tensor:
        """The embedding of the other modalities' times; what only the decoder is told stays hidden from the encoder."""
        total = x.new_zeros(len(x), self.backbone.embedding_width)
        for k, name in enumerate(self.names, 1):
            if name in self.time_of:
                t = times[:, k]
                t = torch.where(t == 0, self.schedule.T, t) if self.part(name).uniform else t
                total = total + self.time_of[name](timestep_embedding(t, TIME_WIDTH).to(x.dtype))
        return total

    def _told(self, x: Tensor, given: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """What the decoder is told about modalities that are the same at every pixel, as an embedding."""
        total = x.new_zeros(len(x), self.backbone.embedding_width)
        for k, name in enumerate(self.names, 1):
            if name in self.tell_decoder and name in told:
                code = torch.cat((told[name][:, :, 0, 0], given[:, k, None].to(told[name].dtype)), 1)
                total = total + self.tell_decoder[name](code)
        return total
