"""What W is worth for labels on real pictures: the preset image-label, and one thing changed at a time."""

from __future__ import annotations

from typing import Any

from benchmarks.paper import image_label
from benchmarks.paper.ablation import LABEL, verdicts
from benchmarks.paper.core import OURS, Method, Task

KINDS = {"carried": (0.045, 0.17), "bridge": (2.0,), "shift": (1.0,), "constant": (0.01,)}


def _variant(title: str, change: dict[str, Any]) -> Method:
    return Method(title, lambda trained: {title: image_label.measured(trained)}, change)


TASK = Task(
    name="ablation-label",
    title="What W is worth for images and labels",
    question="Of the label's weight W, its scale and its loss's weight: which choice is best on Fashion-MNIST, and by "
    "how much? Gains are of the variant over the preset, which has no W; more than two standard errors are counted.",
    methods=[
        Method(OURS, lambda trained: {OURS: image_label.measured(trained)}),
        *(
            _variant(f"W of the label: {kind}, {scale:.2g}", {f"{LABEL}.weight": {"kind": kind, "scale": scale}})
            for kind, scales in KINDS.items()
            for scale in scales
        ),
        _variant("loss weight of the label 0.1", {f"{LABEL}.loss_weight": 0.1}),
    ],
    reference=image_label.reference,
    verdicts=verdicts,
    pictures=image_label.pictures,
    smoke=image_label.TASK.smoke,
    preset="image-label",
)
