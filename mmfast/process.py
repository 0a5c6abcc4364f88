"""The diffusion process: every formula of q, its posterior and the predictions, as coefficients.

Everything a step does is a linear combination, so each formula here returns the coefficients of its terms, in
float64 and per sample; mmfast.ops applies them in one pass. Symbols (design, section 1): abar_t the product of
the a_t, W_t the cumulative weights, m_t = sum_i W_t^(i) E_i(x_i), y_t = z_t - m_t the ordinary DDPM variable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfast.errors import MmfastError
from mmfast.schedule import Schedule, as_int

# A timestep: one for the whole batch, or int64 [B].
Time = int | Tensor


def check_kind(name: str, t: Time, low: int, high: int) -> None:
    """Raise MmfastError unless t is an int in low .. high or an integer tensor [B] (whose values are not read)."""
    if isinstance(t, Tensor):
        if t.dtype not in (torch.int64, torch.int32) or t.dim() > 1:
            raise MmfastError(
                f"{name} is a {t.dtype} tensor of shape {list(t.shape)}; it should be an int or an int64 [B]"
            )
    elif isinstance(t := as_int(t), bool) or not isinstance(t, (int, torch.SymInt)):
        raise MmfastError(f"{name} is {t!r}; it should be an int or an int64 tensor [B]")
    elif t < low or t > high:
        raise MmfastError(f"{name} is {t}; it should lie in {low} .. {high}")


def check_time(name: str, t: Time, low: int, high: int) -> None:
    """check_kind, and the values of a tensor on the host. One on a GPU is not read: that would wait for it."""
    check_kind(name, t, low, high)
    if isinstance(t, Tensor) and t.numel() and readable(t):
        least, most = t.aminmax()
        if int(least) < low or int(most) > high:
            raise MmfastError(f"{name} runs from {int(least)} to {int(most)}; it should lie in {low} .. {high}")


def readable(*times: Time) -> bool:
    """Whether the values can be looked at without waiting for a GPU."""
    on_host = all(not isinstance(time, Tensor) or time.device.type == "cpu" for time in times)
    return on_host and not torch.compiler.is_compiling()


def rows(table: Tensor, t: Time) -> Tensor:
    """The rows of a table [T + 1, ...] at t: [B, ...], or [1, ...] for an int. Raises MmfastError outside it."""
    if not isinstance(t, Tensor):
        return table[t : t + 1]
    if torch.compiler.is_compiling():
        return table.index_select(0, t)
    try:
        return table.index_select(0, t)
    except (IndexError, RuntimeError):
        check_time("t", t, 0, len(table) - 1)
        if t.device != table.device:
            raise MmfastError(f"t is on {t.device}; it should be on {table.device} with the schedule") from None
        raise


@dataclass(frozen=True)
class Jump:
    """The schedule seen from a jump t -> s, s < t, in float64: alpha_bar as [B], weights as [B, N] ([1] for ints).

    a = a_{t|s} = abar_t / abar_s and w = w_{t|s} = W_t / sqrt(a_{t|s}) - W_s (design, section 2).
    """

    alpha_bar_t: Tensor
    alpha_bar_s: Tensor
    W_t: Tensor
    W_s: Tensor

    @property
    def a(self) -> Tensor:
        return self.alpha_bar_t / self.alpha_bar_s

    def of(self, columns: list[int]) -> Jump:
        """The same jump with the weights of some modalities."""
        return Jump(self.alpha_bar_t, self.alpha_bar_s, self.W_t[:, columns], self.W_s[:, columns])

    @property
    def w(self) -> Tensor:
        return self.W_t / self.a.sqrt()[:, None] - self.W_s


def jump(schedule: Schedule, t: Time, s: Time | None = None) -> Jump:
    """The jump from t to s; s defaults to t - 1. Raises MmfastError unless 0 <= s < t <= T."""
    check_time("t", t, 1, schedule.T)
    s = t - 1 if s is None else s
    check_time("s", s, 0, schedule.T - 1)
    if isinstance(t, Tensor) and isinstance(s, Tensor) and t.shape != s.shape:
        raise MmfastError(f"s has shape {list(s.shape)}; it should be that of t, {list(t.shape)}")
    if readable(t, s) and bool((torch.as_tensor(s) >= torch.as_tensor(t)).any()):
        raise MmfastError("s is not before t somewhere; a step goes from t to an earlier s < t")
    return Jump(rows(schedule.alpha_bar, t), rows(schedule.alpha_bar, s), rows(schedule.W, t), rows(schedule.W, s))


def block_jumps(schedule: Schedule, columns: list[int], t: Tensor, s: Tensor) -> Jump:
    """The jumps t[b, i] -> s[b, i] of every block alone, a row for each (b, i); t, s: int64 [B, 1 + M], s <= t.

    columns: those of W for the M encodings. Block 0 is z0's, of weight 0; so the weights are [B (1 + M), 1]. Where s is
    t a formula may be 0/0.
    """
    table, none = schedule.W, torch.zeros_like(schedule.alpha_bar)
    W = torch.stack([none, *(table[:, k] for k in columns)], 1)  # by slices: a list of numbers would wait for a GPU
    abar_t, abar_s = (schedule.alpha_bar.take(x).reshape(-1) for x in (t, s))
    return Jump(abar_t, abar_s, *(W.gather(0, x).reshape(-1, 1) for x in (t, s)))


def marginal(schedule: Schedule, t: Time) -> tuple[Tensor, Tensor, Tensor]:
    """q(z_t | z_0, X) = N(sqrt(abar_t) z_0 + m_t, (1 - abar_t) I).

    Returns the coefficient of z_0 [B], those of the encodings W_t [B, N], and the noise's sigma [B].
    """
    check_time("t", t, 0, schedule.T)
    alpha_bar = rows(schedule.alpha_bar, t)
    return alpha_bar.sqrt(), rows(schedule.W, t), (1 - alpha_bar).sqrt()


def posterior_mean_eps(j: Jump) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of q(z_s | z_t, eps, X): 1/sqrt(a) (z_t - (1 - a)/sqrt(1 - abar_t) eps) - sum_i w^(i) E_i(x_i).

    Returns the coefficients of z_t [B], of eps [B] and of the encodings [B, N].
    """
    of_z = 1 / j.a.sqrt()
    return of_z, -of_z * (1 - j.a) / (1 - j.alpha_bar_t).sqrt(), -j.w


