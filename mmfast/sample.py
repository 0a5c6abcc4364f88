"""Sampling: one loop for joint, conditional and marginal generation, with any of the step rules in samplers.py.

In the shift view y_t = z_t - m_t is the ordinary DDPM variable, so a step of any standard sampler is: subtract
m_t, step y, add m_s. With guidance, the conversion to z_0 and the clamp before it, that is one pass of the fused step.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmfast import ops
from mmfast.errors import MmfastError
from mmfast.errors import unknown as unknown_name
from mmfast.model import Model, Prediction
from mmfast.options import PRECISIONS
from mmfast.process import TARGETS
from mmfast.samplers import HEADS, SAMPLERS, StepRule, timesteps
from mmfast.streams import HEAD_NOISE, SAMPLE


@torch.no_grad()
def sample(
    model: Model,
    count: int | None = None,
    given: Mapping[str, Tensor] | None = None,
    *,
    steps: int = 50,
    sampler: str = "ddpm",
    eta: float = 0.0,
    guidance_scale: float | Mapping[str, float] = 1.0,
    clamp: float | None = 1.0,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    heads: str = "soft",
    unknown: Collection[str] = (),
    progress: bool | str = False,
) -> dict[str, Tensor]:
    """Draw examples from z_T ~ N(m_T of what is given, I): all modalities, those given as they are.

    Joint generation gives nothing, conditional generation any subset (the anchor too: then z_t is made anew
    around it, and only the others evolve), marginal generation ignores what it does not want of the result.

    Args:
        count: how many; None for as many as `given` holds.
        given: by name, [count, ...] or [1, ...] for all.
        steps, sampler, eta: how many steps of "ddpm", "ddim" (with eta), "dpmpp_2m" or another of SAMPLERS.
        guidance_scale: 1 for none; one for all that is given, or by name. Each guided modality adds
            (scale - 1) (prediction - prediction without it).
        clamp: hold the predicted z_0 within -clamp .. clamp; None not to.
        seed, sample_ids: the noise's identity; example i is the same in any batch but for rounding.
        precision: the network's arithmetic, "fp32" or "bf16"; the steps themselves are float32 in both.
        heads: what is not given enters a step as its head's expected encoding, "soft", or as a draw's, "sampled".
        unknown: modalities that stay at time T, unknown to the rest: they are read off it at the end, by their heads.
        progress: show a bar, with this text.

    Returns every modality by name, [count, ...], on the model's device.
    """
    given = {name: x.float() if x.is_floating_point() else x for name, x in (given or {}).items()}
    count = _count(model, count, given)
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    grid = timesteps(model.schedule.T, steps)
    device = model.schedule.alpha_bar.device
    ids = torch.arange(count) if sample_ids is None else sample_ids
    if not isinstance(ids, Tensor) or ids.shape != (count,) or ids.dtype != torch.int64:
        raise MmfastError(f"sample_ids is no int64 tensor [{count}]; it should be, with a number for each sample")
    if batch_size < 1:
        raise MmfastError(f"batch_size is {batch_size}; it should be at least 1")
    if clamp is not None and not clamp > 0:
        raise MmfastError(f"clamp is {clamp}; it should be above 0, or None")
    if not 0 <= eta <= 1:
        raise MmfastError(f"eta is {eta}; it should lie in 0 .. 1")
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if heads not in HEADS:
        raise unknown_name("heads", heads, HEADS)
    unknown = [unknown] if isinstance(unknown, str) else unknown
    if unknown and (model.space == "shared" or not model.told):
        raise MmfastError("unknown is given, but the network sees all of z_t; it needs a model with space=own and told")
    for name in unknown:
        if name not in model.names or name in given:
            raise unknown_name("unknown's modality", name, [n for n in model.names if n not in given])
    settings = _Settings(
        SAMPLERS[sampler],
        eta,
        grid,
        _scales(guidance_scale, given),
        clamp,
        seed,
        precision == "bf16",
        heads == "sampled",
        tuple(unknown),
    )
    text = progress if isinstance(progress, str) else "sampling"
    batches = torch.arange(count).split(batch_size)
    bar = tqdm(total=len(batches) * steps, desc=text, unit="step", disable=not progress, leave=False)
    results = []
    training = model.training
    model.eval()
    try:
        with bar:
            for rows in batches:
                part = {name: x.expand(count, *x.shape[1:])[rows].to(device) for name, x in given.items()}
                results.append(_Loop(model, part, settings, ids[rows].to(device)).run(bar))
    finally:
        model.train(training)
    return {name: torch.cat([r[name] for r in results]) for name in results[0]}


@dataclass(frozen=True)
class _Settings:
    step: StepRule
    eta: float
    grid: list[int]
    scales: dict[str, float]
    clamp: float | None
    seed: int
    bf16: bool
    sampled: bool
    unknown: tuple[str, ...]


def _count(model: Model, count: int | None, given: Mapping[str, Tensor]) -> int:
    for name, x in given.items():
        if name not in model.parts:
            raise unknown_name("given modality", name, model.parts)
        model.part(name).check(x.cpu(), f"given[{name!r}]")
        if len(x) != 1 and count is not None and len(x) != count:
            raise MmfastError(f"given[{name!r}] holds {len(x)} examples; it should hold 1 or {count}")
    sizes = {len(x) for x in given.values() if len(x) != 1}
    if len(sizes) > 1:
        raise MmfastError(f"given modalities hold {sorted(sizes)} examples; they should hold one number of them")
    count = count if count is not None else max(sizes, default=1)
    if count < 1:
        raise MmfastError(f"count is {count}; it should be at least 1")
    return count


def _scales(guidance_scale: float | Mapping[str, float], given: Mapping[str, Tensor]) -> dict[str, float]:
    if not isinstance(guidance_scale, Mapping):
        guidance_scale = {name: float(guidance_scale) for name in given}
    for name in guidance_scale:
        if name not in given:
            raise unknown_name("guidance_scale's modality", name, given)
    return {name: scale for name, scale in guidance_scale.items() if scale != 1}


@dataclass
class _Said:
    """A step's predictions: the network's of the anchor, the encodings of all that leaves a trace, and z0hat."""

    anchors: list[Tensor]
    E: dict[str, Tensor]
    z0: Tensor | None = None


class _Loop:
    """The loop over the steps for one batch. All coefficients are on the device before it starts."""

    def __init__(self, model: Model, given: dict[str, Tensor], settings: _Settings, ids: Tensor) -> None:
        self.model, self.given, self.settings, self.ids = model, given, settings, ids
        self.anchor = given.get(model.anchor_name)
        self.truth = model.encode(given)
        self.told = {name: self._tell(without=name) for name in ["", *settings.scales]}
        self._plan(settings.grid)

    def _tell(self, without: str) -> tuple[Tensor, dict[str, Tensor]]:
        """What the network is told when one of what is given is unknown ("": none); and the times, -1 for t."""
        names = (self.model.anchor_name, *self.model.names)
        flags = torch.tensor([[name in self.given and name != without for name in names]], device=self.ids.device)
        left_out = {*self.settings.unknown, *([without] if self._can_be_unknown(without) else [])}
        unknown = [name in left_out for name in names]
        other = torch.tensor([[self.model.schedule.T if x else -1 for x in unknown]], device=flags.device)
        times = self.model.times(other, flags).expand(len(self.ids), -1)
        return times, self.model.tell(self.anchor, self.truth, times)

    def _can_be_unknown(self, name: str) -> bool:
        """Whether training has shown this modality unknown. Else, untold of it, the network sees its block at t.

        The anchor never is: its block of z_t is at t, and is looked at.
        """
        model = self.model
        if not model.told or name not in model.names:
            return False
        return name not in model.time_of or model.part(name).spec.unknown_probability > 0

    def _ask(self, z: Tensor, t: int, without: str = "") -> Prediction:
        """The network's prediction at time t, told of all that is given but one modality."""
        times, told = self.told[without]
        return self.model(z, torch.where(times < 0, t, times), told)

    def _plan(self, grid: list[int]) -> None:
        """The coefficients of every step: rows of the tables that `run` hands to the fused step."""
        model, schedule, settings = self.model, self.model.schedule, self.settings
        alpha_bar = schedule.alpha_bar.cpu()  # once: whatever is read of a GPU waits for it
        abar = alpha_bar.tolist().__getitem__
        W = schedule.W.cpu()[:, schedule.index(model.traced)]
        # The network's prediction of the anchor, and those that are not told of a modality: guidance is linear.
        scales = list(settings.scales.values())
        predictions = [1 + sum(scale - 1 for scale in scales), *(1 - scale for scale in scales)]
        none = [0.0] * len(predictions)
        jumps = list(itertools.pairwise(grid))
        steps = [settings.step(abar, t, s, t0, settings.eta) for (t, s), t0 in zip(jumps, [None, *grid], strict=False)]
        self.extrapolates = any(step.of_last for step in steps)
        to_z0, of_step, sigma = [], [], []
        for (t, s), step in zip(jumps, steps, strict=True):
            of_y, of_prediction = (float(c) for c in TARGETS[model.target].x0(alpha_bar[t]))
            # z_s = of_y (z_t - m_t) + m_s + of_last z0hat_last + of_z0 z0hat + sigma noise, in which the encodings are
            # extrapolated as z0hat is: (1 + r) E - r E_last. Without that a rule of second order would be of the first.
            r, w = step.of_last / (step.of_z0 + step.of_last) if step.of_last else 0.0, W[s] - step.of_y * W[t]
            weights, of_before = w * (1 - r), (w * r).tolist() if self.extrapolates else []
            from_z = [of_y, *(p * of_prediction for p in predictions), *(-of_y * W[t]).tolist()]
            to_z0.append([*from_z, *[0.0] * len(of_before), 0.0])
            of_step.append([step.of_y, *none, *weights.tolist(), *of_before, step.of_last, step.of_z0])
            sigma.append(step.sigma)
        like: dict[str, Any] = {"dtype": torch.float32, "device": self.ids.device}
        self.of_step, self.sigma = (torch.tensor(x, **like) for x in (of_step, sigma))
        self.tables = ops.Tables(self.of_step, self.sigma, torch.tensor(to_z0, **like))
        self.W_T = W[grid[0]].to(self.ids.device)

    def _predict(self, z: Tensor, t: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The network's predictions of the anchor, and its heads pushed away from those that are not told."""
        told = self._ask(z, t)
        anchors, heads = [told.anchor.float()], {name: x.float() for name, x in told.heads.items()}
        guided = dict(heads)
        for name, scale in self.settings.scales.items():
            untold = self._ask(z, t, name)
            anchors.append(untold.anchor.float())
            for head, x in untold.heads.items():
                guided[head] = guided[head] + (scale - 1) * (heads[head] - x.float())
        return anchors, guided

    def _step(self, i: int, z: Tensor, said: _Said, last: _Said | None, s: int) -> tuple[Tensor, Tensor]:
        """z_s and z0hat of step i, in one pass: the anchor is the truth where it is given, else predicted."""
        model, seed = self.model, self.settings.seed
        noise: dict[str, Any] = {"seed": seed, "draw": s, "sample_ids": self.ids, "stream": SAMPLE}
        anchors, last = said.anchors, last or said
        encodings = [*model.terms(said.E).values(), *(model.terms(last.E).values() if self.extrapolates else ())]
        if self.anchor is not None:
            truth = model.anchor_in_space(self.anchor)
            row = self.of_step[i]
            coefs = torch.cat((row[:1], row[1 + len(anchors) :]))[None]
            terms = [z, *encodings, truth, truth]
            return ops.combine(terms, coefs, self.sigma[i : i + 1], **noise), self.anchor
        before = anchors[0] if last.z0 is None else last.z0
        terms = [z, *(model.anchor_in_space(x) for x in anchors), *encodings, model.anchor_in_space(before)]
        channels = (0, model.shape[0]) if isinstance(terms[1], ops.Block) else None
        return ops.step_by_table(terms, self.tables, i, clamp=self.settings.clamp, channels=channels, **noise)

    def _encode(self, name: str, head: Tensor, s: int) -> Tensor:
        part = self.model.part(name)
        if not self.settings.sampled:
            return part.encode_prediction(head)
        draw = s * len(self.model.names) + self.model.names.index(name)
        noise: dict[str, Any] = {
            "seed": self.settings.seed,
            "sample_ids": self.ids,
            "stream": HEAD_NOISE,
            "draw": draw,
        }
        return part.encode(part.draw(head, ops.randn(head.shape, device=head.device, **noise)))

    def run(self, bar: tqdm) -> dict[str, Tensor]:
        model, grid = self.model, self.settings.grid
        noise: dict[str, Any] = {"seed": self.settings.seed, "sample_ids": self.ids, "stream": SAMPLE}
        shape = (len(self.ids), model.channels, *model.shape[1:])
        z = ops.randn(shape, draw=grid[0], device=self.ids.device, **noise)
        if terms := model.terms(self.truth):
            weights = self.W_T[[model.traced.index(name) for name in terms]]
            z = ops.combine([z, *terms.values()], torch.cat((weights.new_ones(1), weights))[None])
        last: _Said | None = None
        for i, (t, s) in enumerate(itertools.pairwise(grid)):
            with torch.autocast(z.device.type, torch.bfloat16, enabled=self.settings.bf16):
                anchors, heads = self._predict(z, t)
            # A given modality keeps its true encoding; the others take what their heads expect, or a draw from them.
            E = {
                name: self.truth[name] if name in self.truth else self._encode(name, heads[name], s)
                for name in model.traced
            }
            said = _Said(anchors, E)
            z, said.z0 = self._step(i, z, said, last, s)
            last = said
            bar.update()
        generated = {name: model.part(name).decode(x) for name, x in heads.items()}
        assert last is not None and last.z0 is not None  # there is at least one step
        generated[model.anchor_name] = last.z0
        return {name: self.given.get(name, generated[name]) for name in model.parts}
