"""A seventh modality added to a trained model of six in a third of the images, against all seven from nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

from PIL import Image as PILImage

from benchmarks.paper import any_to_any, measures
from benchmarks.paper.any_to_any import DRAW, LEVEL, READ, Direction, behind, measured
from benchmarks.paper.core import OURS, Found, Method, Task, Trained
from benchmarks.paper.page import three
from benchmarks.paper.report import Metric, Row, Verdict
from mmfast.pictures import sample_grid

# Added to the preset's six: a network's features of the whole image.
VECTOR = "vector"
SEVENTH: dict[str, Any] = {
    f"modalities.{VECTOR}": {
        "kind": "embedding",
        "dim": 32,
        "network": "efficientnet-lite0",
        "weight": {"kind": "none"},
        "loss_weight": 0.002,
        "given_probability": 0.2,
    }
}
# The share of the images that the model sees with the new modality, and how often that modality is given there: in
# total as often as to the model that has had it from the first image on.
SHARE = 1 / 3
ADDED = {VECTOR: 0.6, "mask": 0.75}
DIRECTIONS = [*READ, *DRAW, Direction("image", VECTOR), Direction(VECTOR, "image")]


def named(added: str) -> str:
    """The name of the method that starts with the other six modalities."""
    return f"{added} added to the other six"


def touches(direction: Direction, added: str) -> bool:
    return added in (direction.given, direction.target)


def scores(trained: Trained) -> list[Metric]:
    """The scores of every direction between two modalities of the model."""
    there = trained.model.parts
    return measured(trained, [d for d in DIRECTIONS if {d.given, d.target} <= {*there}])


def ours(trained: Trained) -> Found:
    return {OURS: scores(trained)}


def added(name: str) -> Method:
    """Trained without the modality for all images, then with it for a third of them."""
    method = named(name)

    def evaluate(trained: Trained) -> Found:
        return {method: scores(trained)}

    six = Method(f"without {name}", ours, {f"modalities.{name}": None})
    change = {f"modalities.{name}.given_probability": ADDED[name]}
    return Method(method, evaluate, change, share=SHARE, first=six, uses=(name,))


def verdicts(rows: list[Row], slack: float = 1.0) -> list[Verdict]:
    """For each added modality: a claim for each of its own directions, and one for all directions."""
    found, within = [], f"within {LEVEL:.0%} of" if slack else "no worse than"
    for name in ADDED:
        asked = [d for d in DIRECTIONS if any((r.method, r.condition) == (named(name), d.condition) for r in rows)]
        near = 0
        for direction in asked:
            share, metric, a, b = behind(rows, named(name), OURS, direction.condition)
            near += share <= LEVEL * slack
            if touches(direction, name):
                claim = f"{name} added: {direction.condition}, {metric} {within} all from nothing"
                found.append(Verdict(claim, share <= LEVEL * slack, f"{three(a)} and {three(b)}"))
        if asked:
            claim = f"{name} added: all {len(asked)} directions {within} all from nothing"
            found.append(Verdict(claim, near == len(asked), str(near)))
    return found


def pictures(trained: Trained) -> dict[str, tuple[str, PILImage.Image]]:
    """Unconditional samples of the model that has had all modalities from the first image on."""
    drawn, parts = trained.draw(purpose=10, count=16), {x: trained.model.part(x) for x in ("image", "mask")}
    shown = {name: drawn[name] for name in parts}
    return {"joint": ("Drawn from noise together.", sample_grid(parts, shown, "image and mask from noise"))}


def reference(trained: Trained) -> list[Metric]:
    """One half of the held-out images against the other, for every direction that draws images."""
    there, anchor = trained.model.parts, trained.model.anchor_name
    drawn = [d.condition for d in DIRECTIONS if d.target == anchor and d.given in there]
    quality = measures.reference_quality(trained, "")
    return [dataclasses.replace(m, condition=where) for where in drawn for m in quality]


TASK = Task(
    name="added-modality",
    title="A modality added to a trained model",
    question="Does a model trained with six modalities, which then gets a seventh (`mmfast train ... --from RUN`) in a "
    "third of the images, come within 5 per cent of one that had all seven from the first image on?",
    methods=[Method(OURS, ours), *(added(name) for name in ADDED)],
    reference=reference,
    verdicts=verdicts,
    pictures=pictures,
    features="vgg16@64",  # not the network whose features the model learns
    complete=True,
    change=SEVENTH,
    smoke=any_to_any.TASK.smoke,
    preset=any_to_any.PRESET,
)
