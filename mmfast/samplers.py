"""The samplers' step rules, which are pure functions of the schedule and need no model; and the grid of times.

A rule takes the ordinary DDPM variable y_t = z_t - m_t from time t to s < t. y_s is a linear combination of y_t, the
predicted z_0, that of previous steps, and noise, so a rule is a few coefficients. To add your own, put a function in
SAMPLERS:

    SAMPLERS["euler"] = euler    # then sample(model, sampler="euler"), or sample.sampler: euler in a config
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from mmfast import process
from mmfast.errors import MmfastError

AlphaBar = Callable[[int], float]

PAST = 3  # the number of previous steps whose times a rule gets


@dataclass(frozen=True)
class StepCoefficients:
    """y_s = of_z0 z0hat + of_y y_t + of_past[0] z0hat' + of_past[1] z0hat'' + ... + sigma noise.

    z0hat is the network's prediction at t, z0hat' that of the previous step, and z0hat'' that of the step before.

    corrected: the same step again, after the network has also been evaluated at s, on the result of the first attempt.
        z0hat is then the prediction at s, of_past[0] applies to the one at t, and y_t is unchanged. The step that
        brings a modality to time 0 is never corrected.
    """

    of_z0: float
    of_y: float
    sigma: float = 0.0
    of_past: tuple[float, ...] = ()
    corrected: StepCoefficients | None = None


# (alpha_bar, t, s, the times of the steps before t, latest first, eta in 0 .. 1) -> the coefficients from t to s.
StepRule = Callable[[AlphaBar, int, int, tuple[int, ...], float], StepCoefficients]


def ddpm(abar: AlphaBar, t: int, s: int, past: tuple[int, ...], eta: float) -> StepCoefficients:
    """The ancestral step (Ho et al., 2020): the posterior's mean and variance with z0hat in place of z_0."""
    return StepCoefficients(*process.ddim(abar(t), abar(s), 1.0, math.sqrt))


def ddim(abar: AlphaBar, t: int, s: int, past: tuple[int, ...], eta: float) -> StepCoefficients:
    """DDIM (Song et al., 2021): deterministic for eta = 0, with the ancestral step's noise for eta = 1."""
    return StepCoefficients(*process.ddim(abar(t), abar(s), eta, math.sqrt))


def heun(abar: AlphaBar, t: int, s: int, past: tuple[int, ...], eta: float) -> StepCoefficients:
    """Heun's method: DDIM's step with the mean of z0hat at its two ends; second order, two evaluations per step.

    It is the trapezoidal rule in log-SNR, that is DPM-Solver++(2S) with r = 1 (Lu et al., 2022). Karras et al. (2022)
    apply it in sigma = sqrt(1/abar - 1), where a first step from abar near 0 diverges except on their grid.
    """
    first = ddim(abar, t, s, past, eta=0.0)
    half = first.of_z0 / 2
    return replace(first, corrected=StepCoefficients(half, first.of_y, of_past=(half,)))


def dpmpp_2m(abar: AlphaBar, t: int, s: int, past: tuple[int, ...], eta: float) -> StepCoefficients:
    """DPM-Solver++(2M) (Lu et al., 2022): second order, using the previous step's z0hat; first order at both ends.

    Deterministic for eta = 0. For eta = 1 it has the ancestral step's noise and is SDE-DPM-Solver++(2M).
    """
    first = ddim(abar, t, s, past, eta)
    if len(steps := _log_snr_steps(abar, (s, t, *past[:1]))) < 2:
        return first
    # z0hat extrapolated in lambda: (1 + 1/2r) z0hat - (1/2r) z0hat', where r is the ratio of the steps.
    half = steps[0] / steps[1] / 2
    return StepCoefficients(first.of_z0 * (1 + half), first.of_y, first.sigma, of_past=(-first.of_z0 * half,))


def dpmpp_3m(abar: AlphaBar, t: int, s: int, past: tuple[int, ...], eta: float) -> StepCoefficients:
    """DPM-Solver++(3M) (after Lu et al., 2022): third order, using two previous z0hats; lower order at both ends.

    The published code, which diffusers follows, counts the parabola's curvature once where its integral needs it twice,
    which makes it second order, so its steps differ from these. Encodings whose weight is not `carried` are second
    order here too, since they are integrated with z0hat's weights. eta is as in dpmpp_2m.
    """
    first = ddim(abar, t, s, past, eta)
    if len(steps := _log_snr_steps(abar, (s, t, *past[:2]))) < 3:
        return dpmpp_2m(abar, t, s, past, eta)
    r0, r1, signal = steps[1] / steps[0], steps[2] / steps[0], math.sqrt(abar(s))
    h = -math.log1p(-first.of_z0 / signal)  # the step in lambda; with noise, y_t decays as over a longer step
    decay = math.exp(-h)
    # z0hat as a parabola in lambda: its value, slope and half its curvature, each times its integral over the step.
    value, slope = signal * -math.expm1(-h), signal * ((decay - 1) / h + 1)
    curve = signal * (1 - 2 * (decay - 1 + h) / h**2)
    by_r0 = slope * (1 + r0 / (r0 + r1)) + curve / (r0 + r1)  # of (z0hat - z0hat')/r0
    by_r1 = -slope * r0 / (r0 + r1) - curve / (r0 + r1)  # of (z0hat' - z0hat'')/r1
    past_weights = (by_r1 / r1 - by_r0 / r0, -by_r1 / r1)
    return StepCoefficients(value + by_r0 / r0, first.of_y, first.sigma, of_past=past_weights)


def _log_snr_steps(abar: AlphaBar, times: tuple[int, ...]) -> list[float]:
    """The steps in lambda = ln(abar/(1 - abar))/2 between times s < t < t' ..., up to where lambda is infinite."""
    found: list[float] = []
    for low, high in itertools.pairwise(times):
        if low == 0 or abar(high) == 0:
            break
        found.append(sum(sign * 0.5 * math.log(abar(u) / (1 - abar(u))) for sign, u in ((1, low), (-1, high))))
    return found


SAMPLERS: dict[str, StepRule] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
}

# How a modality that is not given enters a step: as its expected encoding, or as the encoding of a sample.
HEADS = ("soft", "sampled")


# The greatest spacing of steps. With more, nearly all of them would be 1 apart.
MOST_SPACING = 10


def timesteps(T: int, steps: int, spacing: float = 1.0) -> list[int]:
    """`steps` + 1 times from T down to 0: T u^spacing for evenly spaced u, at least 1 apart.

    Spacing 1 is even. DDIM's quadratic steps (Song et al., 2021) have 2.
    """
    if not isinstance(steps, int) or not 1 <= steps <= T:
        raise MmfastError(f"steps is {steps}; it should lie in 1 .. {T}, as many timesteps as there are")
    grid = [0]
    for k in range(1, steps + 1):
        even = T * k / steps
        grid.append(max(round(even * (k / steps) ** (spacing - 1)), grid[-1] + 1))
    return grid[::-1]


def check_share(what: str, share: float) -> None:
    """Raise MmfastError, naming the argument `what`, unless `share` is a number between -1 and 1 (exclusive)."""
    number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if not number or not math.isfinite(share) or abs(share) >= 1:
        raise MmfastError(
            f"{what} is {share!r}; it should be a share of T between -1 and 1 (exclusive); to draw one modality wholly "
            "before another use `first`"
        )
