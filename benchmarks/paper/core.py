"""The building blocks of the paper's tasks: a task is a preset, the methods to compare and their evaluation."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image as PILImage
from torch import Tensor

from benchmarks.paper import notes, supervised
from benchmarks.paper.page import three
from benchmarks.paper.report import Metric, Row, Section, Verdict
from mmfast.build import build_data
from mmfast.config import Config, resolve
from mmfast.data import Batch, Data
from mmfast.errors import MmfastError
from mmfast.generate import generate
from mmfast.held_out import held_out
from mmfast.model import Model

OURS = "mmfast"
# In as many steps as an unconditional image takes. The presets take fewer where what is given nearly determines the
# rest, and learn that in a pass of the encoder alone, so this is not the best that many steps could do.
MANY_STEPS = f"{OURS}, as it generates"

# By method. One evaluation may cover several methods: one model serves several ways of inpainting.
Found = dict[str, list[Metric]]


@dataclass(frozen=True)
class Trained:
    """A trained model and what its evaluation needs.

    evaluated: measures that the evaluation leaves to the pictures, by name, so that nothing is drawn twice.
    """

    model: Model
    config: Config
    seed: int
    samples: int
    smoke: bool
    features: str
    judge: Callable[[], Model]
    examples: Config | None = None  # evaluate on the data of this config instead of its own
    evaluated: dict[str, list[Metric]] = field(default_factory=dict)

    @cached_property
    def data(self) -> Data:
        return build_data(self.examples or self.config)

    @cached_property
    def judges(self) -> dict[str, Any]:
        """Predictors of a modality from images, made from real data alone."""
        return self.data.judges()

    def held_out(self, count: int | None = None) -> Batch:
        """A fixed random part of the test set: neighbours in a data set are often related."""
        whole = held_out(self.data.test, len(self.data.test), self.model)
        rows = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))[: count or self.samples]
        return Batch({name: x[rows] for name, x in whole.data.items()})

    def said(self, data: dict[str, Tensor], given: str, target: str, seed: int | None = None) -> Tensor:
        """Predict the likeliest `target` in one pass (`supervised.answer`), in the precision used for sampling."""
        return supervised.answer(self.model, data, given, target, self.config.sample.precision, seed=seed)

    def draw(
        self, given: Mapping[str, Tensor] | None = None, purpose: int = 0, count: int | None = None, **options: Any
    ) -> Any:
        """Sample every modality from z_T with the noise of this seed and purpose; by name, on the CPU.

        options: override those of the config.
        """
        options = {"progress": f"sampling ({purpose})", **options, "seed": 1000 * (self.seed + 1) + purpose}
        drawn = generate(self.model, self.config, count or self.samples, given, **options)
        return {name: x.cpu() for name, x in drawn.items()}


@dataclass(frozen=True)
class Method:
    """One model to train: ours or a baseline.

    change: overrides of the preset, with dots in the keys; None drops a key. supervised: (given, target) for a network
    that predicts one from the other, without diffusion. share: the share of the run's images that it sees. first: a
    method that is trained first and whose weights this one starts from. rate: a factor for the preset's learning rate.
    uses: the modalities that it needs; a smoke run that lacks any of them leaves it out.
    """

    name: str
    evaluate: Callable[[Trained], Found]
    change: dict[str, Any] = field(default_factory=dict)
    supervised: tuple[str, str] | None = None
    share: float = 1.0
    first: Method | None = None
    rate: float = 1.0
    uses: tuple[str, ...] = ()


# Ours, trained on as many images as the single models have seen together.
TOTAL = f"{OURS}, with their images together"


def its_share(name: str) -> str:
    """The name of a single model that sees only its share of the images that ours sees."""
    return f"{name}, a share of the images"


# Measures by the method's name.
Measures = Mapping[str, Callable[[Trained], list[Metric]]]


def other_budgets(methods: Sequence[Method], rows: Measures) -> list[Method]:
    """Ours at the total compute of the single models, and each of these at its share of ours.

    rows: by name, the evaluation of ours and of each of the single models that together do what ours does.
    """

    def again(method: Method, name: str, share: float) -> Method:
        measure = rows[method.name]
        return dataclasses.replace(method, name=name, evaluate=lambda trained: {name: measure(trained)}, share=share)

    ours, *single = (method for method in methods if method.name in rows)
    return [
        again(ours, TOTAL, len(single)),
        *(again(method, its_share(method.name), 1 / len(single)) for method in single),
    ]


# The share of its images that a fine-tuned model spends on its one task, and the factor for the learning rate there.
LAST, RATE = 0.25, 0.5


def fine_tuned(methods: Sequence[Method], rows: Measures) -> list[Method]:
    """Ours, fine-tuned as in the paper: the last quarter of its images trains only the task of each single model.

    rows: the evaluation of the single models, by name. Ours keeps all its modalities; how often each is given is
    taken from the single model.
    """

    joint = dataclasses.replace(next(m for m in methods if m.name == OURS), share=1 - LAST)

    def last(method: Method) -> Method:
        name, measure = f"{OURS}, fine-tuned as {method.name}", rows[method.name]
        change = {key: value for key, value in method.change.items() if key.endswith("given_probability")}
        return dataclasses.replace(
            method, name=name, evaluate=lambda trained: {name: measure(trained)}, change=change, share=LAST,
            first=joint, rate=RATE,
        )  # fmt: skip

    return [last(method) for method in methods if method.name in rows]


def renamed(rows: Sequence[Row], names: Mapping[str, str]) -> list[Row]:
    """The rows of the methods in `names`, renamed."""
    return [dataclasses.replace(row, method=names[row.method]) for row in rows if row.method in names]


def sections(task: Task, rows: list[Row]) -> list[Section]:
    """The comparisons at other budgets, if the task has them and they were measured."""
    measured = {row.method for row in rows}
    of_total = [method.name for method in task.methods if method.name in task.needed and method.name != OURS]
    single = [name for name in of_total if its_share(name) in measured]
    found = []
    if TOTAL in measured:
        total = {TOTAL: OURS, **{name: name for name in of_total}}
        text = f"One model of {len(of_total)} N images against {len(of_total)} models of N images each."
        claims = task.verdicts(renamed(rows, total), 0.0)
        found.append(Section("At equal total compute", text, list(total), [TOTAL], claims))
    if single:
        own = [its_share(name) for name in single]
        shares = {OURS: OURS, **dict(zip(own, single, strict=True))}
        text = f"Each single model sees one image for {round(1 / task.method(own[0]).share)} that ours sees."
        claims = task.verdicts(renamed(rows, shares), 0.0)
        found.append(Section("At the joint model's share", text, list(shares), own, claims))
    return found


@dataclass(frozen=True)
class Task:
    """An experiment of the paper.

    reference: the same measures between halves of the real data. verdicts: the claims to check, from the rows; its
    second argument is how far behind a claim lets ours be: 1 as far as at equal images, 0 not at all. pictures: of
    generated images, by name, with captions. judge: a network that only judges the samples of the others. features: a
    name in mmfast.metrics.features, never of a network that the model learns from. complete: evaluate every method on
    the examples that have all of our modalities instead of its own. check: fails if something that the evaluation needs
    is not installed. change: overrides of the preset for every method. smoke: used instead of `change` in a run of a
    minute. preset: its name, if it is not the task's. needed: the measures that the claims need, by method; those of
    other budgets need all of theirs. The notes are in notes/TASK.md.
    """

    name: str
    title: str
    question: str
    methods: list[Method]
    reference: Callable[[Trained], list[Metric]]
    verdicts: Callable[[list[Row], float], list[Verdict]]
    pictures: Callable[[Trained], dict[str, tuple[str, PILImage.Image]]]
    judge: Method | None = None
    features: str = "pixels"
    complete: bool = False
    check: Callable[[], object] = lambda: None
    change: dict[str, Any] = field(default_factory=dict)
    smoke: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    needed: Measures = field(default_factory=dict)

    @property
    def claiming(self) -> list[Method]:
        """The methods whose measures the claims need."""
        names = {name for method in self.needed for name in (method, its_share(method))} | {TOTAL}
        return [method for method in self.methods if method.name in names]

    @property
    def notes(self) -> list[str]:
        """The remarks at the end of the page."""
        return notes.read(self.name)

    def method(self, name: str) -> Method:
        """The method of this name, or the judge. Raises MmfastError for another name."""
        known = {m.name: m for m in [*self.methods, *([self.judge] if self.judge else [])]}
        if name not in known:
            raise MmfastError(f"method is {name!r}; it should be one of {', '.join(map(repr, known))}")
        return known[name]

    def config(self, method: Method, seed: int, images: int, changes: Mapping[str, Any]) -> Config:
        """The preset with the method's changes, for this many images seen."""
        text = (resources.files("mmfast") / "presets" / f"{self.preset or self.name}.yaml").read_text()
        raw = copy.deepcopy(yaml.safe_load(text))
        for key, value in [*changes.items(), *method.change.items()]:
            _put(raw, key.split("."), value)
        config = resolve(OmegaConf.create(raw), self.name)
        steps = max(1, round(images * method.share) // config.train.batch_size)
        train = dataclasses.replace(
            config.train, steps=steps, sample_every=0, warmup=min(config.train.warmup, steps // 4), tensorboard=False,
            learning_rate=config.train.learning_rate * method.rate,
        )  # fmt: skip
        evaluation = dataclasses.replace(config.evaluate, samples=0)
        return dataclasses.replace(config, seed=seed, train=train, evaluate=evaluation)


def _put(raw: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    if path[0] == "modalities" and path[1] not in raw["modalities"] and parents[1:]:
        return  # an option of a modality that the method drops
    for key in parents:
        raw = raw.setdefault(key, {})
    if value is None:
        raw.pop(last, None)
    else:
        raw[last] = copy.deepcopy(value)  # a later change within it must not reach the task


def described(config: Config) -> dict[str, Any]:
    """The config as plain JSON data, without this machine's folders."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    for name in ("root", "cache"):
        plain["data"].pop(name, None)
    return plain


def refuse_another(wanted: dict[str, Any], kept: dict[str, Any], where: Path) -> None:
    """Raise MmfastError if the kept results were made with another config.

    Options that were added since then count as their defaults, as they do when a run is loaded.
    """
    with contextlib.suppress(MmfastError):  # an option that no longer exists: another config
        kept = described(resolve(OmegaConf.create(kept)))
    if wanted != kept:
        keys = [f"{a}.{b}" for a in wanted if isinstance(wanted[a], dict) for b in wanted[a]
                if wanted[a].get(b) != (kept.get(a) or {}).get(b)]  # fmt: skip
        raise MmfastError(
            f"{where} is of another config ({', '.join(keys[:4]) or 'other keys'}); move it away, or give another "
            "--work"
        )


def seeded(count: int, classes: int) -> Tensor:
    """Labels 0, 1, 2, ... in turn: equally many of each, the same for every method."""
    return torch.arange(count) % classes


def means(rows: list[Row], method: str, condition: str) -> dict[str, float]:
    """A method's means by metric. A missing one is NaN, so that a verdict on it fails."""
    found = {row.metric: row.mean for row in rows if (row.method, row.condition) == (method, condition)}
    return collections.defaultdict(lambda: math.nan, found)


def near(amount: float, slack: float, unit: str = "") -> str:
    """The words of a claim that ours is at most `amount` behind; "no worse than" if `slack` is 0."""
    return f"within {amount:g}{unit} of" if slack else "no worse than"


def at_least(claim: str, value: float, floor: float) -> Verdict:
    """Whether value >= floor, with both numbers as evidence."""
    return Verdict(claim, value >= floor, f"{three(value)}, to be at least {three(floor)}")


def at_most(claim: str, value: float, ceiling: float) -> Verdict:
    """Whether value <= ceiling, with both numbers as evidence."""
    return Verdict(claim, value <= ceiling, f"{three(value)}, to be at most {three(ceiling)}")
