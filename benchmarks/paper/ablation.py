"""Ablations on digits with labels and masks: the preset, with one thing changed at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image as PILImage

from benchmarks.paper import measures
from benchmarks.paper.core import OURS, Found, Method, Task, Trained
from benchmarks.paper.report import Metric, Row, Verdict
from mmfast.evaluate import evaluate
from mmfast.pictures import sample_grid

JOINT, OF_LABEL, OF_MASK, OF_IMAGE = "drawn together", "given the label", "given the mask", "given the image"
# By name in `mmfast eval`: condition, metric, whether higher is better.
METRICS = {
    "label.joint_agreement": (JOINT, "label agreement", True),
    "mask.joint_iou": (JOINT, "mask IoU", True),
    "label.conditional_accuracy": (OF_LABEL, "label accuracy", True),
    "mask.conditional_iou": (OF_MASK, "mask IoU", True),
    "label.recovered_accuracy": (OF_IMAGE, "label accuracy", True),
    "mask.recovered_iou": (OF_IMAGE, "mask IoU", True),
}
LABEL, MASK = "modalities.label", "modalities.mask"


def weights(
    name: str, key: str, scales: Sequence[float], variant: Callable[[str, dict[str, Any]], Method]
) -> list[Method]:
    """Variants of a modality's W: its kinds, and other scales of the preset's kind."""
    kinds = {"none": 0.0, "bridge": 2.0, "shift": 1.0, "constant": 0.01}
    changes = [(f"W of the {name}: {kind}", {"kind": kind, "scale": scale}) for kind, scale in kinds.items()]
    changes += [(f"W of the {name}: carried, {scale:.2g}", {"kind": "carried", "scale": scale}) for scale in scales]
    return [variant(title, {f"{key}.weight": weight}) for title, weight in changes]


def _variant(title: str, change: dict[str, Any]) -> Method:
    return Method(title, lambda trained: {title: _measured(trained)}, change)


def _measured(trained: Trained) -> list[Metric]:
    # A copy, because the result is identified by the cell's own config.
    evaluation = dataclasses.replace(trained.config.evaluate, samples=trained.samples)
    found = evaluate(trained.model, dataclasses.replace(trained.config, evaluate=evaluation), trained.data, quiet=True)
    rows = [Metric(condition, metric, found[name], higher) for name, (condition, metric, higher) in METRICS.items()]
    return [*rows, *measures.image_quality(trained, JOINT, trained.draw(purpose=1)["image"])]


def ours(trained: Trained) -> Found:
    return {OURS: _measured(trained)}


def reference(trained: Trained) -> list[Metric]:
    return measures.reference_quality(trained, JOINT)


def verdicts(rows: list[Row], slack: float = 1.0) -> list[Verdict]:
    """Whether no variant is better than the preset in more measures than it is worse in, by two standard errors."""
    return [_compared(rows, name) for name in dict.fromkeys(row.method for row in rows) if name != OURS]


def _compared(rows: list[Row], name: str) -> Verdict:
    usual = {(row.condition, row.metric): row for row in rows if row.method == OURS}
    better: list[str] = []
    worse: list[str] = []
    compared = 0
    for row in (row for row in rows if row.method == name):
        base = usual.get((row.condition, row.metric))
        if base is None or base.stderr is None or row.stderr is None:
            continue
        compared += 1
        gain = (row.mean - base.mean) * (1 if row.higher_is_better else -1)
        if abs(gain) > 2 * (row.stderr**2 + base.stderr**2) ** 0.5:
            (better if gain > 0 else worse).append(f"{row.metric} {row.condition} {gain:+.3f}")
    return Verdict(
        f"the preset is no worse than: {name}",
        compared > 0 and len(better) <= len(worse),
        f"of {compared} measures with standard errors better in {len(better)} ({'; '.join(better) or 'none'}), "
        f"worse in {len(worse)} ({'; '.join(worse) or 'none'})",
    )


def pictures(trained: Trained) -> dict[str, tuple[str, PILImage.Image]]:
    joint = trained.draw(purpose=10, count=16)
    parts = {name: trained.model.part(name) for name in joint}
    return {"joint": ("The preset: image, label and mask from noise.", sample_grid(parts, joint, "from noise"))}


SHARED = {"kind": "bridge", "scale": 2.0}
TASK = Task(
    name="ablation",
    title="What each choice is worth",
    question="What is each choice worth: the weight W and its scale, the space, the encoders, conditioning on what is "
    "given, self-conditioning and the loss weights? Gains are those of the variant over the preset, and count if they "
    "exceed two standard errors of the difference.",
    methods=[
        Method(OURS, ours),
        *weights("label", LABEL, (0.17 * 0.3, 0.17 * 3), _variant),
        *weights("mask", MASK, (0.3, 3.0), _variant),
        _variant("own channels, bridge for both", {f"{LABEL}.weight": SHARED, f"{MASK}.weight": SHARED}),
        _variant(
            "shared channels, bridge for both", {f"{LABEL}.weight": SHARED, f"{MASK}.weight": SHARED, "space": "shared"}
        ),
        # Unless the network is told the image, one step from z_T sees nothing of it.
        _variant("not told what is given", {"told": False, "modalities.image.given_steps": None}),
        _variant("learned encoders", {f"{LABEL}.encoder": "learned", f"{MASK}.encoder": "learned"}),
        _variant("sampled self-conditioning", {"sample.heads": "sampled"}),
        _variant("loss weights a quarter", {f"{LABEL}.loss_weight": 0.05, f"{MASK}.loss_weight": 0.125}),
        _variant("loss weights four times", {f"{LABEL}.loss_weight": 0.8, f"{MASK}.loss_weight": 2.0}),
    ],
    reference=reference,
    verdicts=verdicts,
    pictures=pictures,
    smoke={
        "backbone": {"kind": "mlp", "width": 32, "blocks": 1, "features": 8},
        "sample": {"sampler": "ddim", "steps": 2},
    },
    preset="digits",
)
