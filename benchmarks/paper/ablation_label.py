"""Ablations for labels on real pictures: the preset image-label, with one thing changed at a time."""

from __future__ import annotations

from typing import Any

from benchmarks.paper import image_label
from benchmarks.paper.ablation import LABEL, verdicts
from benchmarks.paper.core import OURS, Method, Task

KINDS = {"carried": (0.045, 0.17), "bridge": (2.0,), "shift": (1.0,), "constant": (0.01,)}
# How the preset taught to read before it had a pass without noise.
LITTLE_NOISE = {"train.low_noise": {"share": 0.15, "until": 0.1, "weight": 0.25}}


def _variant(title: str, change: dict[str, Any]) -> Method:
    return Method(title, lambda trained: {title: image_label.measured(trained)}, change)


TASK = Task(
    name="ablation-label",
    title="What each choice is worth for images and labels",
    question="What is each choice worth on Fashion-MNIST: the features that the label's head reads, the weight W, the "
    "loss weight and what is given in training? Gains are those of the variant over the preset, and count if they "
    "exceed two standard errors.",
    methods=[
        Method(OURS, lambda trained: {OURS: image_label.measured(trained)}),
        *(
            _variant(f"W of the label: {kind}, {scale:.2g}", {f"{LABEL}.weight": {"kind": kind, "scale": scale}})
            for kind, scales in KINDS.items()
            for scale in scales
        ),
        _variant("the label read off the last features", {f"{LABEL}.reads": "decoder"}),
        _variant("channels of noise for the label", {f"{LABEL}.weight": {"kind": "carried", "scale": 1e-6}}),
        _variant(
            "images given at t = T instead of a pass without noise",
            {"modalities.image.given_probability": 0.4, "modalities.image.given_at_T": 0.8, "train.clean_pass": 0.0},
        ),
        _variant("examples at little noise instead of a pass without noise", {**LITTLE_NOISE, "train.clean_pass": 0.0}),
        _variant("no pass without noise", {"train.clean_pass": 0.0}),
        _variant("the label given in half of the examples", {f"{LABEL}.given_probability": 0.5}),
        *(_variant(f"loss weight of the label {w}", {f"{LABEL}.loss_weight": w}) for w in (0.015, 0.24)),
    ],
    reference=image_label.reference,
    verdicts=verdicts,
    pictures=image_label.pictures,
    smoke=image_label.TASK.smoke,
    preset="image-label",
)
