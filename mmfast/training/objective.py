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
from mmfast.errors import MmfastError
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
    A head that restores the anchor has a pass in which it reads the visible parts alone.
    batch: on the model's device; numbers: int64 [B], the examples' numbers in the run.
    """
    batch = model.complete(batch, config.seed, numbers)
    data, present = batch.filled(), _present(model, batch, numbers)
    anchor = model.anchor.to_z0(data[model.anchor_name]) if batch.z0 is None else batch.z0
    encodings = model.encode(data)
    terms = model.terms(encodings)
    columns = [1 + model.names.index(name) for name in terms]
    # The noise is never written to memory: the loss regenerates it from its identity.
    noise: dict[str, Any] = {"seed": config.seed, "sample_ids": numbers, "stream": TRAIN_NOISE}
    passes = [_times(model, numbers, config, present)]
    if config.train.clean_pass:
        passes += _clean(model, present)
    parts: dict[str, Tensor] = {}
    for drawn in passes:
        z_t = ops.q_sample(
            model.anchor_in_space(anchor),
            terms,
            drawn.of_z(model),
            model.schedule,
            present=_columns(present, columns) if batch.present else None,
            return_noise=False,
            **noise,
        )
        times = model.times(drawn.times, drawn.given)
        with torch.autocast(anchor.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            prediction = model(z_t, times, model.tell(anchor, encodings, times), only_heads=drawn.heads)
        if drawn.heads is None:
            parts[model.anchor_name] = ops.diffusion_loss(
                prediction.anchor,
                anchor,
                drawn.t,
                model.schedule,
                target=model.target,
                min_snr_gamma=config.loss.min_snr_gamma,
                sample_weight=((1 - drawn.given) * present)[:, 0] * drawn.weight * model.anchor.spec.loss_weight,
                **noise,
            )
        for name, output in prediction.heads.items():
            part = model.part(name)
            counts = _counts(model, name, drawn, present) * part.spec.loss_weight
            found = (counts * part.loss(output.float(), data[name])).mean()
            parts[name] = found if drawn.heads is None else parts[name] + config.train.clean_pass * found
    return parts


def _counts(model: Model, name: str, drawn: Drawn, present: Tensor) -> Tensor:
    """How much a head's loss counts in each example, [B], as `losses` says."""
    part, k = model.part(name), 1 + model.names.index(name)
    wanted, readable = ((1 - drawn.given) * present)[:, k], model.schedule.alpha_bar[drawn.t].float()
    readable = torch.where(drawn.given[:, 0] > 0, 1.0, readable)
    if part.restores:
        return present[:, k] * (1 - drawn.given[:, [model.anchor_name, *model.names].index(part.source)])
    if part.diffused:
        return wanted
    if model.reads_untold(name):
        at_ends = (drawn.given + drawn.unknown)[:, k] > 0
        return present[:, k] * (torch.where(at_ends, readable, 1.0) if name in model.traced else readable)
    return wanted * torch.where(drawn.unknown[:, k] > 0, readable, 1.0)


@dataclass(frozen=True)
class Drawn:
    """The times and roles of a batch: t [B] of the anchor, and times [B, 1 + N], in which given ones are not yet 0."""

    t: Tensor
    times: Tensor
    given: Tensor
    unknown: Tensor
    weight: Tensor  # of the anchor's loss, [B]
    diagonal: bool  # whether no modality can have a time of its own
    heads: tuple[str, ...] | None = None  # those that read, if nothing but the encoder runs

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
    if model.space == "own":  # in shared channels there is one time, that of z_t, whatever an example lacks
        times = torch.where(drawn.unknown > 0, T, times)
    own = model.told and any(model.part(name).spec.own_time_probability for name in model.traced)
    return Drawn(t, times, drawn.given, drawn.unknown, weight, diagonal=not own)


def _clean(model: Model, present: Tensor) -> list[Drawn]:
    """The passes without noise: something is given, all else is unknown, at T, and only the encoder runs.

    What reads the anchor is given the anchor, and what restores it what is visible of it. Raises MmfastError if z_T
    would still show the encoder a modality that is unknown.
    """
    for name in model.traced:
        if name not in model.fading:
            raise MmfastError(
                f"train.clean_pass is above 0, but modalities.{name}.weight leaves a trace at T, which the encoder "
                "would see; use none, carried or bridge, or train.clean_pass=0"
            )
    heads: dict[str, list[str]] = {}  # by what is given
    for part in map(model.part, model.names):
        if part.reads == "encoder":
            heads.setdefault(part.name if part.restores else model.anchor_name, []).append(part.name)
    t = torch.full_like(present[:, 0], model.schedule.T, dtype=torch.int64)
    times, weight = t[:, None].expand_as(present), torch.ones_like(present[:, 0])
    found = []
    for source, names in heads.items():
        given, k = torch.zeros_like(present), [model.anchor_name, *model.names].index(source)
        given[:, k] = present[:, k]
        found.append(Drawn(t, times, given, 1 - given, weight, diagonal=True, heads=tuple(names)))
    return found
