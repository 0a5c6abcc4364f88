"""The sampling path: each block's time at each step, and the coefficients of the steps, computed before the loop.

In own channels the block of modality i is W_i(t_i) E_i + sqrt(1 - abar(t_i)) eps_i, with its own time t_i, and every
step rule holds block by block (docs/reading-and-telling.md). A clock u runs down to 0, and each block follows it:

    t_i = min(max(u - lead_i, 0), T),    u from T + the largest lead down to 0,

where lead_i >= 0 is the number of timesteps by which block i is ahead of the last block. A block thus waits at T until
its turn comes, and stays at 0 once it is decided. Without offsets no block leads: on this diagonal, t_i = u for all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfast import ops
from mmfast.errors import MmfastError, unknown
from mmfast.model import Model
from mmfast.process import TARGETS
from mmfast.samplers import PAST, AlphaBar, StepCoefficients, StepRule, check_share


def check_offset(model: Model, offset: Mapping[str, float], what: str = "offset") -> None:
    """Raise MmfastError, naming the argument `what`, for offsets that this model's modalities cannot have."""
    if not isinstance(offset, Mapping):
        raise MmfastError(
            f"{what} is {offset!r}; it should be a dict from modality to a share of T, as {{'mask': 0.2}}"
        )
    if offset and (model.space == "shared" or not model.told):
        raise MmfastError(f"{what} is {dict(offset)}, but z_t has one time; it needs a model with space=own and told")
    for name, share in offset.items():
        if name == model.anchor_name:
            raise MmfastError(f"{what} has {name}, the anchor, from whose time the others' are counted; leave it out")
        if name not in model.names:
            raise unknown(f"{what}'s modality", name, model.traced)
        if model.part(name).derived:
            raise MmfastError(f"{what} has {name}, which is made from another modality; leave it out")
        if name not in model.traced:
            raise MmfastError(
                f"{what} has {name}, which leaves no trace in z_t (weight none) and so has no time; use `first`, which "
                "draws it before the rest"
            )
        check_share(f"{what}[{name!r}]", share)


def leads(model: Model, offset: Mapping[str, float], known: Collection[str]) -> dict[str, int]:
    """The number of timesteps by which the anchor and each modality are ahead of the last block, 0 .. 2 T.

    offset: already checked; known: modalities that are given, or stay unknown to the end. These, and modalities without
    a trace in z_t, move with the last block. Two successive blocks are at most T apart: if nothing would move between
    them because the block between them is given, the later one does not wait.
    """
    own = [name for name in (model.anchor_name, *model.traced) if name not in known]
    shares = {name: offset.get(name, 0.0) for name in own}
    found, ahead = dict.fromkeys((model.anchor_name, *model.names), 0), 0.0
    last = min(shares.values(), default=0.0)
    for name in sorted(own, key=shares.__getitem__):
        ahead += min(shares[name] - last, 1.0)
        last = shares[name]
        found[name] = round(ahead * model.schedule.T)
    return found


@dataclass(frozen=True)
class Plan:
    """A path and its coefficients. Those that the loop uses in float32 are on the device.

    Attributes:
        times: for each value of the clock, the times of the anchor and of every modality.
        clock: the same, int64 [steps + 1, 1 + N].
        evaluations: of the network; each is a step k of the path, from times[k] to times[k + 1], and whether it
            corrects: the network is then evaluated at times[k + 1], and the step is taken again.
        tables: a row for each evaluation. Terms: z where the network is evaluated, whole or by its blocks; z_t where
            the step starts, likewise (if any evaluation corrects); the network's predictions of the anchor; the
            encodings, then those of the `depth` previous steps; z0hat of these previous steps. coefs has one more
            column, that of z0hat.
        levels: the first channel of each block if the blocks have their own times; z_t is then given by its blocks,
            and sigma is [evaluations, L]. () on the diagonal.
        depth: the number of previous steps whose predictions a step uses.
        W_T: the weights at the start of the path, float64 [M], of the modalities with a trace in z_t.
    """

    times: list[list[int]]
    clock: Tensor
    evaluations: list[tuple[int, bool]]
    tables: ops.Tables
    levels: tuple[int, ...]
    depth: int
    W_T: Tensor

    @property
    def corrects(self) -> bool:
        """Whether any step is taken twice."""
        return any(again for _, again in self.evaluations)

    def of_step(self, k: int) -> list[int]:
        """The evaluations of step k: rows of the tables."""
        return [i for i, (step, _) in enumerate(self.evaluations) if step == k]

    def with_truth(self, i: int, predictions: int) -> Tensor:
        """coefs [1, K] of row i for a given anchor: without the columns of the network's predictions of it."""
        row, first = self.tables.coefs[i], (len(self.levels) or 1) * (2 if self.corrects else 1)
        return torch.cat((row[:first], row[first + predictions :]))[None]


