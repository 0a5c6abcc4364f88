"""The diffusion process: all formulas of q, its posterior and the predictions, as coefficients.

Every step is a linear combination, so each formula here returns the coefficients of its terms, in float64 and per
sample; mmfast.ops applies them in one pass. Symbols (docs/how-it-works.md): abar_t is the product of the a_t, W_t are
the cumulative weights, m_t = sum_i W_t^(i) E_i(x_i), and y_t = z_t - m_t is the ordinary DDPM variable.
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
    """Like check_kind, but also check the values of a tensor on the host. Reading one on a GPU would wait for it."""
    check_kind(name, t, low, high)
    if isinstance(t, Tensor) and t.numel() and readable(t):
        least, most = t.aminmax()
        if int(least) < low or int(most) > high:
            raise MmfastError(f"{name} runs from {int(least)} to {int(most)}; it should lie in {low} .. {high}")


def readable(*times: Time) -> bool:
    """Whether the values can be read without waiting for a GPU."""
    on_host = all(not isinstance(time, Tensor) or time.device.type == "cpu" for time in times)
    return on_host and not torch.compiler.is_compiling()


def rows(table: Tensor, t: Time) -> Tensor:
    """The rows of a table [T + 1, ...] at t: [B, ...], or [1, ...] for an int. Raises MmfastError for an invalid t."""
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
    """The schedule at a jump t -> s, s < t, in float64: alpha_bar as [B] and weights as [B, N] (B is 1 for ints).

    a = a_{t|s} = abar_t / abar_s and w = w_{t|s} = W_t / sqrt(a_{t|s}) - W_s.
    """

    alpha_bar_t: Tensor
    alpha_bar_s: Tensor
    W_t: Tensor
    W_s: Tensor

    @property
    def a(self) -> Tensor:
        return self.alpha_bar_t / self.alpha_bar_s

    def of(self, columns: list[int]) -> Jump:
        """The same jump with only these columns of the weights."""
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
    """The jumps t[b, i] -> s[b, i] of the individual blocks, a row for each (b, i); t, s: int64 [B, 1 + M], s <= t.

    columns: the columns of W for the M encodings. Block 0 is z0's and has weight 0, so the weights are [B (1 + M), 1].
    If s equals t, a formula may be 0/0.
    """
    table, none = schedule.W, torch.zeros_like(schedule.alpha_bar)
    W = torch.stack([none, *(table[:, k] for k in columns)], 1)  # slices; indexing by a list would wait for a GPU
    abar_t, abar_s = (schedule.alpha_bar.take(x).reshape(-1) for x in (t, s))
    return Jump(abar_t, abar_s, *(W.gather(0, x).reshape(-1, 1) for x in (t, s)))


def marginal(schedule: Schedule, t: Time) -> tuple[Tensor, Tensor, Tensor]:
    """q(z_t | z_0, X) = N(sqrt(abar_t) z_0 + m_t, (1 - abar_t) I).

    Returns the coefficients of z_0 [B] and of the encodings, W_t [B, N], and sigma [B], the scale of the noise.
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
    """The same mean from z_0, the form in which z_0 can be clamped: c0 z_0 + cy (z_t - m_t) + m_s.

    c0 = sqrt(abar_s)(1 - a)/(1 - abar_t), cy = sqrt(a)(1 - abar_s)/(1 - abar_t). Returns c0 [B], the coefficient cy of
    z_t [B], and the coefficients W_s - cy W_t of the encodings [B, N].
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
    """The step of DDIM (Song et al., 2021): y_s = c0 z0hat + cy y_t + sigma eps'; eta = 1 is DDPM's ancestral step.

    sigma = eta sqrt(posterior variance), cy = sqrt((1 - abar_s - sigma^2) / (1 - abar_t)), c0 = sqrt(abar_s) - cy
    sqrt(abar_t). Returns c0, cy and sigma. alpha_bar_t and alpha_bar_s are tensors, or floats with `sqrt` for floats.
    """
    a, v_t, v_s = alpha_bar_t / alpha_bar_s, 1 - alpha_bar_t, 1 - alpha_bar_s
    # Substituting v_t = (1 - a) + a v_s into 1 - abar_s - sigma^2 leaves only sums of positive numbers.
    of_y = sqrt(v_s * ((1 - eta**2) * (1 - a) + a * v_s)) / v_t
    return sqrt(alpha_bar_s) * (1 - of_y * sqrt(a)), of_y, eta * sqrt((1 - a) * v_s / v_t)


def reverse_step(j: Jump, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """`ddim` for the jumps: c0, cy and sigma, each [B]."""
    return ddim(j.alpha_bar_t, j.alpha_bar_s, eta)


@dataclass(frozen=True)
class Target:
    """What the network predicts about y_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, as functions of alpha_bar.

    target: the coefficients (of z_0, of eps) of the training target;
    x0: the coefficients (of y_t, of the prediction) that recover z_0;
    eps: the coefficients (of y_t, of the prediction) that recover eps;
    min_snr: the loss weight from SNR = abar_t/(1 - abar_t) and gamma (min-SNR-gamma, Hang et al., 2023).
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
