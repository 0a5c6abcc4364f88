"""The samplers' step rules: pure functions of the schedule, without model or network; and the grid of times.

A rule says how the ordinary DDPM variable y_t = z_t - m_t goes from time t to s < t: y_s is a sum of y_t, the predicted
z_0, that of the step before, and noise, so a rule is four coefficients. One of one's own is a function in SAMPLERS:

    SAMPLERS["euler"] = euler    # then sample(model, sampler="euler"), or sample.sampler: euler in a config
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mmfast import process
from mmfast.errors import MmfastError

AlphaBar = Callable[[int], float]


@dataclass(frozen=True)
class StepCoefficients:
    """y_s = of_z0 z0hat + of_y y_t + of_last (the last step's z0hat) + sigma noise."""

    of_z0: float
    of_y: float
    sigma: float = 0.0
    of_last: float = 0.0


# (alpha_bar, t, s, the time before t or None, eta in 0 .. 1) -> the coefficients of the step from t to s.
StepRule = Callable[[AlphaBar, int, int, int | None, float], StepCoefficients]


def ddpm(abar: AlphaBar, t: int, s: int, last: int | None, eta: float) -> StepCoefficients:
    """The ancestral step (Ho et al., 2020): the posterior's mean and variance with z0hat for z_0."""
    return StepCoefficients(*process.ddim(abar(t), abar(s), 1.0, math.sqrt))


def ddim(abar: AlphaBar, t: int, s: int, last: int | None, eta: float) -> StepCoefficients:
    """DDIM (Song et al., 2021): deterministic for eta = 0, the ancestral step's noise for eta = 1."""
    return StepCoefficients(*process.ddim(abar(t), abar(s), eta, math.sqrt))


def dpmpp_2m(abar: AlphaBar, t: int, s: int, last: int | None, eta: float) -> StepCoefficients:
    """DPM-Solver++(2M) (Lu et al., 2022): second order from the last step's z0hat; the ends are first order."""
    first = ddim(abar, t, s, last, eta=0.0)
    if last is None or s == 0 or abar(t) == 0:
        return first

    def log_snr(u: int) -> float:
        return 0.5 * math.log(abar(u) / (1 - abar(u)))

    if abar(last) == 0:
        return first
    # z0hat extrapolated along lambda: (1 + 1/2r) z0hat - (1/2r) z0hat_last, r the ratio of the steps.
    half = (log_snr(s) - log_snr(t)) / (log_snr(t) - log_snr(last)) / 2
    return StepCoefficients(first.of_z0 * (1 + half), first.of_y, 0.0, -first.of_z0 * half)


SAMPLERS: dict[str, StepRule] = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m}

# How a modality that is not given enters a step: as its expected encoding, or as a draw's.
HEADS = ("soft", "sampled")


def timesteps(T: int, steps: int) -> list[int]:
    """`steps` + 1 times from T down to 0, evenly spaced."""
    if not isinstance(steps, int) or not 1 <= steps <= T:
        raise MmfastError(f"steps is {steps}; it should lie in 1 .. {T}, as many timesteps as there are")
    return [round(T * (steps - i) / steps) for i in range(steps + 1)]


def check_share(what: str, share: float) -> None:
    """Raise MmfastError, which calls it `what`, unless this is a number between -1 and 1."""
    number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if not number or not math.isfinite(share) or abs(share) >= 1:
        raise MmfastError(
            f"{what} is {share!r}; it should be a share of T between -1 and 1 (exclusive); to draw one modality wholly "
            "before another use `first`"
        )
