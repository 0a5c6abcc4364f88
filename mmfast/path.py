"""The path of sampling: every block's time at every step, and the coefficients of the steps, made before the loop.

In own channels the block of modality i is W_i(t_i) E_i + sqrt(1 - abar(t_i)) eps_i, at a time t_i of its own, and every
step rule holds block by block (docs/reading-and-telling.md). One clock u runs down to 0 and each block follows it,

    t_i = min(max(u - lead_i, 0), T),    u from T + the largest lead down to 0,

lead_i >= 0 the timesteps by which block i is ahead of the last. A block thus waits at T until its turn comes, and is
decided at 0, where it stays. Without offsets there is no lead: the diagonal, t_i = u for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfast import ops
from mmfast.errors import MmfastError, unknown
from mmfast.model import Model
from mmfast.process import TARGETS
from mmfast.samplers import AlphaBar, StepCoefficients, StepRule, check_share


def check_offset(model: Model, offset: Mapping[str, float], what: str = "offset") -> None:
    """Raise MmfastError, which calls it `what`, for offsets that this model's modalities cannot have."""
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
    """By how many timesteps the anchor and each modality are ahead of the last block, 0 .. 2 T.

    offset: checked; known: those that are given, or unknown to the end. They go with the last block, as does what
    leaves no trace. Where nothing would move between two blocks, since what lies between them is given, the later one
    does not wait for that: two blocks in a row are at most T apart.
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
    """A path and its coefficients; those of the loop's float32 work are on the device.

    Attributes:
        times: at each value of the clock, the times of the anchor and of every modality.
        clock: the same, int64 [steps + 1, 1 + N].
        tables: a row for each step. Terms: z_t, whole or by its blocks, the network's predictions of the anchor, the
            encodings, those of the step before (if `extrapolates`), and the last z0hat; coefs have one more, z0hat's.
        levels: the first channel of every block where each has a time of its own: z_t then comes by its blocks, and
            sigma is [steps, L]. () on the diagonal.
        extrapolates: whether a step takes the last step's predictions, too.
        W_T: the weights at the path's start, float64 [M], of what leaves a trace.
    """

    times: list[list[int]]
    clock: Tensor
    tables: ops.Tables
    levels: tuple[int, ...]
    extrapolates: bool
    W_T: Tensor

    def with_truth(self, i: int, predictions: int) -> Tensor:
        """coefs [1, K] of step i where the anchor is given: without the columns of the network's predictions of it."""
        row, first = self.tables.coefs[i], len(self.levels) or 1
        return torch.cat((row[:first], row[first + predictions :]))[None]


def plan(
    model: Model, grid: Sequence[int], ahead: Mapping[str, int], rule: StepRule, eta: float, scales: Sequence[float]
) -> Plan:
    """The path of a clock through `grid`, from T + the largest lead down to 0, with the leads of `leads`.

    scales: of guidance, one for each modality that the network is also asked without.
    """
    schedule, alpha_bar = model.schedule, model.schedule.alpha_bar.cpu()  # once: what is read of a GPU waits for it
    abar = alpha_bar.tolist().__getitem__
    names = (model.anchor_name, *model.names)
    times = [[min(max(u - ahead[name], 0), schedule.T) for name in names] for u in grid]
    blocks = [names.index(name) for name in (model.anchor_name, *model.traced)]
    W = schedule.W.cpu()[:, schedule.index(model.traced)].tolist()
    apart = any(ahead.values())
    # The network's prediction of the anchor, and those that are not told of a modality: guidance is linear.
    predictions = [1 + sum(scale - 1 for scale in scales), *(1 - scale for scale in scales)]
    none = [0.0] * len(predictions)
    jumps = [_jump(rule, abar, times, i, eta) for i in range(len(grid) - 1)]
    extrapolates = any(step.of_last for steps in jumps for step in steps)
    to_z0, of_step, sigma = [], [], []
    for (t, s), every in zip(itertools.pairwise(times), jumps, strict=True):
        steps = [every[k] for k in blocks]
        of_y, of_prediction = (float(c) for c in TARGETS[model.target].x0(alpha_bar[t[0]]))
        # z_s = of_y (z_t - m_t) + m_s + of_last z0hat_last + of_z0 z0hat + sigma noise, in which the encodings are
        # extrapolated as z0hat is: (1 + r) E - r E_last. Without that a rule of second order would be of the first.
        weights, of_before, of_m = [], [], []
        for column, (k, step) in enumerate(zip(blocks[1:], steps[1:], strict=True)):
            W_t, W_s = W[t[k]][column], W[s[k]][column]
            r, w = step.of_last / (step.of_z0 + step.of_last) if step.of_last else 0.0, W_s - step.of_y * W_t
            weights.append(w * (1 - r))
            of_before.append(w * r)
            of_m.append(-of_y * W_t)
        of_before = of_before if extrapolates else []
        own = [step.of_y for step in (steps if apart else steps[:1])]
        from_z = [of_y, *[0.0] * (len(own) - 1), *(p * of_prediction for p in predictions), *of_m]
        to_z0.append([*from_z, *[0.0] * len(of_before), 0.0])
        of_step.append([*own, *none, *weights, *of_before, steps[0].of_last, steps[0].of_z0])
        sigma.append([step.sigma for step in steps] if apart else steps[0].sigma)
    like: dict[str, Any] = {"dtype": torch.float32, "device": schedule.alpha_bar.device}
    tables = ops.Tables(*(torch.tensor(x, **like) for x in (of_step, sigma, to_z0)))
    levels = (0, *(model.starts[name] for name in model.traced)) if apart else ()
    clock = torch.tensor(times, device=schedule.alpha_bar.device)
    W_T = torch.tensor([W[times[0][k]][column] for column, k in enumerate(blocks[1:])], dtype=torch.float64)
    return Plan(times, clock, tables, levels, extrapolates, W_T.to(clock.device))


def _jump(rule: StepRule, abar: AlphaBar, times: list[list[int]], i: int, eta: float) -> list[StepCoefficients]:
    """The coefficients of step i for the anchor and every modality, each by its own times; as it is where it waits."""
    now, then, before = times[i], times[i + 1], times[i - 1] if i else times[0]
    # What has just been decided is told from here on. The predictions before it knew less, so a rule of several steps
    # begins anew: extrapolated over that jump, it would be of the first order.
    decided = any(t == 0 < last for t, last in zip(now, before, strict=True))
    moves = [(t, s, None if decided or last == t else last) for t, s, last in zip(now, then, before, strict=True)]
    made = {move: rule(abar, *move, eta) for move in dict.fromkeys(moves) if move[1] < move[0]}
    return [made.get(move, StepCoefficients(of_z0=0.0, of_y=1.0)) for move in moves]
