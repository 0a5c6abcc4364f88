"""The schedule: alpha_bar(t) and the modality weights W_i(t), from which everything else is derived.

Both are float64 tables from t = 0 (data) to t = T. The coefficients that the ops read are computed from them in float64
(process.py) and stored as float32, or as float64 for float64 tensors.
"""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.errors import MmfastError, unknown


def _none(alpha_bar: Tensor) -> Tensor:
    """W_t = 0: the modality leaves no mark in z_t."""
    return torch.zeros_like(alpha_bar)


def _carried(alpha_bar: Tensor) -> Tensor:
    """W_t = sqrt(abar_t): the modality is diffused like the anchor (own channels only, since W_0 = 1)."""
    return alpha_bar.sqrt()


def _bridge(alpha_bar: Tensor) -> Tensor:
    """W_t = 4 sqrt(abar_t) (1 - sqrt(abar_t)): zero at both ends, at most 1."""
    return 4 * alpha_bar.sqrt() * (1 - alpha_bar.sqrt())


def _shift(alpha_bar: Tensor) -> Tensor:
    """W_t = 1 - sqrt(abar_t): z_T is centred on the modality, for translation from a known source."""
    return 1 - alpha_bar.sqrt()


def _constant(alpha_bar: Tensor) -> Tensor:
    """w_t = 1, the paper's literal form: W_t = sqrt(a_t) (W_{t-1} + 1), W_0 = 0."""
    W = torch.zeros_like(alpha_bar)
    for t in range(1, len(alpha_bar)):
        W[t] = torch.sqrt(alpha_bar[t] / alpha_bar[t - 1]) * (W[t - 1] + 1)
    return W


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _none,
    "carried": _carried,
    "bridge": _bridge,
    "shift": _shift,
    "constant": _constant,
}


@dataclass(frozen=True)
class Weight:
    """A modality's cumulative weight W(t) = scale * kind(abar(t)).

    kind: "none", "carried", "bridge", "shift" or "constant".
    """

    kind: str = "carried"
    scale: float = 1.0

    def __call__(self, alpha_bar: Tensor) -> Tensor:
        """alpha_bar: float64 [T + 1] -> W: float64 [T + 1]."""
        if self.kind not in KINDS:
            raise unknown("weight kind", self.kind, KINDS)
        return self.scale * KINDS[self.kind](alpha_bar)


def none() -> Weight:
    """W_t = 0: the modality leaves no trace in z_t."""
    return Weight("none")


def carried(scale: float = 1.0) -> Weight:
    """W_t = scale sqrt(abar_t), starting at W_0 = scale: for own channels only."""
    return Weight("carried", scale)


def bridge(scale: float = 1.0) -> Weight:
    """W_t = 4 scale sqrt(abar_t) (1 - sqrt(abar_t)): zero at both ends, with a peak of `scale` between."""
    return Weight("bridge", scale)


def shift(scale: float = 1.0) -> Weight:
    """W_t = scale (1 - sqrt(abar_t)): for translation from a source that is always given."""
    return Weight("shift", scale)


def constant(scale: float = 1.0) -> Weight:
    """w_t = scale at every step, the paper's literal form. W_T is then large, about which Schedule warns."""
    return Weight("constant", scale)


# What a user may give as a modality's W: a Weight, any function of alpha_bar, or its table [T + 1].
WeightLike = Weight | Callable[[Tensor], Tensor] | Tensor


