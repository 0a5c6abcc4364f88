"""The bound of the data's likelihood under the model, in its four parts (design, section 3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmfast import loss, ops, process
from mmfast.data import Batch
from mmfast.model import Model, Prediction
from mmfast.process import TARGETS
from mmfast.schedule import Schedule
from mmfast.streams import EVALUATE, EVALUATE_TIME


@torch.no_grad()
def bound(model: Model, batch: Batch, steps: int = 8, seed: int = 0, batch_size: int = 256) -> dict[str, float]:
    """-ln p(X) <= L0 + L1 + L2 + L3 with every modality generated and nothing given: nats an example.

    The sums over t are Monte Carlo over `steps` timesteps an example (`Timesteps`); 0 for whole sums. `bound.X_bits`
    are bits per dimension of the anchor. The reverse steps have the posterior's variance, the decoder of z_1 that of
    the first step, 1 - a_1. batch: on any device; `batch_size` examples at a time go to the model's.
    """
    device = model.schedule.alpha_bar.device
    found: list[dict[str, Tensor]] = []
    for numbers in torch.arange(len(batch)).split(batch_size):
        data = {name: x[numbers].to(device) for name, x in batch.data.items()}
        found.append(_parts(model, data, numbers.to(device), steps, seed))
    nats = {name: float(torch.cat([part[name] for part in found]).double().mean()) for name in found[0]}
    nats["total"] = sum(nats.values())
    bits = 1 / (math.prod(model.shape) * math.log(2))
    return {f"bound.{name}": x for name, x in nats.items()} | {f"bound.{n}_bits": x * bits for n, x in nats.items()}


def _parts(model: Model, data: dict[str, Tensor], numbers: Tensor, steps: int, seed: int) -> dict[str, Tensor]:
    """L0 to L3 of each example, [B]; numbers: int64 [B], the examples' identity."""
    schedule, anchor, B = model.schedule, data[model.anchor_name], len(numbers)
    z0 = model.anchor_in_space(anchor)
    terms = model.terms(model.encode(data))

    def noisy(t: Tensor, draw: int) -> tuple[Tensor, Tensor, Prediction, dict[str, Tensor]]:
        z_t, eps = ops.q_sample(z0, terms, t, schedule, seed=seed, sample_ids=numbers, stream=EVALUATE, draw=draw)
        prediction = model(z_t, t, {})
        E_hat = {name: model.part(name).encode_prediction(prediction.heads[name]) for name in model.traced}
        return z_t, eps, prediction, E_hat

    L1, L2, times = [], [], Timesteps(schedule)
    for k in range(steps or schedule.T - 1):
        # One draw of t = 2 .. T serves both sums; of L2's, t = 1 is left out: 1 of T terms.
        if steps:
            how: dict[str, Any] = {"seed": seed, "sample_ids": numbers, "stream": EVALUATE_TIME, "draw": k}
            t, weight = times.draw(ops.random_words([B, 1], **how, device=numbers.device)[:, 0])
            weight = weight / steps
        else:
            t, weight = torch.full_like(numbers, 2 + k), torch.ones(B, device=numbers.device)
        z_t, eps, prediction, E_hat = noisy(t, k + 1)
        eps_hat = implied_eps(model, z_t, t, prediction, E_hat)
        terms_hat = model.terms(E_hat)
        L1.append(weight * loss.L1(schedule, t, eps, eps_hat, terms, terms_hat))
        nll = {name: model.part(name).nll(x.float(), data[name]) for name, x in prediction.heads.items()}
        L2.append(weight / (schedule.T - 1) * loss.L2(nll) if nll else torch.zeros(B, device=anchor.device))
    one = torch.ones_like(numbers)
    z_1, _, prediction, E_hat = noisy(one, 0)
    z0_hat = predicted_anchor(model, z_1, one, prediction, E_hat)
    return {
        "L0": loss.L0(schedule, z0, terms),
        "L1": torch.stack(L1).sum(0),
        "L2": torch.stack(L2).sum(0),
        "L3": loss.L3(schedule, anchor, z0_hat, model.part(model.anchor_name).spec.levels),
    }


class Timesteps:
    """Timesteps of 2 .. T, drawn for sums over t: half of them evenly, half in proportion to the difference of SNR.

    A term of L1 is 1/2 (SNR(t - 1) - SNR(t)) |z0hat - z_0|^2 where nothing but the anchor is generated (Kingma et al.,
    2021), so even draws miss the few terms that hold most of the sum; the even half bounds the weights of the others.
    """

    def __init__(self, schedule: Schedule) -> None:
        x = schedule.alpha_bar
        snr = x[1:] / (1 - x[1:])
        gaps = snr[:-1] - snr[1:]
        self.p = 0.5 / len(gaps) + 0.5 * gaps / gaps.sum()

    def draw(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """t and 1/p(t), int64 and float32 [B], of 32-bit words [B]: terms weighted so have the sum as their mean."""
        u = (words.double() + 0.5) / 2.0**32
        at = torch.searchsorted(self.p.cumsum(0), u).clamp(max=len(self.p) - 1)
        return 2 + at, (1 / self.p[at]).float()


def predicted_anchor(model: Model, z_t: Tensor, t: Tensor, prediction: Prediction, E_hat: dict[str, Tensor]) -> Tensor:
    """z_0 of the anchor as the network's prediction implies it, from y_t = z_t - m_t: [B, C, H, W]."""
    schedule = model.schedule
    of_y, of_prediction = TARGETS[model.target].x0(process.rows(schedule.alpha_bar, t))
    terms = [model.anchor_block(z_t), prediction.anchor.float()]
    coefs = torch.stack((of_y, of_prediction), 1)
    if model.space == "shared":
        terms += E_hat.values()
        coefs = torch.cat((coefs, -of_y[:, None] * process.rows(schedule.W, t)[:, schedule.index(tuple(E_hat))]), 1)
    z0 = ops.combine(terms, coefs)
    assert isinstance(z0, Tensor)
    return z0


def implied_eps(model: Model, z_t: Tensor, t: Tensor, prediction: Prediction, E_hat: dict[str, Tensor]) -> Tensor:
    """eps in the whole space as predicted: (z_t - m_t(xhat) - sqrt(abar_t) z0hat) / sqrt(1 - abar_t).

    In the anchor's channels this is the network's own noise prediction; in a modality's it follows from its head.
    """
    schedule = model.schedule
    z0_hat = predicted_anchor(model, z_t, t, prediction, E_hat)
    of_z0, W, sigma = process.marginal(schedule, t)
    terms = [z_t, model.anchor_in_space(z0_hat), *(model.in_space(name, x) for name, x in E_hat.items())]
    coefs = torch.cat((torch.ones_like(sigma)[:, None], -of_z0[:, None], -W[:, schedule.index(tuple(E_hat))]), 1)
    eps = ops.combine(terms, coefs / sigma[:, None])
    assert isinstance(eps, Tensor)
    return eps
