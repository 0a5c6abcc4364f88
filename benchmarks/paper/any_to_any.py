"""Any modality given any others: one model in every direction, against models trained for one direction each."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image as PILImage

from benchmarks.paper import image_mask, matrix, measures
from benchmarks.paper.core import (
    OURS,
    Found,
    Method,
    Task,
    Trained,
    means,
    other_budgets,
)
from benchmarks.paper.report import Metric, Row, Verdict
from mmfast.config import Config, load
from mmfast.modalities import kind

PRESET = "any-to-any"
# How many given sets of three or more modalities are measured.
LARGER = 10
# The modalities with a grid, which the preset reads off the encoder.
ON_A_GRID = ("mask", "embedding", "masked")
UNIDIFFUSER = "UniDiffuser"
# How many of the eight directions the claim asks for, and how far behind still counts as level at equal images.
WANTED, LEVEL = 6, 0.05


@dataclass(frozen=True)
class Direction:
    """One modality, `target`, drawn or predicted given another."""

    given: str
    target: str

    @property
    def condition(self) -> str:
        return condition((self.given,), self.target)

    @property
    def name(self) -> str:
        return f"{self.given} to {self.target} alone"


def condition(given: Sequence[str], drawn: str) -> str:
    """The name of a direction in the rows."""
    return f"given {', '.join(given) or 'nothing'}: {drawn}"


READ = [Direction("image", name) for name in ("mask", "label", "embedding", "caption")]
DRAW = [Direction(name, "image") for name in ("mask", "label", "caption", "masked")]


def given_sets(names: Sequence[str], made_from: Mapping[str, str], larger: int = LARGER) -> list[tuple[str, ...]]:
    """The sets to give: nothing, each modality, each pair, and `larger` bigger sets, a fixed random choice.

    made_from: what each derived modality is made from. The two are never given together, because one contains the
    other. At least one modality that is not derived is left to draw.
    """

    def fits(given: tuple[str, ...]) -> bool:
        left = [name for name in names if name not in given and name not in made_from]
        return bool(left) and not any(name in given and of in given for name, of in made_from.items())

    sizes = [[given for given in itertools.combinations(names, n) if fits(given)] for n in range(len(names))]
    more = list(itertools.chain(*sizes[3:]))
    drawn = torch.randperm(len(more), generator=torch.Generator().manual_seed(0))[:larger].sort().values
    return [*itertools.chain(*sizes[:3]), *(more[i] for i in drawn.tolist())]


def _scores(trained: Trained, given: tuple[str, ...]) -> list[Metric]:
    """The score of each modality drawn: the quality of images, and how well the other modalities fit."""
    truth = trained.held_out().data
    drawn = trained.draw({name: truth[name] for name in given}, purpose=1 + _number(trained, given))
    anchor, found = trained.model.anchor_name, []
    for name in (x for x in drawn if x not in given and not trained.model.part(x).derived):
        where, part = condition(given, name), trained.model.part(name)
        if name == anchor:
            found += measures.image_quality(trained, where, drawn[name])
            # The given modalities that a judge recognises in the image.
            found += [
                Metric(
                    where,
                    f"{known} seen in it",
                    trained.model.part(known).score(judge(drawn[name]), drawn[known]),
                    True,
                )
                for known, judge in trained.judges.items()
                if known in given
            ]
        elif given:
            found.append(Metric(where, part.metric, part.score(drawn[name], truth[name]), True))
        elif name in trained.judges:
            found.append(Metric(where, part.metric, part.score(trained.judges[name](drawn[anchor]), drawn[name]), True))
    return found


def _number(trained: Trained, given: tuple[str, ...]) -> int:
    """The given set as a number, so that each set has its own noise."""
    return sum(2**i for i, name in enumerate(trained.model.parts) if name in given)


def measured(trained: Trained, asked: Sequence[Direction]) -> list[Metric]:
    """The scores of these directions, sampling once for each given set."""
    given = dict.fromkeys(direction.given for direction in asked)
    wanted = {direction.condition for direction in asked}
    return [m for name in given for m in _scores(trained, (name,)) if m.condition in wanted]


def ours(trained: Trained) -> Found:
    made_from = {n: trained.config.modalities[n].of for n, part in trained.model.parts.items() if part.derived}
    sets = given_sets(list(trained.model.parts), made_from)
    if OURS not in trained.evaluated:
        trained.evaluated[OURS] = [metric for given in sets for metric in _scores(trained, given)]
    return {OURS: trained.evaluated[OURS]}


def named(trained: Trained) -> list[Metric]:
    """The scores of ours in the eight directions only."""
    return measured(trained, [d for d in (*READ, *DRAW) if d.given in trained.model.parts])


def _read_alone(direction: Direction) -> Any:
    def measure(trained: Trained) -> list[Metric]:
        truth, part = trained.held_out().data, trained.model.part(direction.target)
        said = trained.said(truth, direction.given, direction.target)
        return [Metric(direction.condition, part.metric, part.score(said, truth[direction.target]), True)]

    return measure


def _read_off_the_decoder(names: Iterable[str]) -> dict[str, Any]:
    return {f"modalities.{name}.reads": "decoder" for name in ON_A_GRID if name in names}


def single(direction: Direction, names: Sequence[str]) -> tuple[Method, Any]:
    """The model for one direction and its measure: trained by supervision, or conditioned on what is given."""
    uses = (direction.given, direction.target)
    # A head for pictures predicts best from the decoder if it has that to itself.
    change = {**{f"modalities.{name}": None for name in names if name not in uses}, **_read_off_the_decoder(uses)}
    if direction.target == names[0]:
        given = f"modalities.{direction.given}"
        # Dropped in a tenth of the examples, as is usual, and never diffused itself: only the image is learnt.
        told = {
            f"{given}.given_probability": 0.9,
            f"{given}.given_at_T": 0.0,
            f"{given}.loss_weight": 0.0,
            f"{given}.weight": {"kind": "none"},
            f"modalities.{names[0]}.given_probability": 0.0,
            "train.clean_pass": 0.0,
        }

        def measure(trained: Trained) -> list[Metric]:
            return measured(trained, [direction])

        method = Method(
            direction.name, lambda trained: {direction.name: measure(trained)}, {**change, **told}, uses=uses
        )
        return method, measure
    read = _read_alone(direction)
    method = Method(
        direction.name,
        lambda trained: {direction.name: read(trained)},
        change,
        supervised=(direction.given, direction.target),
        uses=uses,
    )
    return method, read


# A modality of the whole image is repeated at every pixel, each with its own noise. At this scale it is lost in the
# noise at about the same time as a mask.
OF_THE_WHOLE = 0.25


def unidiffuser(config: Config) -> dict[str, Any]:
    """The changes that turn a config into UniDiffuser's training: each modality is diffused, with its own time.

    Hidden parts are made from the image. The model stays conditioned on them, and no head restores them.
    """
    change: dict[str, Any] = {"train.clean_pass": 0.0, **_read_off_the_decoder(config.modalities)}
    for name, spec in config.modalities.items():
        key = f"modalities.{name}"
        if name == config.anchor:
            # Always drawn in the same number of steps: nothing is predicted in one.
            change |= {f"{key}.given_probability": 0.0, f"{key}.given_at_T": None, f"{key}.given_steps": None}
        elif kind(spec.kind).derived:
            change[f"{key}.loss_weight"] = 0.0
        else:
            scale = OF_THE_WHOLE if spec.kind in ("label", "caption", "embedding", "table") else 1.0
            change |= {
                f"{key}.diffused": True,
                f"{key}.weight": {"kind": "carried", "scale": scale},
                f"{key}.loss_weight": 0.1,
                f"{key}.given_probability": 0.0,
                f"{key}.unknown_probability": 0.1,
                f"{key}.own_time_probability": 0.9,
            }
    return change


def directions(names: Sequence[str]) -> list[Direction]:
    """The directions, of the eight, that these modalities allow."""
    return [d for d in (*READ, *DRAW) if {d.given, d.target} <= {*names}]


def behind(rows: list[Row], ours: str, theirs: str, where: str) -> tuple[float, str, float, float]:
    """How far `ours` is behind another method, as a share of its score; then the score's name and both scores."""
    mine, other = means(rows, ours, where), means(rows, theirs, where)
    metric = next((name for name in other if name.startswith("FD-")), next(iter(other), ""))
    a, b = mine[metric], other[metric]
    gap = (a - b) if metric.startswith("FD-") else (b - a)
    none = 0.0 if gap <= 0 else math.inf  # a missing score is NaN, and behind
    return gap / abs(b) if b else none, metric, a, b


