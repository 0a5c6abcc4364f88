"""Few labels: one model of all images and some labels, against models of what is labelled alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.paper import image_label
from benchmarks.paper.core import OURS, Found, Method, Task, Trained, at_least, at_most, means
from benchmarks.paper.image_label import CLASSIFIER, DROPPED, OF_IMAGE, OF_LABEL
from benchmarks.paper.report import Metric, Row, Verdict

SHARES = (0.01, 0.05, 0.2)
LABEL = "modalities.label"
Measure = Callable[[Trained], list[Metric]]


def named(name: str, share: float) -> str:
    return f"{name}, {share:.0%} labelled"


def at(share: float, methods: Sequence[Method], measures: dict[str, Measure]) -> list[Method]:
    """The methods with so many labels: ours has the images of all examples, the others what is labelled alone."""
    return [_at(share, method, measures[method.name]) for method in methods if method.name in measures]


def _at(share: float, method: Method, measure: Measure) -> Method:
    name, few = named(method.name, share), {f"{LABEL}.labelled_fraction": share}
    alone: dict[str, Any] = {} if method.name == OURS else {f"{LABEL}.labelled_only": True}

    def evaluate(trained: Trained) -> Found:
        return {name: measure(trained)}

    return dataclasses.replace(method, name=name, evaluate=evaluate, change={**method.change, **few, **alone})


def verdicts(rows: list[Row], slack: float = 1.0) -> list[Verdict]:
    """Read better than by a classifier, and drawn better than by a class-conditional model, of what is labelled."""
    found = []
    for share in SHARES:
        reads, alone = (means(rows, named(name, share), OF_IMAGE)["accuracy"] for name in (OURS, CLASSIFIER))
        mine, theirs = (means(rows, named(name, share), OF_LABEL) for name in (OURS, DROPPED))
        distance = next((name for name in theirs if name.startswith("FD-")), "FD")
        of = f"with {share:.0%} labelled"
        found += [
            at_least(f"accuracy no worse than the classifier's {of}", reads, alone),
            at_most(f"{distance} for a label no worse than the class-conditional model's {of}",
                    mine[distance], theirs[distance]),
            at_least(f"images for a label show it as often as the class-conditional model's {of}",
                     mine["consistency"], theirs["consistency"]),
        ]  # fmt: skip
    return found


MEASURES: dict[str, Measure] = {
    OURS: image_label.main,
    DROPPED: image_label.drawn_for_a_label,
    CLASSIFIER: image_label.classified,
}

TASK = Task(
    name="few-labels",
    title="Few labels",
    question="Where few images have a label, does one model of all images draw and read better than models of what is "
    "labelled, on as many images seen?",
    methods=[
        Method(OURS, lambda trained: {OURS: image_label.main(trained)}),
        *(method for share in SHARES for method in at(share, image_label.METHODS, MEASURES)),
    ],
    reference=image_label.reference,
    verdicts=verdicts,
    pictures=image_label.pictures,
    smoke=image_label.TASK.smoke,
    preset="image-label",
)
