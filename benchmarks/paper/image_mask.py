"""Image and segmentation mask: one model for both, against an image model and a segmentation model."""

from __future__ import annotations

import dataclasses
from typing import Any

from PIL import Image as PILImage
from torch import Tensor

from benchmarks.paper import measures, supervised
from benchmarks.paper.core import (
    MANY_STEPS,
    OURS,
    Found,
    Method,
    Task,
    Trained,
    at_least,
    at_most,
    fine_tuned,
    means,
    near,
    other_budgets,
)
from benchmarks.paper.report import Metric, Row, Verdict
from mmfast.model import Model
from mmfast.pictures import sample_grid

JOINT, OF_MASK, OF_IMAGE = "drawn together", "given the mask", "given the image"
IN_TURN, BY_DDPM = "the mask drawn first", measures.by_ddpm(JOINT)
IMAGE, SEGMENTATION, JUDGE = "image alone", "segmentation alone", "judge"


def _segments(trained: Trained, images: Tensor) -> Tensor:
    """The masks that the judge predicts: a segmentation model with its own seed, not part of the comparison."""
    given, how = {"image": images.clamp(-1, 1)}, trained.config.sample.precision
    return supervised.answer(trained.judge(), given, "image", "mask", how)


def _iou(model: Model, condition: str, a: Tensor, b: Tensor, name: str = "mean IoU") -> Metric:
    return Metric(condition, name, model.part("mask").score(a, b), higher_is_better=True)


def _drawn(trained: Trained, condition: str, **options: Any) -> list[Metric]:
    """Measures of images from noise, and of the masks drawn with them if there are any."""
    drawn = trained.draw(purpose=1, **options)
    found = measures.image_quality(trained, condition, drawn["image"])
    if "mask" in drawn:
        seen = _segments(trained, drawn["image"])
        found.append(_iou(trained.model, condition, drawn["mask"], seen, "mask against judge"))
    return found


def measured(trained: Trained) -> list[Metric]:
    """Pairs drawn together, images for a mask, masks for an image."""
    found = _drawn(trained, JOINT)
    truth = trained.held_out().data
    of_mask = trained.draw({"mask": truth["mask"]}, purpose=2)
    found += measures.image_quality(trained, OF_MASK, of_mask["image"])
    found.append(
        _iou(trained.model, OF_MASK, truth["mask"], _segments(trained, of_mask["image"]), "mask against judge")
    )
    return [*found, *_masks(trained)]


def _masks(trained: Trained, **options: Any) -> list[Metric]:
    truth = trained.held_out().data
    said = trained.draw({"image": truth["image"]}, purpose=3, **options)["mask"]
    return [_iou(trained.model, OF_IMAGE, said, truth["mask"])]


def _both(trained: Trained) -> list[Metric]:
    """Measures with both samplers."""
    return [*_drawn(trained, JOINT), *_drawn(trained, BY_DDPM, **measures.DDPM)]


def main(trained: Trained) -> list[Metric]:
    """What the claims are about, and images for masks."""
    return [*measured(trained), *_drawn(trained, BY_DDPM, **measures.DDPM)]


def ours(trained: Trained) -> Found:
    found = [*main(trained), *_drawn(trained, IN_TURN, first=["mask"])]
    as_drawn = _masks(trained, steps=trained.config.sample.steps)
    return {OURS: [*found, *measures.bits(trained, 250)], MANY_STEPS: as_drawn}


def image_alone(trained: Trained) -> Found:
    return {IMAGE: [*_both(trained), *measures.bits(trained, 250)]}


def _segmented(trained: Trained) -> list[Metric]:
    truth = trained.held_out().data
    said = trained.said(truth, "image", "mask")
    return [_iou(trained.model, OF_IMAGE, said, truth["mask"])]


def segmentation(trained: Trained) -> Found:
    return {SEGMENTATION: _segmented(trained)}


def judge(trained: Trained) -> Found:
    return {}


def reference(trained: Trained) -> list[Metric]:
    """One half of the held-out images against the other, and the judge on real images."""
    truth = trained.held_out().data
    seen = _iou(trained.model, JOINT, truth["mask"], _segments(trained, truth["image"]), "mask against judge")
    quality = measures.reference_quality(trained, JOINT)
    others = (dataclasses.replace(m, condition=where) for where in (IN_TURN, BY_DDPM, OF_MASK) for m in quality)
    return [*quality, *others, seen]


def verdicts(rows: list[Row], slack: float = 1.0) -> list[Verdict]:
    iou, alone = (means(rows, name, OF_IMAGE)["mean IoU"] for name in (OURS, SEGMENTATION))
    found = [at_least(f"mean IoU {near(0.02, slack)} the segmentation model's", iou, alone - 0.02 * slack)]
    for condition in (JOINT, BY_DDPM):
        mine, image = means(rows, OURS, condition), means(rows, IMAGE, condition)
        if condition != JOINT and not mine:
            continue  # not measured
        how = condition.removeprefix(JOINT)
        distance = next((name for name in image if name.startswith("FD-")), "FD")
        found += [
            at_most(f"{distance} no worse than the image model's{how}", mine[distance], image[distance]),
            at_least(f"precision no worse than the image model's{how}", mine["precision"], image["precision"]),
            at_least(f"recall no worse than the image model's{how}", mine["recall"], image["recall"]),
        ]
    return found


def pictures(trained: Trained) -> dict[str, tuple[str, PILImage.Image]]:
    """Generated pairs only, because we may not show the original art."""
    joint = trained.draw(purpose=10, count=24)
    parts = {name: trained.model.part(name) for name in joint}
    again = trained.draw({"mask": joint["mask"]}, purpose=11, count=24)
    return {
        "joint": ("Image and mask drawn from noise together.", sample_grid(parts, joint, "image and mask from noise")),
        "given-mask": (
            "Other images for the masks of the pairs drawn together.",
            sample_grid(parts, again, "image from mask", ["mask"]),
        ),
    }


METHODS = [
    Method(OURS, ours),
    Method(IMAGE, image_alone, {"modalities.mask": None, "train.given_probability": 0.0, "train.clean_pass": 0.0}),
    # It predicts masks best from the decoder, which it has to itself.
    Method(SEGMENTATION, segmentation, {"modalities.mask.reads": "decoder"}, supervised=("image", "mask")),
]
NEEDED = {OURS: main, IMAGE: _both, SEGMENTATION: _segmented}
TASK = Task(
    name="image-mask",
    title="Image and segmentation mask together",
    question="Does one model of images and masks draw as well as an image model and segment as well as a segmentation "
    "model, with the same backbone and the same number of training images?",
    methods=[
        *METHODS,
        *fine_tuned(METHODS, {SEGMENTATION: _segmented}),
        *other_budgets(METHODS, NEEDED),
    ],
    needed=NEEDED,
    judge=Method(JUDGE, judge, {"modalities.mask.reads": "decoder"}, supervised=("image", "mask")),
    reference=reference,
    verdicts=verdicts,
    pictures=pictures,
    features="efficientnet-lite0",
    smoke={
        "data": {"kind": "digits"},
        "modalities.image": {"kind": "image", "channels": 1, "size": 8, "levels": 17},
        "modalities.mask": {"kind": "mask", "classes": 2, "size": 8, "reads": "encoder"},
        "backbone": {"kind": "dit", "width": 32, "blocks": 2, "heads": 2, "features": 8},
        "sample": {"sampler": "ddim", "steps": 4, "batch_size": 50},
    },
)
