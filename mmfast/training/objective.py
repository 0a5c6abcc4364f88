"""The training loss: one loss for all modalities, whichever are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfast import ops
from mmfast.config import Config
from mmfast.data import Batch
from mmfast.model import Model
from mmfast.streams import TRAIN_NOISE
from mmfast.training.examples import constants, low_noise, roles, timesteps

# (model, batch, the examples' numbers in the run, config) -> the parts of a loss by name, scalars.
Losses = Callable[[Model, Batch, Tensor, Config], dict[str, Tensor]]


def losses(model: Model, batch: Batch, numbers: Tensor, config: Config) -> dict[str, Tensor]:
    """The parts of the training loss, each a mean over the batch: |target - prediction|^2 and lambda_i l_i.

    An example has a time t, uniform except for the shares that `given_at_T` and `train.low_noise` move. Each modality
    has time 0 if it is given, T if it is unknown, else t or a time of its own (`roles`). Missing modalities never
    count. A given modality counts only if its head reads unconditioned features, or restores more than is given. With
    told=false nothing is given. A head that can read its modality off the anchor alone, because the modality is unknown
    or the encoder does not see it, is weighted by the anchor's alpha_bar, so that times at which little can be read do
    not dominate. Diffused and restored modalities are not weighted so.
    With `train.clean_pass`, the heads that read the encoder also read the anchor without noise, in a pass of their own.
    batch: on the model's device; numbers: int64 [B], the examples' numbers in the run.
    """
    batch = model.complete(batch, config.seed, numbers)
    data, present = batch.filled(), _present(model, batch, numbers)
    z0 = model.anchor.to_z0(data[model.anchor_name]) if batch.z0 is None else batch.z0
    known = _Known(data, z0, model.encode(data), present if batch.present else None)
    parts = _parts(model, known, numbers, config, _times(model, numbers, config, present))
    if config.train.clean_pass and any(model.part(name).reads == "encoder" for name in model.names):
        clean = _parts(model, known, numbers, config, _clean(model, present), decode=False)
        parts |= {name: parts[name] + config.train.clean_pass * x for name, x in clean.items()}
    return parts


@dataclass(frozen=True)
class _Known:
    """The batch that the loss is computed from. present: [B, 1 + N], None if nothing is missing."""

    data: dict[str, Tensor]
    z0: Tensor
    encodings: dict[str, Tensor]
    present: Tensor | None


def _parts(
    model: Model, known: _Known, numbers: Tensor, config: Config, drawn: Drawn, decode: bool = True
) -> dict[str, Tensor]:
    """The parts of the loss at these times. decode=False: those of the heads that read the encoder, at less cost."""
    terms = model.terms(known.encodings)
    columns = [1 + model.names.index(name) for name in terms]
    # The noise is never written to memory: the loss regenerates it from its identity.
    noise: dict[str, Any] = {"seed": config.seed, "sample_ids": numbers, "stream": TRAIN_NOISE}
    z_t = ops.q_sample(
        model.anchor_in_space(known.z0),
        terms,
        drawn.of_z(model),
        model.schedule,
        present=None if known.present is None else _columns(known.present, columns),
        return_noise=False,
        **noise,
    )
    times = model.times(drawn.times, drawn.given)
    with torch.autocast(z_t.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        prediction = model(z_t, times, model.tell(known.z0, known.encodings, times), decode)
    present = torch.ones_like(drawn.given) if known.present is None else known.present
    wanted = (1 - drawn.given) * present
    parts = {}
    if prediction.anchor is not None:
        parts[model.anchor_name] = ops.diffusion_loss(
            prediction.anchor,
            known.z0,
            drawn.t,
            model.schedule,
            target=model.target,
            min_snr_gamma=config.loss.min_snr_gamma,
            sample_weight=wanted[:, 0] * drawn.weight * model.anchor.spec.loss_weight,
            **noise,
        )
    readable = model.schedule.alpha_bar[drawn.t].float()
    readable = torch.where(drawn.given[:, 0] > 0, 1.0, readable)
    for name, output in prediction.heads.items():
        part, k = model.part(name), 1 + model.names.index(name)
        if part.restores:
            counts = present[:, k] * (1 - drawn.given[:, [model.anchor_name, *model.names].index(part.source)])
        elif part.diffused:
            counts = wanted[:, k]
        elif model.reads_untold(name):
            at_ends = (drawn.given + drawn.unknown)[:, k] > 0
            counts = present[:, k] * (torch.where(at_ends, readable, 1.0) if name in model.traced else readable)
        else:
            counts = wanted[:, k] * torch.where(drawn.unknown[:, k] > 0, readable, 1.0)
        parts[name] = (counts * part.spec.loss_weight * part.loss(output.float(), known.data[name])).mean()
    return parts


@dataclass(frozen=True)
class Drawn:
    """The times and roles of a batch: t [B] of the anchor, and times [B, 1 + N], in which given ones are not yet 0."""

    t: Tensor
    times: Tensor
    given: Tensor
    unknown: Tensor
    weight: Tensor  # of the anchor's loss, [B]
    diagonal: bool  # whether no modality can have a time of its own

    def of_z(self, model: Model) -> Tensor:
        """The times of z_t's blocks: [B] if all share one. Given and unknown modalities are not seen in z_t."""
        if self.diagonal:
            return self.t
        return _columns(self.times, [0, *(1 + model.names.index(name) for name in model.traced)])


