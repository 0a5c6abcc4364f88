"""The loss: the four parts of the variational bound, under their names, and the simple loss that training minimises.

All return nats per sample, [B], summed over the sample's dimensions, except `simple`, which is a mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmfast import ops, process
from mmfast.errors import MmfastError
from mmfast.ops import Block
from mmfast.ops.call import Term
from mmfast.process import Time
from mmfast.schedule import Schedule


def L0(schedule: Schedule, z0: Term, encodings: Mapping[str, Term], present: Tensor | None = None) -> Tensor:
    """L0 = KL(q(z_T | z_0, X) || N(0, I)) = 1/2 [D v + |sqrt(abar_T) z_0 + m_T|^2 - D - D ln v], v = 1 - abar_T.

    z0: [B, ...]; encodings: by name. Returns float64 [B]. L0 has no parameters unless an encoder is learned.
    """
    mean, _ = ops.q_sample(z0, encodings, schedule.T, schedule, noise=_zeros(z0), present=present)
    # In float64, since a good schedule's L0 is the small difference of D v and D.
    mean, v = mean.flatten(1).double(), 1 - schedule.alpha_bar[-1]
    D = mean.shape[1]
    return 0.5 * (D * v + mean.square().sum(1) - D - D * torch.log(v))


def L1(
    schedule: Schedule,
    t: Time,
    z0: Term,
    z0_hat: Term,
    encodings: Mapping[str, Term],
    encodings_hat: Mapping[str, Term],
    variance: Tensor | None = None,
) -> Tensor:
    """One term of L1 = sum_{t >= 2} KL(q(z_{t-1} | z_t, z_0, X) || p(z_{t-1} | z_t)): its value at t, float64 [B].

    For two isotropic Gaussians it is 1/2 [|d|^2 / v + D (u/v - 1 - ln(u/v))]. Here u is the posterior's variance, v is
    that of p (`variance`, float64 [B]; None for u, which leaves |d|^2 / 2u), and d is the difference of the means,
    c0 (z_0 - z0hat) + sum_i (W_{t-1} - cy W_t)^(i) (E_i(x_i) - E_i(xhat_i)), with c0 and cy as in
    `process.posterior_mean_x0`. The form in z_0 is finite even if abar_T = 0. z0, z0_hat: [B, ...]. The encoding of a
    given modality is the same on both sides and contributes nothing. Raises MmfastError unless 2 <= t <= T.
    """
    process.check_time("t", t, 2, schedule.T)
    j = process.jump(schedule, t)
    names = list(encodings)
    of_z0, _, w = process.posterior_mean_x0(j.of(schedule.index(tuple(names))))
    terms: list[Term] = [z0, z0_hat]
    terms += [encodings[name] for name in names] + [encodings_hat[name] for name in names]
    difference = ops.combine(terms, torch.cat((of_z0[:, None], -of_z0[:, None], w, -w), 1))
    assert isinstance(difference, Tensor)
    difference, u = difference.flatten(1), process.posterior_variance(j)
    squared, v = difference.square().sum(1).double(), u if variance is None else variance
    return 0.5 * (squared / v + difference.shape[1] * (u / v - 1 - torch.log(u / v)))


def L2(nll: Mapping[str, Tensor]) -> Tensor:
    """One term of L2 = - sum_i E_t ln p(x_i | z_t): the sum of the modalities' -ln p(x_i | z_t) at t, [B].

    nll: by modality, [B] (`Modality.nll`). L2 makes the heads recover every modality from z_t at every t.
    """
    if not nll:
        raise MmfastError("nll is empty; L2 sums over at least one modality")
    return torch.stack(list(nll.values())).sum(0)


def L3(
    schedule: Schedule, z0: Tensor, z0_hat: Tensor, bins: int | None = 256, variance: Tensor | None = None
) -> Tensor:
    """L3 = -ln p(z_0 | z_1), a Gaussian around z0_hat integrated over each value's bin (Ho et al., 2020), [B].

    z0, z0_hat: [B, ...] in -1 .. 1, with z0 on `bins` evenly spaced levels; the outermost bins extend to infinity. If
    bins is None, z_0 is continuous and L3 uses the Gaussian's density. variance: float64 []; None for that of the first
    step, 1 - a_1. The paper does not specify this part; this is our interpretation.
    """
    z0, z0_hat = z0.double(), z0_hat.double()
    sigma = (1 - schedule.alpha_bar[1] if variance is None else variance).sqrt()
    if bins is None:
        return (0.5 * ((z0 - z0_hat) / sigma).square() + torch.log(sigma * math.sqrt(2 * math.pi))).flatten(1).sum(1)
    half = 1 / (bins - 1)
    upper = torch.where(z0 > 1 - half, math.inf, (z0 - z0_hat + half) / sigma)
    lower = torch.where(z0 < -1 + half, -math.inf, (z0 - z0_hat - half) / sigma)
    return -_log_normal_mass(lower, upper).flatten(1).sum(1)


def _log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """ln P(lower < x < upper) for a standard normal, accurate in the tails too."""
    # Reflect the interval to the left, where the log of the distribution function is accurate.
    reflect = lower > 0
    a, b = torch.where(reflect, -upper, lower), torch.where(reflect, -lower, upper)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    return log_b + torch.log1p(-torch.exp(log_a - log_b))


def _zeros(z0: Term) -> Tensor:
    if isinstance(z0, Block):
        B, _, *rest = z0.tensor.shape
        return z0.tensor.new_zeros(B, z0.channels, *rest)
    return torch.zeros_like(z0)


def simple(
    prediction: Tensor,
    z0: Tensor,
    eps: Tensor,
    t: Tensor,
    schedule: Schedule,
    target: str = "eps",
    min_snr_gamma: float | None = None,
) -> Tensor:
    """The simple loss |target - prediction|^2, averaged over each sample's elements, [B].

    The target is eps, x0 or v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0. min_snr_gamma weights the steps by
    min-SNR-gamma (Hang et al., 2023). prediction, z0, eps: [B, ...]; t: int64 [B]. The underlying fused op,
    ops.diffusion_loss, can also regenerate eps from its identity.
    """
    return ops.diffusion_loss(
        prediction, z0, t, schedule, noise=eps, target=target, min_snr_gamma=min_snr_gamma, reduction="none"
    )