def verdicts(rows: list[Row], slack: float = 1.0) -> list[Verdict]:
    """A claim for each direction, and one that enough of them hold."""
    found, held = [], 0
    asked = [d for d in (*READ, *DRAW) if any(row.method == d.name for row in rows)]
    for direction in asked:
        share, metric, a, b = behind(rows, OURS, direction.name, direction.condition)
        holds = share <= LEVEL * slack
        held += holds
        how = f"within {LEVEL:.0%} of" if slack else "no worse than"
        found.append(Verdict(f"{direction.condition}, {metric} {how} its own model's", holds, f"{a:.3g} and {b:.3g}"))
    wanted = min(WANTED, len(asked))
    return [*found, Verdict(f"at least {wanted} of these {len(asked)}", held >= wanted, str(held))]


def pictures(trained: Trained) -> dict[str, tuple[str, PILImage.Image]]:
    """The matrix of directions: a row for each given set, a column for each modality drawn."""
    rows = [(m.condition, m.metric, m.value) for m in ours(trained)[OURS]]
    names = [name for name, part in trained.model.parts.items() if not part.derived]
    return {"matrix": ("What is drawn (across) given what (down), each in its own unit.", matrix.picture(rows, names))}


def reference(trained: Trained) -> list[Metric]:
    """One half of the held-out images against the other, for every direction that draws images."""
    quality = measures.reference_quality(trained, condition((), trained.model.anchor_name))
    places = [condition((d.given,), d.target) for d in directions(list(trained.model.parts)) if d in DRAW]
    return [*quality, *(dataclasses.replace(m, condition=where) for where in places for m in quality)]