def _columns(x: Tensor, columns: list[int]) -> Tensor:
    """x[:, columns], without copying an index from the host, which a GPU would wait for."""
    return torch.stack([x[:, k] for k in columns], 1) if columns else x[:, :0]


def _present(model: Model, batch: Batch, numbers: Tensor) -> Tensor:
    """[B, 1 + N], 1 where an example has the modality."""
    everything = torch.ones(len(numbers), device=numbers.device)
    there = [batch.present.get(name) for name in (model.anchor_name, *model.names)]
    return torch.stack([everything if p is None else p.float() for p in there], 1)


def _times(model: Model, numbers: Tensor, config: Config, present: Tensor) -> Drawn:
    """The times and roles of the examples, functions of (seed, number)."""
    specs = [model.part(name).spec for name in (model.anchor_name, *model.names)]
    usual, low, T = config.train.given_probability, config.train.low_noise, model.schedule.T
    given = [usual if spec.given_probability is None else spec.given_probability for spec in specs]
    shares = [(p, spec.unknown_probability, spec.own_time_probability) for p, spec in zip(given, specs, strict=True)]
    if not model.told:  # the network sees z_t only: nothing is given, and there is one time
        shares = [(0.0, 0.0, 0.0)] * len(shares)
    drawn = roles(config.seed, numbers, shares, present, T)
    at_T = (drawn.given * constants(tuple(spec.given_at_T or 0.0 for spec in specs), numbers.device)).amax(1)
    t = timesteps(config.seed, numbers, T, at_T)
    weight = torch.ones_like(present[:, 0])
    if low.share:
        # Only where nothing but the anchor is seen, as when a modality is read off it.
        alone = drawn.given[:, 0] == 0
        for k, name in enumerate(model.names, 1):
            if name in model.traced or not model.part(name).uniform:
                alone = alone & (drawn.unknown[:, k] == 1)
        few = low_noise(config.seed, numbers, max(1, round(low.until * T)), low.share) * alone
        t = torch.where(few > 0, few, t)
        weight = torch.where(few > 0, low.weight, weight)
    times = torch.where(drawn.own > 0, drawn.own_times, t[:, None])
    times = torch.where(drawn.unknown > 0, T, times)
    own = model.told and any(model.part(name).spec.own_time_probability for name in model.traced)
    return Drawn(t, times, drawn.given, drawn.unknown, weight, diagonal=not own)


def _clean(model: Model, present: Tensor) -> Drawn:
    """The anchor is given, and everything else is unknown, at T."""
    given = torch.zeros_like(present)
    given[:, 0] = present[:, 0]
    t = torch.full_like(present[:, 0], model.schedule.T, dtype=torch.int64)
    times = t[:, None].expand_as(present)
    return Drawn(t, times, given, 1 - given, torch.ones_like(present[:, 0]), diagonal=True)