class Schedule(nn.Module):
    """alpha_bar and the weights W of N modalities at t = 0 .. T.

    Args:
        alpha_bar: a tensor [T + 1] (or a list), decreasing at every step from alpha_bar[0] = 1 to alpha_bar[T] >= 0.
        weights: a dict from modality name to W: `mmfast.bridge(2.0)`, any function alpha_bar -> W, or a table [T + 1].

    Attributes:
        alpha_bar: float64 [T + 1].
        W: float64 [T + 1, N], columns in the order of `names`.
        names: the modalities' names.
        T: the number of steps.

    If alpha_bar[T] = 0 (zero terminal SNR), z_T contains no information about z_0, and a prediction of eps does not
    determine z_0 at T: the ops' steps from T are NaN. Predict v or x0, as `mmfast.model.Model` requires.

    Do not change the tables in place: the ops cache values that are derived from them.

    Warns, stating L0 in nats per dimension, if z_T is far from N(0, I) for encodings of unit RMS.
    Raises MmfastError (a ValueError) for tables of the wrong shape or range.
    """

    # Above this L0, samples from N(0, I) visibly mismatch the true distribution of z_T.
    L0_WARNING = 0.01

    def __init__(self, alpha_bar: Tensor | list[float], weights: Mapping[str, WeightLike] | None = None) -> None:
        super().__init__()
        table = _table("alpha_bar", alpha_bar)
        _check_alpha_bar(table)
        if weights is not None and not isinstance(weights, Mapping):
            raise MmfastError(f"weights is a {type(weights).__name__}; it should be a dict from modality to W")
        self.T = len(table) - 1
        self.names: tuple[str, ...] = tuple(weights or {})
        columns = [_weight_table(name, w, table) for name, w in (weights or {}).items()]
        W = torch.stack(columns, 1) if columns else table.new_zeros(self.T + 1, 0)
        self.alpha_bar: Tensor
        self.W: Tensor
        self.register_buffer("alpha_bar", table, persistent=False)
        self.register_buffer("W", W, persistent=False)
        # A cache of what the ops derive from the tables: mmfast/ops/tables.py.
        self.derived: dict[Any, Any] = {}
        self._warn_if_far_from_prior()

    @classmethod
    def linear(
        cls,
        T: int = 1000,
        weights: Mapping[str, WeightLike] | None = None,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> Schedule:
        """A linear schedule: 1 - a_t rises from beta_start to beta_end over T steps (Ho et al., 2020)."""
        _check_steps(T := as_int(T))
        betas = torch.linspace(beta_start, beta_end, T, dtype=torch.float64, device="cpu")
        alpha_bar = _cumulative(1 - betas)
        stays = alpha_bar[1:] >= alpha_bar[:-1]
        if 0 < beta_start <= beta_end < 1 and bool(stays.any()):
            raise MmfastError(
                f"T is {T}; from t = {int(stays.nonzero()[0])} on the linear schedule's alpha_bar is too small for "
                "float64: take a smaller T, or the cosine schedule"
            )
        return cls(alpha_bar, weights)

    @classmethod
    def cosine(
        cls,
        T: int = 1000,
        weights: Mapping[str, WeightLike] | None = None,
        offset: float = 0.008,
        max_beta: float = 0.999,
    ) -> Schedule:
        """The cosine schedule (Nichol and Dhariwal, 2021).

        abar_t ~ cos^2(pi/2 (t/T + offset)/(1 + offset)), with 1 - a_t <= max_beta.
        """
        _check_steps(T := as_int(T))
        time = torch.arange(T + 1, dtype=torch.float64, device="cpu") / T
        f = torch.cos((time + offset) / (1 + offset) * (math.pi / 2)) ** 2
        return cls(_cumulative((f[1:] / f[:-1]).clamp(min=1 - max_beta)), weights)

    def index(self, names: tuple[str, ...]) -> list[int]:
        """The columns of W for these modalities. Raises MmfastError for one that the schedule does not have."""
        for name in names:
            if name not in self.names:
                raise unknown("modality", name, self.names)
        return [self.names.index(name) for name in names]

    def prior_divergence(self) -> float:
        """L0 = KL(q(z_T | z_0, X) || N(0, 1)) in nats per dimension, for data and encodings of unit RMS.

        1/2 (v + abar_T + sum_i W_T^(i)^2 - 1 - ln v) with v = 1 - abar_T, assuming that z_0 and the encodings are
        uncorrelated; infinite if v = 0. loss.L0 is the exact L0 of an example.
        """
        v = 1 - float(self.alpha_bar[-1])
        mean_square = float(self.alpha_bar[-1] + self.W[-1].square().sum())
        return 0.5 * (v + mean_square - 1 - math.log(v)) if v > 0 else math.inf

    def _warn_if_far_from_prior(self) -> None:
        nats = self.prior_divergence()
        if nats > self.L0_WARNING:
            W = ", ".join(f"{name} {float(w):.3g}" for name, w in zip(self.names, self.W[-1], strict=True))
            warnings.warn(
                f"z_T is far from N(0, I): L0 is {nats:.3g} nats a dimension (alpha_bar_T = "
                f"{float(self.alpha_bar[-1]):.3g}; W_T: {W or 'none'}), so samples drawn from N(0, I) start off "
                "the training distribution; use more steps or a bounded weight (carried, bridge), or always "
                "give the modalities whose W_T is large",
                stacklevel=_depth_of_caller(),
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Schedule:
        # A cast (.half(), .to(bfloat16)) must not change the tables: 1 - abar in half precision is wrong. So only the
        # device that fn moves to is used.
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer.new_empty(0)).device)
        self.derived = {}
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A copy derives its own tables: the cache's keys are objects that are not identical in the copy.
        return {**self.__dict__, "derived": {}}

    def extra_repr(self) -> str:
        return f"T={self.T}, modalities={list(self.names)}"


