"""The variational bound on the data's likelihood under the model, in parts and by modality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmfast import loss, ops
from mmfast.data import Batch
from mmfast.errors import MmfastError
from mmfast.model import Model
from mmfast.ranks import ALONE, Ranks
from mmfast.reverse import Reverse, Truth, blocks, denoise, divergences, log_snr, posterior, rows, truth
from mmfast.schedule import Schedule
from mmfast.streams import EVALUATE, EVALUATE_TIME

PARTS = ("L0", "L1", "L2", "L3")
# The process with the posterior's variance, whose figures have no name in their keys.
PLAIN = ""

# (part, reverse process, modality); PLAIN for parts that are the same in all reverse processes.
Key = tuple[str, str, str]


@torch.no_grad()
def bound(
    model: Model,
    batch: Batch,
    steps: int = 8,
    seed: int = 0,
    batch_size: int = 256,
    reverses: Mapping[str, Reverse] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Compute -ln p(X) <= L0 + L1 + L2 + L3 with every modality generated and none given, as means over the batch.

    `bound.L0` to `bound.L3` are the parts in nats per example; with `_bits`, in bits per dimension of the anchor. The
    same numbers by modality, each with L0 and L1 of its own block of channels:

    - `bound.pixels`, of the anchor: L0 + L1 + L3, in nats per example; `_bits`: bits per dimension. A probability.
    - `bound.discrete.NAME`, of a label or a mask: L0 + L1 + L2, in nats per example; `_bits`: bits per example. A
      probability.
    - `bound.density.NAME`, of a continuous modality: L0 + L1 + L2, in nats per example. A density, so it may be
      negative and must not be added to the others. For an anchor that is not an image: L0 + L1 + L3, of its z_0.

    A modality's figure is its share of the joint bound, not a bound of its own, because the network sees all of z_t. In
    shared channels L0 and L1 cannot be separated by modality, and `bound.pixels` contains them all.

    These figures use the posterior's variance, and 1 - a_1 for the decoder of z_1. For each process in `reverses`
    (`mmfast.reverse.fit`), the result also has `bound.REVERSE.L1`, `.L3`, `.pixels`, `.discrete.NAME` and
    `.density.NAME`. L0 and L2 do not depend on the process.

    The sums over t are Monte Carlo estimates from `steps` timesteps per example (`Timesteps`); 0 for full sums. batch:
    on any device; the model's device gets `batch_size` examples at a time, and ranks share them. Raises MmfastError for
    a batch without examples, a reverse process of another model, and a model without a bound (`Model.without_bound`).
    """
    if model.without_bound:
        raise MmfastError(f"{model.without_bound}; leave the bound out")
    if steps < 0:
        raise MmfastError(f"steps is {steps}; it should be at least 1, or 0 for all of them")
    processes = {PLAIN: posterior(model), **(reverses or {})}
    for name, reverse in (reverses or {}).items():
        _check(model, name, reverse, processes[PLAIN])

    def terms(numbers: Tensor) -> dict[Key, Tensor]:
        found = _terms(model, truth(model, batch, numbers), processes, steps, seed)
        return {key: x.cpu() for key, x in found.items()}

    found = ranks.map(terms, rows(batch, batch_size, ranks))
    nats = {key: float(torch.cat([part[key] for part in found]).double().mean()) for key in found[0]}
    figures: dict[str, float] = {}
    for name in processes:
        figures |= _figures(model, nats, name)
    return figures


def _check(model: Model, name: str, reverse: Reverse, like: Reverse) -> None:
    """Raise MmfastError unless a reverse process has the model's blocks and timesteps."""
    for block, variance in like.variance.items():
        if block not in reverse.variance or reverse.variance[block].shape != variance.shape:
            raise MmfastError(
                f"reverses[{name!r}] has blocks {list(reverse.variance)} over {len(reverse.from_z) - 1} timesteps; it "
                f"should have {list(like.variance)} over {model.schedule.T}: fit it to this model"
            )


