"""The bound of the data's likelihood under the model: its four parts, and what is a probability and what a density."""

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
# The process that has the posterior's variance: its figures carry no name.
PLAIN = ""

# By part, reverse process (PLAIN for what is the same in all of them) and modality.
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
    """-ln p(X) <= L0 + L1 + L2 + L3 with every modality generated and nothing given, in means over the batch.

    `bound.L0` to `bound.L3` are the parts in nats an example, with `_bits` in bits per dimension of the anchor. The
    same numbers by modality, each with L0 and L1 of its own block of channels:

    - `bound.pixels`, the anchor's: L0 + L1 + L3, nats an example; `_bits`: bits per dimension. Of a probability.
    - `bound.discrete.NAME`, of a label or a mask: L0 + L1 + L2, nats an example; `_bits`: bits an example. Of a
      probability.
    - `bound.density.NAME`, of what is continuous: L0 + L1 + L2, nats an example. Of a density, so it may be negative
      and is not to be added to the others. So is an anchor's that is no image: L0 + L1 + L3, of its z_0.

    A modality's figure is its share of the joint bound and no bound of its own: the network sees all of z_t. In shared
    channels L0 and L1 cannot be told apart by modality, and are all in `bound.pixels`.

    These are of the posterior's variance, and 1 - a_1 for the decoder of z_1. With `reverses` (`mmfast.reverse.fit`)
    there are beside them, for each by name, `bound.REVERSE.L1`, `.L3`, `.pixels`, `.discrete.NAME` and `.density.NAME`;
    L0 and L2 know nothing of it.

    The sums over t are Monte Carlo over `steps` timesteps an example (`Timesteps`); 0 for whole sums. batch: on any
    device; `batch_size` examples at a time go to the model's, and ranks share them out. Raises MmfastError for a batch
    without examples, for a reverse process of another model, and for a model that has none (`Model.without_bound`).
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
    """Raise MmfastError unless a reverse process has the blocks and the timesteps of the model."""
    for block, variance in like.variance.items():
        if block not in reverse.variance or reverse.variance[block].shape != variance.shape:
            raise MmfastError(
                f"reverses[{name!r}] has blocks {list(reverse.variance)} over {len(reverse.from_z) - 1} timesteps; it "
                f"should have {list(like.variance)} over {model.schedule.T}: fit it to this model"
            )


def _figures(model: Model, nats: Mapping[Key, float], reverse: str) -> dict[str, float]:
    """The figures of one reverse process, by the names of `bound`."""
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
        # One draw of t = 2 .. T serves both sums; of L2's, t = 1 is left out: 1 of T terms.
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
    """Timesteps of 2 .. T, drawn for sums over t: evenly, as SNR falls and as log SNR falls, a third of them each.

    A term of L1 is 1/2 (SNR(t - 1) - SNR(t)) |z0hat - z_0|^2 where nothing but the anchor is generated and the variance
    is the posterior's (Kingma et al., 2021), so even draws miss the few terms that hold most of the sum. Where the
    error is about 1 / SNR, as that of a network that says eps is at large t, or the variance is fitted, terms follow
    log SNR: under the cosine schedule, that falls as much in the last step as in hundreds before it. The even third
    bounds the weights of the others.
    """

    def __init__(self, schedule: Schedule) -> None:
        x = schedule.alpha_bar[1:]
        snr, log = -(x / (1 - x)).diff(), -log_snr(schedule).diff()
        self.p = (1 / len(snr) + snr / snr.sum() + log / log.sum()) / 3

    def draw(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """t and 1/p(t), int64 and float32 [B], of 32-bit words [B]: terms weighted so have the sum as their mean."""
        u = (words.double() + 0.5) / 2.0**32
        at = torch.searchsorted(self.p.cumsum(0), u).clamp(max=len(self.p) - 1)
        return 2 + at, (1 / self.p[at]).float()