CONFIG = load(PRESET)
NAMES = list(CONFIG.modalities)
SINGLE = [single(direction, NAMES) for direction in directions(NAMES)]
METHODS = [Method(OURS, ours), *(method for method, _ in SINGLE)]
OTHER = Method(UNIDIFFUSER, lambda trained: {UNIDIFFUSER: named(trained)}, unidiffuser(CONFIG))
NEEDED = {OURS: named, **{method.name: measure for method, measure in SINGLE}}
TASK = Task(
    name="any_to_any",
    title="Any modality given any others",
    question="Does one model of all modalities draw and predict each of them, given any others, as well as a model "
    "trained for one direction alone, with the same backbone and the same number of training images?",
    methods=[*METHODS, OTHER, *other_budgets(METHODS, NEEDED)],
    needed=NEEDED,
    reference=reference,
    verdicts=verdicts,
    pictures=pictures,
    features="vgg16@64",  # not the network whose maps the model learns
    smoke={
        **image_mask.TASK.smoke,
        "modalities.label": {"kind": "label", "classes": 10, "weight": {"kind": "none"}},
        "modalities.embedding": None,
        "modalities.caption": None,
        "modalities.masked": {"kind": "masked", "of": "image", "channels": 1, "size": 8, "block": 2},
    },
    preset=PRESET,
    complete=True,
)
