"""Ablations for masks on real data: the preset image-mask, with one thing changed at a time."""

from __future__ import annotations

from typing import Any

from benchmarks.paper import image_mask, measures
from benchmarks.paper.ablation import verdicts, weights
from benchmarks.paper.core import OURS, Method, Task, Trained
from benchmarks.paper.report import Metric

MASK, IMAGE = "modalities.mask", "modalities.image"
DECODER = {f"{MASK}.reads": "decoder", "train.clean_pass": 0.0}
# How the preset learnt to predict masks before it had a pass without noise.
GIVEN = {**DECODER, f"{IMAGE}.given_probability": 0.85, f"{IMAGE}.given_at_T": 1.0}
# Masks predicted from images at little noise instead of from given ones.
UNKNOWN = {
    **DECODER,
    f"{MASK}.given_probability": 0.1,
    f"{MASK}.unknown_probability": 0.6,
    "train.low_noise": {"share": 0.6, "until": 0.03},
}


def _variant(title: str, change: dict[str, Any]) -> Method:
    return Method(title, lambda trained: {title: image_mask.measured(trained)}, change)


def reference(trained: Trained) -> list[Metric]:
    return measures.reference_quality(trained, image_mask.JOINT)


TASK = Task(
    name="ablation-mask",
    title="What each choice is worth for images and masks",
    question="What is each choice worth on the sprites: the mask's weight W and its scale, its loss weight and what is "
    "given in training? Gains are those of the variant over the preset, and count if they exceed two standard errors.",
    methods=[
        Method(OURS, lambda trained: {OURS: image_mask.measured(trained)}),
        *weights("mask", MASK, (0.15, 0.5), _variant),
        _variant("learned encoder", {f"{MASK}.encoder": "learned"}),
        _variant("loss weight of the mask 1", {f"{MASK}.loss_weight": 1.0}),
        _variant("loss weight of the mask 0.03", {f"{MASK}.loss_weight": 0.03}),
        _variant("no pass without noise", {"train.clean_pass": 0.0}),
        _variant("a pass without noise of weight 5", {"train.clean_pass": 5.0}),
        _variant("read off the decoder, the image given in 0.85", GIVEN),
        _variant("read off the decoder, the image given in 0.7", {**GIVEN, f"{IMAGE}.given_probability": 0.7}),
        _variant("read off the decoder, of a given image not always at T", {**GIVEN, f"{IMAGE}.given_at_T": 0.8}),
        _variant("read off the decoder, unknown in 0.6, at little noise", UNKNOWN),
        _variant("a time of its own in 0.3", {f"{MASK}.own_time_probability": 0.3}),
    ],
    judge=image_mask.TASK.judge,
    reference=reference,
    verdicts=verdicts,
    pictures=image_mask.pictures,
    features=image_mask.TASK.features,
    smoke=image_mask.TASK.smoke,
    preset="image-mask",
)