def _figures(model: Model, nats: Mapping[Key, float], reverse: str) -> dict[str, float]:
    """The figures of one reverse process, under the names that `bound` documents."""
    own = {(part, name): x for (part, who, name), x in nats.items() if who == reverse or part in ("L0", "L2")}
    prefix = f"bound.{reverse}" if reverse else "bound"
    bit, dimensions, found = 1 / math.log(2), math.prod(model.shape), {}
    for part in PARTS if reverse == PLAIN else ("L1", "L3"):
        found[f"{prefix}.{part}"] = x = sum(x for (p, _), x in own.items() if p == part)
        found[f"{prefix}.{part}_bits"] = x * bit / dimensions
    for name in model.parts:
        x = sum(x for (_, n), x in own.items() if n == name)
        if name == model.anchor_name and hasattr(model.anchor.spec, "levels"):
            found |= {f"{prefix}.pixels": x, f"{prefix}.pixels_bits": x * bit / dimensions}
        elif name != model.anchor_name and model.part(name).discrete:
            found |= {f"{prefix}.discrete.{name}": x, f"{prefix}.discrete.{name}_bits": x * bit}
        else:
            found[f"{prefix}.density.{name}"] = x
    return found


def _terms(model: Model, these: Truth, processes: Mapping[str, Reverse], steps: int, seed: int) -> dict[Key, Tensor]:
    """The parts for each example, [B]."""
    schedule, z0, numbers, times = (
        model.schedule,
        these.data[model.anchor_name],
        these.numbers,
        Timesteps(model.schedule),
    )
    found: dict[Key, Tensor] = {}
    for name, block in blocks(model, z0, these.encodings).items():
        found["L0", PLAIN, name] = loss.L0(schedule, *block)

    def add(key: Key, x: Tensor) -> None:
        found[key] = found[key] + x if key in found else x

    for k in range(steps or schedule.T - 1):
        # One draw of t = 2 .. T serves both sums; L2 thus leaves out t = 1, one of its T terms.
        if steps:
            how: dict[str, Any] = {"seed": seed, "sample_ids": numbers, "stream": EVALUATE_TIME, "draw": k}
            t, weight = times.draw(ops.random_words([len(numbers), 1], **how, device=numbers.device)[:, 0])
            weight = weight / steps
        else:
            t, weight = torch.full_like(numbers, 2 + k), torch.ones(len(numbers), device=numbers.device)
        said = denoise(model, these, t, seed=seed, stream=EVALUATE, draw=k + 1)
        for who, reverse in processes.items():
            for name, x in divergences(model, these, reverse.of(model, said, t), t, reverse.variance).items():
                add(("L1", who, name), weight * x)
        nll = {name: model.part(name).nll(x.float(), these.data[name]) for name, x in said.heads.items()}
        for name, x in nll.items():
            add(("L2", PLAIN, name), weight / (schedule.T - 1) * x)
    one, anchor = torch.ones_like(numbers), model.anchor_name
    said = denoise(model, these, one, seed=seed, stream=EVALUATE, draw=0)
    for who, reverse in processes.items():
        z0_hat, variance = reverse.of(model, said, one).z0, reverse.variance[anchor][1]
        levels = getattr(model.anchor.spec, "levels", None)
        found["L3", who, anchor] = loss.L3(schedule, z0, z0_hat, levels, variance)
    return found


class Timesteps:
    """Timesteps in 2 .. T, drawn for sums over t: a third uniformly, a third by the fall of SNR, a third of log SNR.

    If only the anchor is generated and the variance is the posterior's, a term of L1 is
    1/2 (SNR(t - 1) - SNR(t)) |z0hat - z_0|^2 (Kingma et al., 2021), so uniform draws miss the few terms that dominate
    the sum. If the error is about 1 / SNR, as for a network that predicts eps at large t, or if the variance is fitted,
    the terms follow log SNR. Under the cosine schedule, that falls as much in the last step as in hundreds before it.
    The uniform third bounds the weights of the others.
    """

    def __init__(self, schedule: Schedule) -> None:
        x = schedule.alpha_bar[1:]
        snr, log = -(x / (1 - x)).diff(), -log_snr(schedule).diff()
        self.p = (1 / len(snr) + snr / snr.sum() + log / log.sum()) / 3

    def draw(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """t and 1/p(t), int64 and float32 [B], from 32-bit words [B]. The weighted terms have the sum as their mean."""
        u = (words.double() + 0.5) / 2.0**32
        at = torch.searchsorted(self.p.cumsum(0), u).clamp(max=len(self.p) - 1)
        return 2 + at, (1 / self.p[at]).float()