def plan(
    model: Model, grid: Sequence[int], ahead: Mapping[str, int], rule: StepRule, eta: float, scales: Sequence[float]
) -> Plan:
    """The path of a clock through `grid`, from T + the largest lead down to 0. ahead: the result of `leads`.

    scales: the guidance scales, one for each modality without which the network is also evaluated.
    """
    schedule, alpha_bar = model.schedule, model.schedule.alpha_bar.cpu()  # once, since it waits for a GPU
    abar = alpha_bar.tolist().__getitem__
    names = (model.anchor_name, *model.names)
    times = [[min(max(u - ahead[name], 0), schedule.T) for name in names] for u in grid]
    blocks = [names.index(name) for name in (model.anchor_name, *model.traced)]
    W = schedule.W.cpu()[:, schedule.index(model.traced)].tolist()
    apart = any(ahead.values())
    # Guidance is linear in the network's prediction of the anchor and those that are not told one of the modalities.
    predictions = [1 + sum(scale - 1 for scale in scales), *(1 - scale for scale in scales)]
    jumps = [(k, n > 0, step) for k in range(len(grid) - 1) for n, step in enumerate(_jump(rule, abar, times, k, eta))]
    twice = any(again for _, again, _ in jumps)
    depth = max(len(step.of_past) for _, _, steps in jumps for step in steps)
    to_z0, of_step, sigma = [], [], []
    for k, again, every in jumps:
        t, s, asked = times[k], times[k + 1], times[k + again]
        steps = [every[block] for block in blocks]
        of_y, of_prediction = (float(c) for c in TARGETS[model.target].x0(alpha_bar[asked[0]]))
        # z_s = of_y (z_t - m_t) + m_s + of_past z0hats + of_z0 z0hat + sigma noise. The encodings are mixed like the
        # z0hats; otherwise a second-order rule would be of first order.
        of_E: list[list[float]] = []
        for column, (block, step) in enumerate(zip(blocks[1:], steps[1:], strict=True)):
            past = [*step.of_past, *[0.0] * (depth - len(step.of_past))]
            shares = [c / (step.of_z0 + sum(past)) if c else 0.0 for c in past]
            w = W[s[block]][column] - step.of_y * W[t[block]][column]
            of_E.append([w * share for share in (1 - sum(shares), *shares)])
        of_m = [-of_y * W[asked[block]][column] for column, block in enumerate(blocks[1:])]
        own = [step.of_y for step in (steps if apart else steps[:1])]
        none = [0.0] * len(own)
        of_z = [*none, *own] if again else [*own, *(none if twice else [])]
        of_z0s = [*steps[0].of_past, *[0.0] * (depth - len(steps[0].of_past)), steps[0].of_z0]
        of_E_by_age = [of_one[age] for age in range(depth + 1) for of_one in of_E]
        from_z = [of_y, *[0.0] * (len(of_z) - 1), *(p * of_prediction for p in predictions), *of_m]
        to_z0.append([*from_z, *[0.0] * (depth * len(of_m) + depth)])
        of_step.append([*of_z, *[0.0] * len(predictions), *of_E_by_age, *of_z0s])
        sigma.append([step.sigma for step in steps] if apart else steps[0].sigma)
    like: dict[str, Any] = {"dtype": torch.float32, "device": schedule.alpha_bar.device}
    tables = ops.Tables(*(torch.tensor(x, **like) for x in (of_step, sigma, to_z0)))
    levels = (0, *(model.starts[name] for name in model.traced)) if apart else ()
    clock = torch.tensor(times, device=schedule.alpha_bar.device)
    W_T = torch.tensor([W[times[0][k]][column] for column, k in enumerate(blocks[1:])], dtype=torch.float64)
    evaluations = [(k, again) for k, again, _ in jumps]
    return Plan(times, clock, evaluations, tables, levels, depth, W_T.to(clock.device))


def _jump(rule: StepRule, abar: AlphaBar, times: list[list[int]], i: int, eta: float) -> list[list[StepCoefficients]]:
    """Step i's coefficients for the anchor and every modality, each at its own times; then the correction's, if any."""
    waits = StepCoefficients(of_z0=0.0, of_y=1.0)
    moves = list(zip(times[i], times[i + 1], _past(times, i), strict=True))
    made = {move: rule(abar, *move, eta) for move in dict.fromkeys(moves) if move[1] < move[0]}
    steps = [made.get(move, waits) for move in moves]
    again = [step.corrected or waits for step in steps]
    decides = any(s == 0 < t for t, s, _ in moves)
    return [steps] if decides or not all(step.corrected for step in made.values()) else [steps, again]


def _past(times: list[list[int]], i: int) -> list[tuple[int, ...]]:
    """For the anchor and every modality, its times in the steps before step i that a rule may extrapolate from.

    They exclude steps before a modality was decided: the network is told it from then on, so earlier predictions knew
    less, and extrapolating over that jump would make a rule first order. They also exclude steps in which the modality
    itself waited.
    """
    past: list[tuple[int, ...]] = [() for _ in times[i]]
    for j in range(i, max(i - PAST, 0), -1):
        now, before = times[j], times[j - 1]
        if any(t == 0 < last for t, last in zip(now, before, strict=True)):
            break
        past = [
            (*known, last) if len(known) == i - j and last != t else known
            for known, t, last in zip(past, now, before, strict=True)
        ]
    return past
