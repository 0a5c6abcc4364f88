"""Sampling: one loop for joint, conditional and marginal generation, with any of the step rules in samplers.py.

In the shift view y_t = z_t - m_t is the ordinary DDPM variable, so a step of any standard sampler is: subtract
m_t, step y, add m_s. With guidance, the conversion to z_0 and the clamp before it, that is one pass of the fused step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmfast import ops, path, process
from mmfast.errors import MmfastError
from mmfast.errors import unknown as unknown_name
from mmfast.inside import Inside, check_known
from mmfast.model import Model, Prediction
from mmfast.options import PRECISIONS
from mmfast.samplers import HEADS, SAMPLERS, timesteps
from mmfast.streams import HEAD_NOISE, SAMPLE

# A step that is taken again has noise of its own, and so has the way back: from bit AGAIN on, how often it was taken.
AGAIN, BACK = 20, 1 << 19


@torch.no_grad()
def sample(
    model: Model,
    count: int | None = None,
    given: Mapping[str, Tensor] | None = None,
    *,
    known: Mapping[str, Tensor] | None = None,
    resample: int = 5,
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
    offset: Mapping[str, float] | None = None,
    progress: bool | str = False,
) -> dict[str, Tensor]:
    """Draw examples from z_T ~ N(m_T of what is given, I): all modalities, those given as they are.

    Joint generation gives nothing, conditional generation any subset (the anchor too: then z_t is made anew
    around it, and only the others evolve), marginal generation ignores what it does not want of the result.

    Args:
        count: how many; None for as many as `given` holds.
        given: by name, [count, ...] or [1, ...] for all.
        known: by name, which part of what is given is known, bool of its shape (or that of one example): the rest of it
            is drawn. The known part stands in every prediction, so that it is at its own noise level at each step, as
            z_t's law has it, and comes back exactly. The network sees it through that noise alone and is not told:
            this is the replacement method (Song et al., 2021), whose bias is that what is drawn agrees less with the
            known part than it should (docs/reading-and-telling.md). An embedding's numbers are those of a vector of
            unit RMS.
        resample: where something is given in part, how often each step is taken, z_t being made of z_s again in
            between (Lugmayr et al., 2022): the bias falls, and `steps` times as many evaluations are made.
        steps, sampler, eta: how many steps (evaluations of the network) of "ddpm", "ddim" (with eta), "dpmpp_2m" or
            another of SAMPLERS.
        guidance_scale: 1 for none; one for all that is given, or by name. Each guided modality adds
            (scale - 1) (prediction - prediction without it).
        clamp: hold the predicted z_0 of an image within -clamp .. clamp; None not to. No other anchor has such bounds.
        seed, sample_ids: the noise's identity; example i is the same in any batch but for rounding.
        precision: the network's arithmetic, "fp32" or "bf16"; the steps themselves are float32 in both.
        heads: what is not given enters a step as its head's expected encoding, "soft", or as a draw's, "sampled".
        unknown: modalities that stay at time T, unknown to the rest: they are read off it at the end, by their heads.
        offset: by name, how far a modality's time is ahead of the anchor's, as a share of T: {"mask": 0.2} decides the
            mask before the image, -0.2 after it, each above -1 and below 1. It is a difference of times, since that is
            what the network is told and what training has shown it (`own_time_probability`): all blocks go at one pace,
            whatever the offsets, each from T down to 0, and `steps` are shared over the longer path. What has reached 0
            is drawn, and told as given from then on; what has not yet begun waits at T. Near 1 one modality is drawn
            and then the other given it, as `mmfast.generate.generate(first=...)` does. An offset of what is given or
            unknown plays no part. It needs space=own and told, and a modality with a trace in z_t.
        progress: show a bar, with this text.

    Returns every modality by name, [count, ...], on the model's device. Raises MmfastError naming the argument.
    """
    given = {name: x.float() if x.is_floating_point() else x for name, x in (given or {}).items()}
    known = check_known(model, given, known or {})
    for name, there in known.items():  # where it is not known it may be anything
        given[name] = torch.where(there.to(given[name].device), given[name], 0)
    whole = {name: x for name, x in given.items() if name not in known}
    count = how_many(model, count, given)
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
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
    path.check_offset(model, offset or {})
    ahead = path.leads(model, offset or {}, {*whole, *unknown})
    if resample < 1:
        raise MmfastError(f"resample is {resample}; it should be at least 1")
    if known and resample > 1 and any(ahead.values()):
        raise MmfastError("known is given with an offset, of which z_t has several times; it needs resample=1")
    grid, scales = timesteps(model.schedule.T + max(ahead.values()), steps), _scales(guidance_scale, whole)
    settings = _Settings(
        grid,
        path.plan(model, grid, ahead, SAMPLERS[sampler], eta, list(scales.values())),
        scales,
        clamp if model.anchor.bounded else None,
        seed,
        precision == "bf16",
        heads == "sampled",
        tuple(unknown),
        resample if known else 1,
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
                inside = {name: x.expand(count, *x.shape[1:])[rows].to(device) for name, x in known.items()}
                results.append(_Loop(model, part, settings, ids[rows].to(device), inside).run(bar))
    finally:
        model.train(training)
    return {name: torch.cat([r[name] for r in results]) for name in results[0]}


@dataclass(frozen=True)
class _Settings:
    grid: list[int]
    plan: path.Plan
    scales: dict[str, float]
    clamp: float | None
    seed: int
    bf16: bool
    sampled: bool
    unknown: tuple[str, ...]
    resample: int


def how_many(model: Model, count: int | None, given: Mapping[str, Tensor]) -> int:
    """`count`, or as many as are given. Raises MmfastError where the two do not fit, or what is given is not right."""
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
    for name, scale in guidance_scale.items():
        if name not in given:
            raise unknown_name("guidance_scale's modality", name, given)
        if not isinstance(scale, (int, float)) or not math.isfinite(scale):
            raise MmfastError(f"guidance_scale is {scale!r}; it should be a finite number")
    return {name: scale for name, scale in guidance_scale.items() if scale != 1}


@dataclass
class _Said:
    """A step's predictions: the network's of the anchor, the encodings of all that leaves a trace, and z0hat."""

    anchors: list[Tensor]
    E: dict[str, Tensor]
    z0: Tensor | None = None


class _Loop:
    """The loop over the steps for one batch. All coefficients are on the device before it starts."""

    def __init__(
        self, model: Model, given: dict[str, Tensor], settings: _Settings, ids: Tensor, part: dict[str, Tensor]
    ) -> None:
        self.model, self.settings, self.plan, self.ids = model, settings, settings.plan, ids
        # Of what is given in part: x, what is known of it, its place in the space, and where that is known.
        self.inside = {name: Inside.of(model, name, given[name], there) for name, there in part.items()}
        x = given.get(model.anchor_name) if model.anchor_name not in part else None
        self.anchor = None if x is None else model.anchor.to_z0(x)
        self.known: dict[str, Tensor] = {}
        self.truth: dict[str, Tensor] = {}
        self._know({name: x for name, x in given.items() if name not in part})

    def _know(self, new: Mapping[str, Tensor]) -> None:
        """Tell the network of these, from here on: what is given, and later what has been drawn."""
        self.known.update(new)
        self.truth.update(self.model.encode(dict(new)))
        self.told = {name: self._tell(without=name) for name in ["", *self.settings.scales]}

    def _tell(self, without: str) -> tuple[Tensor, dict[str, Tensor]]:
        """What the network is told when one of what is given is unknown ("": none); and the times, -1: the path's."""
        names = (self.model.anchor_name, *self.model.names)
        flags = torch.tensor([[name in self.known and name != without for name in names]], device=self.ids.device)
        left_out = {*self.settings.unknown, *([without] if self._can_be_unknown(without) else [])}
        unknown = [name in left_out for name in names]
        other = torch.tensor([[self.model.schedule.T if x else -1 for x in unknown]], device=flags.device)
        times = self.model.times(other, flags).expand(len(self.ids), -1)
        anchor = self.known.get(self.model.anchor_name)
        return times, self.model.tell(None if anchor is None else self.model.anchor.to_z0(anchor), self.truth, times)

    def _can_be_unknown(self, name: str) -> bool:
        """Whether training has shown this modality unknown. Else, untold of it, the network sees its block at t.

        The anchor never is: its block of z_t is at t, and is looked at.
        """
        model = self.model
        if not model.told or name not in model.names:
            return False
        return name not in model.time_of or model.part(name).spec.unknown_probability > 0

    def _ask(self, z: Tensor, i: int, without: str = "") -> Prediction:
        """The network's prediction at step i, told of all that is known but one modality."""
        times, told = self.told[without]
        return self.model(z, torch.where(times < 0, self.plan.clock[i], times), told)

    def _predict(self, z: Tensor, i: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The network's predictions of the anchor, and its heads pushed away from those that are not told."""
        told = self._ask(z, i)
        anchors, heads = [told.anchor.float()], {name: x.float() for name, x in told.heads.items()}
        guided = dict(heads)
        for name, scale in self.settings.scales.items():
            untold = self._ask(z, i, name)
            anchors.append(untold.anchor.float())
            for head, x in untold.heads.items():
                guided[head] = guided[head] + (scale - 1) * (heads[head] - x.float())
        return anchors, guided

    def _step(self, i: int, z: Tensor, said: _Said, last: _Said | None, draw: int) -> tuple[Tensor, Tensor]:
        """z_s and z0hat of step i, in one pass: the anchor is the truth where it is given, else predicted."""
        model, plan = self.model, self.plan
        noise: dict[str, Any] = {"seed": self.settings.seed, "draw": draw, "sample_ids": self.ids, "stream": SAMPLE}
        noise["levels"] = plan.levels or None
        anchors, last, part = said.anchors, last or said, self.inside.get(model.anchor_name)
        encodings = [*model.terms(said.E).values(), *(model.terms(last.E).values() if plan.extrapolates else ())]

        def around(truth: Tensor) -> Tensor:
            term = model.anchor_in_space(truth)
            terms = [*self._blocks(z), *encodings, term, term]
            assert plan.tables.sigma is not None
            return ops.combine(terms, plan.with_truth(i, len(anchors)), plan.tables.sigma[i : i + 1], **noise)

        if self.anchor is not None:
            return around(self.anchor), self.anchor
        before = anchors[0] if last.z0 is None else last.z0
        predictions = [model.anchor_in_space(x) for x in anchors]
        terms = [*self._blocks(z), *predictions, *encodings, model.anchor_in_space(before)]
        channels = (0, model.shape[0]) if isinstance(predictions[0], ops.Block) else None
        z_s, z0 = ops.step_by_table(terms, plan.tables, i, clamp=self.settings.clamp, channels=channels, **noise)
        if part is None:
            return z_s, z0
        # The same step, with the same noise, around the truth: taken where that is known.
        C = model.shape[0]
        z_s[:, :C] = torch.where(part.where, around(part.encoding)[:, :C], z_s[:, :C])
        return z_s, part.put_in(z0)

    def _blocks(self, z: Tensor) -> list[ops.Block | Tensor]:
        """z as the terms of the plan's tables: whole, or by the blocks that have a time each, without a copy."""
        ends = [*self.plan.levels[1:], z.shape[1]]
        blocks = zip(self.plan.levels, ends, strict=False)
        return [ops.Block(z[:, a:b], a, z.shape[1]) for a, b in blocks] or [z]

    def _drawn(self, i: int, said: _Said, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What step i has brought to time 0 before the rest, and what was drawn of it."""
        now, then = self.plan.times[i : i + 2]
        names = (self.model.anchor_name, *self.model.names)
        new = [name for name, t, s in zip(names, now, then, strict=True) if s == 0 < t]
        assert said.z0 is not None
        return {name: self._result(name, said.z0, heads) for name in new}

    def _result(self, name: str, z0: Tensor, heads: Mapping[str, Tensor]) -> Tensor:
        """What was generated of a modality, with what was known of it in its place."""
        part = self.model.part(name)
        x = part.decode(heads[name]) if name in heads else part.from_z0(z0)
        inside = self.inside.get(name)
        return x if inside is None else inside.put_in_x(x)

    def _encode(self, name: str, head: Tensor, draw: int) -> Tensor:
        part, inside = self.model.part(name), self.inside.get(name)
        if not self.settings.sampled:
            encoding = part.encode_prediction(head)
            return encoding if inside is None else inside.put_in(encoding)
        draw = draw * len(self.model.names) + self.model.names.index(name)
        noise: dict[str, Any] = {
            "seed": self.settings.seed,
            "sample_ids": self.ids,
            "stream": HEAD_NOISE,
            "draw": draw,
        }
        encoding = part.encode(part.draw(head, ops.randn(head.shape, device=head.device, **noise)))
        return encoding if inside is None else inside.put_in(encoding)

    def _take(self, z: Tensor, i: int, draw: int, last: _Said | None) -> tuple[Tensor, _Said, dict[str, Tensor]]:
        """z_s, what was said of z_t, and the heads."""
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.settings.bf16):
            anchors, heads = self._predict(z, i)
        # A given modality keeps its true encoding; the others take what their heads expect, or a draw from them.
        traced, truth = self.model.traced, self.truth
        E = {name: truth[name] if name in truth else self._encode(name, heads[name], draw) for name in traced}
        said = _Said(anchors, E)
        z, said.z0 = self._step(i, z, said, last, draw)
        return z, said, heads

    def _back(self, z: Tensor, said: _Said, i: int, draw: int) -> Tensor:
        """z_t made of z_s again: q(z_t | z_s, X) = N(sqrt(a) (z_s - m_s) + m_t, (1 - a) I)."""
        model = self.model
        j = process.jump(model.schedule, self.plan.clock[i, :1], self.plan.clock[i + 1, :1])
        of_z, columns = j.a.sqrt()[:, None], model.schedule.index(model.traced)
        coefs = torch.cat((of_z, j.W_t[:, columns] - of_z * j.W_s[:, columns]), 1)
        noise: dict[str, Any] = {"seed": self.settings.seed, "sample_ids": self.ids, "stream": SAMPLE, "draw": draw}
        return ops.combine([z, *model.terms(said.E).values()], coefs, (1 - j.a).sqrt(), **noise)

    def run(self, bar: tqdm) -> dict[str, Tensor]:
        model, grid = self.model, self.settings.grid
        noise: dict[str, Any] = {"seed": self.settings.seed, "sample_ids": self.ids, "stream": SAMPLE}
        shape = (len(self.ids), model.channels, *model.shape[1:])
        z = ops.randn(shape, draw=grid[0], device=self.ids.device, **noise)
        in_part = {name: x.put_in(torch.zeros_like(x.encoding)) for name, x in self.inside.items()}
        if terms := model.terms({**in_part, **self.truth}):
            weights = self.plan.W_T[[model.traced.index(name) for name in terms]]
            z = ops.combine([z, *terms.values()], torch.cat((weights.new_ones(1), weights))[None])
        last: _Said | None = None
        for i, s in enumerate(grid[1:]):
            times = self.settings.resample if s > 0 else 1
            for again in range(times):
                z, said, heads = self._take(z, i, s + (again << AGAIN), last)
                if again < times - 1:
                    z = self._back(z, said, i, grid[i] + BACK + (again << AGAIN))
            last = said
            if s > 0 and (new := self._drawn(i, said, heads)):
                self._know(new)
            bar.update()
        assert last is not None and last.z0 is not None  # there is at least one step
        drawn = {name: self._result(name, last.z0, heads) for name in model.parts if name not in self.known}
        return {name: self.known[name] if name in self.known else drawn[name] for name in model.parts}
