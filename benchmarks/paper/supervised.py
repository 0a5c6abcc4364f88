"""One task alone: the same network trained to predict one modality from another, without diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfast import ops
from mmfast.config import Config
from mmfast.data import Batch
from mmfast.model import Model
from mmfast.streams import SAMPLE
from mmfast.training.objective import Losses


def predict(
    model: Model, data: dict[str, Tensor], given: str, target: str, precision: str, z: Tensor | None = None
) -> Tensor:
    """The output of `target`'s head when the network is told `given` and sees z instead of z_T (zeros if None).

    precision: the network's arithmetic, "fp32" or "bf16".
    """
    x = data[given]
    anchor = x if given == model.anchor_name else None
    encodings = {} if anchor is not None else model.encode({given: x})
    names = (model.anchor_name, *model.names)
    z = torch.zeros(len(x), model.channels, *model.shape[1:], device=x.device) if z is None else z
    times = torch.tensor([[0 if name == given else model.schedule.T for name in names]], device=x.device)
    times = times.expand(len(x), -1)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(z, times, model.tell(anchor, encodings, times)).heads[target].float()


def loss(given: str, target: str) -> Losses:
    """The loss of the head alone, for `mmfast.training.fit`; everything else is as in the diffusion model."""

    def losses(model: Model, batch: Batch, numbers: Tensor, config: Config) -> dict[str, Tensor]:
        data = model.complete(batch, config.seed, numbers).filled()
        said = predict(model, data, given, target, config.train.precision)
        return {target: model.part(target).loss(said, data[target]).mean()}

    return losses


@torch.no_grad()
def answer(
    model: Model,
    data: dict[str, Tensor],
    given: str,
    target: str,
    precision: str,
    *,
    batch_size: int = 250,
    seed: int | None = None,
) -> Tensor:
    """The likeliest `target` of each example, [n, ...] on the CPU.

    seed: show the network noise, as a diffusion model needs; None shows it zeros. precision: as for `predict`.
    """
    found, device = [], model.schedule.alpha_bar.device
    for rows in torch.arange(len(data[given])).split(batch_size):
        shape = (len(rows), model.channels, *model.shape[1:])
        z = None
        if seed is not None:
            z = ops.randn(shape, seed=seed, sample_ids=rows.to(device), stream=SAMPLE, device=device)
        found.append(predict(model, {given: data[given][rows].to(device)}, given, target, precision, z))
    return torch.cat([model.part(target).decode(x) for x in found]).cpu()
