"""The model: one backbone over the diffusion space, and a head out of it for every modality."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmfast import head_inputs
from mmfast.backbones.features import Features, timestep_embedding
from mmfast.errors import MmfastError
from mmfast.modalities import Modality
from mmfast.modalities.base import head_norm
from mmfast.process import TARGETS
from mmfast.schedule import Schedule
from mmfast.sizes import plain
from mmfast.space import Space

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


class Model(Space):
    """One backbone over a diffusion space (`mmfast.space`), and a head for every modality.

    A modality that is the same at every pixel, such as a label, is told to the decoder alone, so that the encoder reads
    before it is told. A cast (`.half()`, `.double()`) affects the backbone and the anchor's head; the tables, the
    encoders and the other heads stay as they are.

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
        super().__init__(anchor, parts, schedule, space, target, told)
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
        alone = (times == self.schedule.T).sum(1) == len(self.names)  # all but one are at T
        for name in self.names:
            part = self.part(name)
            if part.restores and part.reads == "encoder" and self._in_place(name) and name in told:
                at = alone & (told[name][:, -1] > 0).flatten(1).any(1)  # what is not given is told as zeros
                # The prediction from which the head's z_0 follows.
                said = (prediction.heads[name] - of_z * self.anchor_block(z_t)) / of_prediction
                anchor = torch.where(at[:, None, None, None], said.to(anchor.dtype), anchor)
        return anchor

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
