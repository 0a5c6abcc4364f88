"""A task on its own: the same network trained to say one modality of another, with no diffusion."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.paper.core import described, refuse_another
from mmfast import ops
from mmfast.build import build_data, build_model
from mmfast.checkpoint import load_into, load_tensors, save_tensors
from mmfast.config import Config
from mmfast.ema import EMA
from mmfast.model import Model
from mmfast.order import loader
from mmfast.train import learning_rate


def predict(model: Model, data: dict[str, Tensor], given: str, target: str, z: Tensor | None = None) -> Tensor:
    """What the head of `target` says when the network is told `given` and sees z (None: zeros) in the place of z_T."""
    x = data[given]
    anchor = x if given == model.anchor_name else None
    encodings = {} if anchor is not None else model.encode({given: x})
    names = (model.anchor_name, *model.names)
    flags = torch.tensor([[float(name == given) for name in names]]).expand(len(x), -1)
    z = torch.zeros(len(x), model.channels, *model.shape[1:]) if z is None else z
    t = torch.full((len(x),), model.schedule.T)
    with torch.autocast("cpu", torch.bfloat16):
        return model(z, t, model.tell(anchor, encodings, flags)).heads[target].float()


def train(config: Config, given: str, target: str, file: Path) -> tuple[Model, list[dict[str, Any]], float]:
    """The averaged model, the loss's curve and the minutes that it took; kept in `file`, and read from it again.

    Data, order, optimiser, averaging and the number of images are those of the diffusion model's config.
    """
    model = build_model(config)
    if file.exists():
        tensors, kept = load_tensors(file)
        refuse_another(described(config), kept["config"], file)
        load_into(model, tensors, file)
        return model.eval(), kept["curve"], kept["minutes"]
    train_set, spec = build_data(config).train, config.train
    average = EMA(model, spec.ema_decay)
    optimizer = torch.optim.AdamW(model.parameters(), spec.learning_rate, weight_decay=spec.weight_decay, fused=True)
    batches, curve, begun = loader(config, train_set, 0), [], time.perf_counter()
    torch.manual_seed(config.seed)
    for step in tqdm(range(1, spec.steps + 1), desc=f"{target} of {given}", unit="step"):
        numbers = torch.arange((step - 1) * spec.batch_size, step * spec.batch_size)
        data = model.complete(next(batches), config.seed, numbers).filled()
        loss = model.part(target).loss(predict(model, data, given, target), data[target]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model, step)
        curve.append({"step": step, "images": step * spec.batch_size, "loss": float(loss.detach())})
    minutes = (time.perf_counter() - begun) / 60
    curve = curve[:: max(1, len(curve) // 200)]
    save_tensors(file, average.model.state_dict(), {"curve": curve, "minutes": minutes, "config": described(config)})
    return average.model, curve, minutes


@torch.no_grad()
def answer(
    model: Model, data: dict[str, Tensor], given: str, target: str, batch_size: int = 250, seed: int | None = None
) -> Tensor:
    """The likeliest `target` of each example, [n, ...]; with a seed it sees noise, as a diffusion model must."""
    found = []
    for rows in torch.arange(len(data[given])).split(batch_size):
        shape = (len(rows), model.channels, *model.shape[1:])
        z = None if seed is None else ops.randn(shape, seed=seed, sample_ids=rows)
        found.append(predict(model, {given: data[given][rows]}, given, target, z))
    return torch.cat([model.part(target).decode(x) for x in found])