def posterior_mean_x0(j: Jump) -> tuple[Tensor, Tensor, Tensor]:
    """The same mean from z_0: c0 z_0 + cy (z_t - m_t) + m_s, the form to clamp z_0 in.

    c0 = sqrt(abar_s)(1 - a)/(1 - abar_t), cy = sqrt(a)(1 - abar_s)/(1 - abar_t). Returns c0 [B], the coefficient
    cy of z_t [B], and W_s - cy W_t of the encodings [B, N].
    """
    of_z0 = j.alpha_bar_s.sqrt() * (1 - j.a) / (1 - j.alpha_bar_t)
    of_y = j.a.sqrt() * (1 - j.alpha_bar_s) / (1 - j.alpha_bar_t)
    return of_z0, of_y, j.W_s - of_y[:, None] * j.W_t


def posterior_variance(j: Jump) -> Tensor:
    """The variance of q(z_s | z_t, z_0, X): (1 - a)(1 - abar_s)/(1 - abar_t) [B]; zero for s = 0."""
    return (1 - j.a) * (1 - j.alpha_bar_s) / (1 - j.alpha_bar_t)


def ddim(
    alpha_bar_t: Any, alpha_bar_s: Any, eta: float, sqrt: Callable[[Any], Any] = torch.sqrt
) -> tuple[Any, Any, Any]:
    """A step of DDIM (Song et al., 2021): y_s = c0 z0hat + cy y_t + sigma eps'; eta = 1 is DDPM's ancestral step.

    sigma = eta sqrt(posterior variance), cy = sqrt((1 - abar_s - sigma^2) / (1 - abar_t)), c0 = sqrt(abar_s) - cy
    sqrt(abar_t). Returns c0, cy and sigma, of the kind that alpha_bar_t and alpha_bar_s are: tensors, or floats with
    their sqrt.
    """
    a, v_t, v_s = alpha_bar_t / alpha_bar_s, 1 - alpha_bar_t, 1 - alpha_bar_s
    # 1 - abar_s - sigma^2 with v_t = (1 - a) + a v_s put in: sums of positive numbers only.
    of_y = sqrt(v_s * ((1 - eta**2) * (1 - a) + a * v_s)) / v_t
    return sqrt(alpha_bar_s) * (1 - of_y * sqrt(a)), of_y, eta * sqrt((1 - a) * v_s / v_t)


def reverse_step(j: Jump, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """`ddim` for the jumps: c0, cy and sigma, each [B]."""
    return ddim(j.alpha_bar_t, j.alpha_bar_s, eta)


@dataclass(frozen=True)
class Target:
    """What the network predicts of y_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, as linear forms in alpha_bar.

    target: coefficients (of z_0, of eps) that make the training target;
    x0: coefficients (of y_t, of the prediction) that read z_0 back out of it;
    eps: the same for eps;
    min_snr: the loss weight from SNR = abar_t/(1 - abar_t) and gamma (Hang et al., 2023: min-SNR-gamma).
    """

    target: Callable[[Tensor], tuple[Tensor, Tensor]]
    x0: Callable[[Tensor], tuple[Tensor, Tensor]]
    eps: Callable[[Tensor], tuple[Tensor, Tensor]]
    min_snr: Callable[[Tensor, float], Tensor]


def _zero_one(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(x), torch.ones_like(x)


def _one_zero(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(x), torch.zeros_like(x)


TARGETS: dict[str, Target] = {
    # z_0 = (y_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
    "eps": Target(
        target=_zero_one,
        x0=lambda x: (1 / x.sqrt(), -(1 - x).sqrt() / x.sqrt()),
        eps=_zero_one,
        min_snr=lambda snr, gamma: (gamma / snr).clamp(max=1),
    ),
    # eps = (y_t - sqrt(abar_t) z_0) / sqrt(1 - abar_t)
    "x0": Target(
        target=_one_zero,
        x0=_zero_one,
        eps=lambda x: (1 / (1 - x).sqrt(), -x.sqrt() / (1 - x).sqrt()),
        min_snr=lambda snr, gamma: snr.clamp(max=gamma),
    ),
    # v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0 (Salimans and Ho, 2022)
    "v": Target(
        target=lambda x: (-(1 - x).sqrt(), x.sqrt()),
        x0=lambda x: (x.sqrt(), -(1 - x).sqrt()),
        eps=lambda x: ((1 - x).sqrt(), x.sqrt()),
        min_snr=lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1),
    ),
}