def _table(name: str, values: Any) -> Tensor:
    """Copy numbers to a float64 tensor on the host, whatever the default device."""
    try:
        return torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise MmfastError(f"{name} is a {type(values).__name__}; it should be a table of numbers [T + 1]") from None


def _depth_of_caller() -> int:
    """The stacklevel, seen from the calling function, of the first frame outside this file."""
    frame, depth = sys._getframe(1), 1
    while frame is not None and frame.f_code.co_filename == __file__:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    return depth


def _cumulative(a: Tensor) -> Tensor:
    """a_1..a_T -> abar_0..abar_T."""
    return torch.cat((a.new_ones(1), a.cumprod(0)))


# A limit, because a schedule's tables, and those that the ops derive from them, have a row for each step.
MOST_STEPS = 100_000


def as_int(x: Any) -> Any:
    """Convert a whole number of another type, such as numpy's, to an int; return anything else unchanged."""
    # Test for int first, since a compiler cannot trace abstract classes.
    return x if isinstance(x, (int, Tensor)) or not isinstance(x, numbers.Integral) else int(x)


def _check_steps(T: Any) -> None:
    if not isinstance(T, int) or isinstance(T, bool) or not 1 <= T <= MOST_STEPS:
        raise MmfastError(f"T is {T!r}; it should be a positive whole number of steps, at most {MOST_STEPS}")


def _check_alpha_bar(table: Tensor) -> None:
    if table.dim() != 1 or len(table) < 2:
        raise MmfastError(f"alpha_bar has shape {list(table.shape)}; it should be [T + 1], from t = 0 to T >= 1")
    if not bool(torch.isfinite(table).all()) or bool((table < 0).any()) or bool((table > 1).any()):
        raise MmfastError("alpha_bar holds values that are NaN or outside 0 .. 1; it should fall from 1 to 0")
    if float(table[0]) != 1.0:
        raise MmfastError(f"alpha_bar[0] is {float(table[0])}; it should be 1, since t = 0 is data")
    if bool((table[1:] >= table[:-1]).any()):
        raise MmfastError("alpha_bar does not fall somewhere; every step from t = 0 to T should bring it down")


def _weight_table(name: str, weight: WeightLike, alpha_bar: Tensor) -> Tensor:
    if not (callable(weight) or isinstance(weight, (Tensor, list, tuple))):
        raise MmfastError(
            f"weights[{name!r}] is {weight!r}; it should be a Weight such as mmfast.bridge(2.0), a function of "
            "alpha_bar, or a table [T + 1]"
        )
    table = _table(f"weights[{name!r}]", weight(alpha_bar) if callable(weight) else weight)
    if table.shape != alpha_bar.shape:
        raise MmfastError(f"weights[{name!r}] has shape {list(table.shape)}; it should be [T + 1] = [{len(alpha_bar)}]")
    if not bool(torch.isfinite(table).all()):
        raise MmfastError(f"weights[{name!r}] holds NaN or infinite values; W(t) should be finite at every t")
    return table
