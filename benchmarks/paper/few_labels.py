"""Few labels: one model of all images and some labels, against models of the labelled images alone."""

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
# Ours, with the labelled examples repeated until they are this share of the training examples.
REPEATED, REPEATED_TO = f"{OURS}, labels repeated", 0.5
Measure = Callable[[Trained], list[Metric]]


def named(name: str, share: float) -> str:
    return f"{name}, {share:.0%} labelled"


def at(share: float, methods: Sequence[Method], measures: dict[str, Measure]) -> list[Method]:
    """The methods with this share of labels: ours sees all images, the others only the labelled ones."""
    found = []
    for method in (method for method in methods if method.name in measures):
        measure = measures[method.name]
        if method.name == OURS:
            again = dataclasses.replace(method, name=REPEATED)
            found += [_at(share, method, measure, {}), _at(share, again, measure, {"labelled_share": REPEATED_TO})]
        else:
            found.append(_at(share, method, measure, {"labelled_only": True}))
    return found


def _at(share: float, method: Method, measure: Measure, more: dict[str, Any]) -> Method:
    name = named(method.name, share)
    change = {f"{LABEL}.{key}": value for key, value in {"labelled_fraction": share, **more}.items()}

    def evaluate(trained: Trained) -> Found:
        return {name: measure(trained)}

    return dataclasses.replace(method, name=name, evaluate=evaluate, change={**method.change, **change})


def verdicts(rows: list[Row], slack: float = 1.0) -> list[Verdict]:
    """Claims: ours predicts and draws no worse than a classifier and a class-conditional model of the labelled images.

    They are about ours with repeated labels, if that was measured.
    """
    found = []
    for share in SHARES:
        ours = REPEATED if any(row.method == named(REPEATED, share) for row in rows) else OURS
        reads, alone = (means(rows, named(name, share), OF_IMAGE)["accuracy"] for name in (ours, CLASSIFIER))
        mine, theirs = (means(rows, named(name, share), OF_LABEL) for name in (ours, DROPPED))
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
    **image_label.SINGLE,
}

TASK = Task(
    name="few-labels",
    title="Few labels",
    question="If few images have a label, does one model of all images draw and predict better than models of the "
    "labelled images, with the same number of training images?",
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
