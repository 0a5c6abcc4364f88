"""The training loss: one for all modalities, whatever is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmfast import ops
from mmfast.config import Config
from mmfast.data import Batch
from mmfast.model import Model
from mmfast.streams import TRAIN_NOISE
from mmfast.training.examples import constants, given_flags, timesteps

# The parts of a loss by name, scalars, from (model, batch, the examples' numbers in the run, config).
Losses = Callable[[Model, Batch, Tensor, Config], dict[str, Tensor]]


def losses(model: Model, batch: Batch, numbers: Tensor, config: Config) -> dict[str, Tensor]:
    """The parts of the training loss, each a mean over the batch: |target - prediction|^2 and lambda_i l_i.

    What is given to the network is known to it, so it counts in no part, unless its head restores more than that;
    nor does what is missing. t is uniform, but for the share of the examples given a modality that its `given_at_T`
    puts at T (the largest, of several): there all that is not given is to be told from what is, while at most other
    times z_t shows it too. Of these, min-SNR weighting leaves the heads' parts only, as the SNR at T is nearly 0.
    batch: on the model's device; numbers: int64 [B], the examples' numbers in the run.
    """
    batch = model.complete(batch, config.seed, numbers)
    data = batch.filled()
    anchor = data[model.anchor_name]
    names = (model.anchor_name, *model.names)
    specs = [model.part(name).spec for name in names]
    usual = config.train.given_probability
    there = [batch.present.get(name) for name in names]
    everything = torch.ones(len(numbers), device=numbers.device)
    present = torch.stack([everything if p is None else p.float() for p in there], 1)
    probabilities = [usual if spec.given_probability is None else spec.given_probability for spec in specs]
    given = given_flags(config.seed, numbers, probabilities, present)
    at_T = (given * constants(tuple(spec.given_at_T or 0.0 for spec in specs), given.device)).amax(1)
    # A network that is not told would have nothing at T.
    t = timesteps(config.seed, numbers, model.schedule.T, at_T if model.told else None)
    wanted = (1 - given) * present

    encodings = model.encode(data)
    z0 = model.anchor_in_space(anchor)
    terms = {name: model.in_space(name, E) for name, E in encodings.items()}
    # The noise is never written to memory: the loss makes it again from its identity.
    noise: dict[str, Any] = {"seed": config.seed, "sample_ids": numbers, "stream": TRAIN_NOISE}
    z_t = ops.q_sample(z0, terms, t, model.schedule, present=present[:, 1:], return_noise=False, **noise)
    with torch.autocast(anchor.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        prediction = model(z_t, t, model.tell(anchor, encodings, given))
    anchor_loss = ops.diffusion_loss(
        prediction.anchor,
        anchor,
        t,
        model.schedule,
        target=model.target,
        min_snr_gamma=config.loss.min_snr_gamma,
        sample_weight=wanted[:, 0],
        **noise,
    )
    parts = {model.anchor_name: anchor_loss}
    for k, (name, output) in enumerate(prediction.heads.items(), 1):
        part = model.part(name)
        counts = present[:, k] * (1 - given[:, 0]) if part.restores else wanted[:, k]
        parts[name] = (counts * part.spec.loss_weight * part.loss(output.float(), data[name])).mean()
    return parts
