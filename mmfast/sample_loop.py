"""The sampling loop, the same for joint, conditional and marginal generation and for every step rule.

y_t = z_t - m_t is the ordinary DDPM variable, so a step of any standard sampler is: subtract m_t, step y, add m_s.
Together with guidance, the conversion to z_0 and the clamp, that is one pass of the fused step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfast import ops, path, process
from mmfast.inside import Inside
from mmfast.model import Model
from mmfast.progress import Bar
from mmfast.streams import HEAD_NOISE, SAMPLE

# A repeated step has noise of its own, and so has the way back. From bit AGAIN on, the draw counts the repetitions.
AGAIN, BACK = 20, 1 << 19


@dataclass(frozen=True)
class Settings:
    """The checked arguments of `mmfast.sample.sample`, and the path that follows from them."""

    grid: list[int]
    plan: path.Plan
    scales: dict[str, float]
    clamp: float | None
    seed: int
    bf16: bool
    sampled: bool
    unknown: tuple[str, ...]
    resample: int

    def times(self, k: int) -> int:
        """How often step k is taken. The last step is taken once."""
        return self.resample if self.grid[k + 1] > 0 else 1

    @property
    def evaluations(self) -> int:
        """The number of network evaluations per sample."""
        return sum(self.times(k) for k, _ in self.plan.evaluations)


@dataclass
class Said:
    """A step's predictions: the network's of the anchor, the encodings with a trace in z_t, and z0hat."""

    anchors: list[Tensor]
    E: dict[str, Tensor]
    z0: Tensor | None = None


class Loop:
    """The loop over the steps for one batch. All coefficients are on the device before it starts."""

    def __init__(
        self, model: Model, given: dict[str, Tensor], settings: Settings, ids: Tensor, part: dict[str, Tensor]
    ) -> None:
        self.model, self.settings, self.plan, self.ids = model, settings, settings.plan, ids
        # The modalities that are given in part.
        self.inside = {name: Inside.of(model, name, given[name], there) for name, there in part.items()}
        whole = {name: x for name, x in given.items() if name not in part}
        x = whole.get(model.anchor_name)
        self.anchor = None if x is None else model.anchor.to_z0(x)
        self.anchor_told: Tensor | None = None
        self.known: dict[str, Tensor] = {}
        self.truth: dict[str, Tensor] = {}
        self._know(whole, self.anchor)

    def _know(self, new: Mapping[str, Tensor], z0: Tensor | None) -> None:
        """Condition on `new` from here on: modalities that are given, and later those that were drawn.

        z0: the anchor's, if the anchor is among them.
        """
        self.known.update(new)
        self.truth.update(self.model.encode(dict(new)))
        self.anchor_told = z0 if self.model.anchor_name in new else self.anchor_told
        self.told = {name: self._tell(without=name) for name in ["", *self.settings.scales]}

    def _tell(self, without: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The times, and what the network is told if the given modality `without` is unknown ("" for none).

        A time of -1 stands for the path's.
        """
        names = (self.model.anchor_name, *self.model.names)
        flags = torch.tensor([[name in self.known and name != without for name in names]], device=self.ids.device)
        left_out = {*self.settings.unknown, *([without] if self._can_be_unknown(without) else [])}
        unknown = [name in left_out for name in names]
        other = torch.tensor([[self.model.schedule.T if x else -1 for x in unknown]], device=flags.device)
        times = self.model.times(other, flags).expand(len(self.ids), -1)
        return times, self.model.tell(self.anchor_told, self.truth, times)

    def _can_be_unknown(self, name: str) -> bool:
        """Whether training included this modality as unknown. If not, and it is not told, its block is seen at t.

        The anchor never counts as unknown, because the network sees its block of z_t at t.
        """
        model = self.model
        if not model.told or model.space == "shared" or name not in model.names:
            return False
        return name not in model.time_of or model.part(name).spec.unknown_probability > 0

    def _ask(self, z: Tensor, at: int, without: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        """The network's predictions of the anchor and by the heads at point `at` of the path, in float32.

        It is told everything known except the modality `without`.
        """
        times, told = self.told[without]
        times = torch.where(times < 0, self.plan.clock[at], times)
        found = self.model(z, times, told)
        anchor = self.model.restored(found, z, times, told)
        return anchor.float(), {name: x.float() for name, x in found.heads.items()}

    def _predict(self, z: Tensor, at: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The network's predictions of the anchor, and the guided heads."""
        anchor, heads = self._ask(z, at)
        anchors, guided = [anchor], dict(heads)
        for name, scale in self.settings.scales.items():
            anchor, untold = self._ask(z, at, name)
            anchors.append(anchor)
            for head, x in untold.items():
                guided[head] = guided[head] + (scale - 1) * (heads[head] - x)
        return anchors, guided

    def _noise(self, draw: int) -> dict[str, Any]:
        return {"seed": self.settings.seed, "draw": draw, "sample_ids": self.ids, "stream": SAMPLE}

    def _step(self, i: int, z: Tensor, start: Tensor, said: Said, past: list[Said], draw: int) -> tuple[Tensor, Tensor]:
        """z_s and z0hat of evaluation i, in one pass. The anchor is its true value if given, else predicted.

        z: where the network was evaluated; start: z_t, the same unless the evaluation corrects a step; past: the
        predictions of the previous steps, latest first. The terms are in the order of the plan's tables.
        """
        model, plan = self.model, self.plan
        noise = {**self._noise(draw), "levels": plan.levels or None}
        past = [*past, *[said] * plan.depth][: plan.depth]  # missing predictions have zero coefficients
        of_z = [*self._blocks(z), *(self._blocks(start) if plan.corrects else [])]
        of_E = [term for each in (said, *past) for term in model.terms(each.E).values()]

        def around(truth: Tensor) -> Tensor:
            """z_s with `truth` for z_0, in this step and the previous ones."""
            of_z0 = [model.anchor_in_space(truth)] * (plan.depth + 1)
            assert plan.tables.sigma is not None
            coefs, sigma = plan.with_truth(i, len(said.anchors)), plan.tables.sigma[i : i + 1]
            return ops.combine([*of_z, *of_E, *of_z0], coefs, sigma, **noise)

        if self.anchor is not None:
            return around(self.anchor), self.anchor
        predictions = [model.anchor_in_space(x) for x in said.anchors]
        of_past = [model.anchor_in_space(said.anchors[0] if each.z0 is None else each.z0) for each in past]
        channels = (0, model.shape[0]) if isinstance(predictions[0], ops.Block) else None
        how = {"clamp": self.settings.clamp, "channels": channels, **noise}
        z_s, z0 = ops.step_by_table([*of_z, *predictions, *of_E, *of_past], plan.tables, i, **how)
        part = self.inside.get(model.anchor_name)
        if part is None:
            return z_s, z0
        # Where the true values are known, take the same step with the same noise around them.
        C = model.shape[0]
        z_s[:, :C] = torch.where(part.where, around(part.encoding)[:, :C], z_s[:, :C])
        return z_s, part.put_in(z0)

    def _blocks(self, z: Tensor) -> list[ops.Block | Tensor]:
        """z as terms of the plan's tables: whole, or split without a copy into blocks if each has its own time."""
        ends = [*self.plan.levels[1:], z.shape[1]]
        blocks = zip(self.plan.levels, ends, strict=False)
        return [ops.Block(z[:, a:b], a, z.shape[1]) for a, b in blocks] or [z]

    def _drawn(self, k: int, z0: Tensor, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The modalities that step k brought to time 0, with their results."""
        now, then = self.plan.times[k : k + 2]
        names = (self.model.anchor_name, *self.model.names)
        new = [name for name, t, s in zip(names, now, then, strict=True) if s == 0 < t]
        return {name: self._result(name, z0, heads) for name in new}

    def _result(self, name: str, z0: Tensor, heads: Mapping[str, Tensor]) -> Tensor:
        """The generated modality, with its known part put in."""
        part = self.model.part(name)
        x = part.decode(heads[name]) if name in heads else part.from_z0(z0)
        inside = self.inside.get(name)
        return x if inside is None else inside.put_in_x(x)

    def _encode(self, name: str, head: Tensor, draw: int) -> Tensor:
        """The encoding of a modality that is not given: its head's expected encoding, or the encoding of a sample."""
        part, inside = self.model.part(name), self.inside.get(name)
        if self.settings.sampled:
            draw = draw * len(self.model.names) + self.model.names.index(name)
            noise = {**self._noise(draw), "stream": HEAD_NOISE}
            encoding = part.encode(part.draw(head, ops.randn(head.shape, device=head.device, **noise)))
        else:
            encoding = part.encode_prediction(head)
        return encoding if inside is None else inside.put_in(encoding)

    def _take(
        self, z: Tensor, k: int, past: list[Said], draw: int, bar: Bar
    ) -> tuple[Tensor, Said, Said, dict[str, Tensor]]:
        """Take step k. Returns z_s, the predictions from z_t, the last predictions and the last heads."""
        start, first = z, None
        traced, truth = self.model.traced, self.truth
        for i in self.plan.of_step(k):
            with torch.autocast(z.device.type, torch.bfloat16, enabled=self.settings.bf16):
                anchors, heads = self._predict(z, k if first is None else k + 1)
            # A given modality keeps its true encoding.
            E = {name: truth[name] if name in truth else self._encode(name, heads[name], draw) for name in traced}
            said = Said(anchors, E)
            z, said.z0 = self._step(i, z, start, said, past, draw)
            if first is None:
                first, past = said, [said, *past]
            bar.update()
        assert first is not None
        return z, first, said, heads

    def _back(self, z: Tensor, said: Said, k: int, draw: int) -> Tensor:
        """Noise z_s back to z_t: q(z_t | z_s, X) = N(sqrt(a) (z_s - m_s) + m_t, (1 - a) I)."""
        model = self.model
        j = process.jump(model.schedule, self.plan.clock[k, :1], self.plan.clock[k + 1, :1])
        of_z, columns = j.a.sqrt()[:, None], model.schedule.index(model.traced)
        coefs = torch.cat((of_z, j.W_t[:, columns] - of_z * j.W_s[:, columns]), 1)
        return ops.combine([z, *model.terms(said.E).values()], coefs, (1 - j.a).sqrt(), **self._noise(draw))

    def run(self, bar: Bar) -> dict[str, Tensor]:
        """Every modality of the batch, by name."""
        model, grid = self.model, self.settings.grid
        shape = (len(self.ids), model.channels, *model.shape[1:])
        z = ops.randn(shape, device=self.ids.device, **self._noise(grid[0]))
        in_part = {name: x.put_in(torch.zeros_like(x.encoding)) for name, x in self.inside.items()}
        if terms := model.terms({**in_part, **self.truth}):
            weights = self.plan.W_T[[model.traced.index(name) for name in terms]]
            z = ops.combine([z, *terms.values()], torch.cat((weights.new_ones(1), weights))[None])
        past: list[Said] = []
        for k, s in enumerate(grid[1:]):
            times = self.settings.times(k)
            for again in range(times):
                z, first, said, heads = self._take(z, k, past, s + (again << AGAIN), bar)
                if again < times - 1:
                    z = self._back(z, said, k, grid[k] + BACK + (again << AGAIN))
            past = [first, *past][: self.plan.depth]
            assert said.z0 is not None
            if s > 0 and (new := self._drawn(k, said.z0, heads)):
                self._know(new, said.z0)
        assert said.z0 is not None  # there is at least one step
        return {n: self.known[n] if n in self.known else self._result(n, said.z0, heads) for n in model.parts}
