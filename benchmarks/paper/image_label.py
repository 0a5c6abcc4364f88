"""Image and label: one model for both, against an image model, a class-conditional model and a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image as PILImage
from torch import Tensor

from benchmarks.paper import measures
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
    seeded,
)
from benchmarks.paper.report import Metric, Row, Verdict
from mmfast.metrics.frechet import pixel_features
from mmfast.pictures import sample_grid

JOINT, OF_LABEL, OF_IMAGE = "drawn together", "given the label", "given the image"
IN_TURN = "the label drawn first"
CONDITIONAL, IMAGE, CLASSIFIER = "class-conditional DDPM", "image alone", "classifier alone"
DROPPED = f"{CONDITIONAL}, label dropped"
SCALES = (1.5, 3.0)


def _judge(trained: Trained) -> Any:
    """The data set's judge, a classifier trained on real images alone."""
    return trained.judges["label"]


def _features(judge: Any) -> tuple[str, Callable[[Tensor], Tensor]]:
    return ("Classifier", judge.features) if hasattr(judge, "features") else ("pixels", pixel_features)


def _quality(trained: Trained, condition: str, images: Tensor) -> list[Metric]:
    name, features = _features(_judge(trained))
    return measures.quality(condition, name, features(images), features(measures.real(trained, trained.samples)))


def _joint(trained: Trained, condition: str = JOINT, **options: Any) -> list[Metric]:
    """Measures of images and labels from noise: drawn together, or in the order that the options set."""
    drawn = trained.draw(purpose=1, **options)
    found = _quality(trained, condition, drawn["image"])
    if "label" in drawn:
        share = measures.agreement(_judge(trained)(drawn["image"]), drawn["label"])
        found.append(Metric(condition, "consistency", share, higher_is_better=True))
    return found


def drawn_for_a_label(trained: Trained, **options: Any) -> list[Metric]:
    labels = seeded(trained.samples, trained.config.modalities["label"].classes)
    images = trained.draw({"label": labels}, purpose=2, **options)["image"]
    share = measures.agreement(_judge(trained)(images), labels)
    return [*_quality(trained, OF_LABEL, images), Metric(OF_LABEL, "consistency", share, higher_is_better=True)]


def _accuracy(trained: Trained, answer: Callable[[dict[str, Tensor]], Tensor], count: int) -> list[Metric]:
    data = trained.held_out(count).data
    share = measures.agreement(answer({"image": data["image"]}), data["label"])
    return [Metric(OF_IMAGE, "accuracy", share, higher_is_better=True)]


def _many(trained: Trained) -> int:
    """How many labels are predicted: one step each is cheap, and 5,000 of them give a standard error of 0.006."""
    return 5 * trained.samples


def _drawn_label(trained: Trained, count: int, **options: Any) -> list[Metric]:
    """Accuracy of labels drawn for given images."""
    return _accuracy(trained, lambda given: trained.draw(given, 3, len(given["image"]), **options)["label"], count)


def measured(trained: Trained) -> list[Metric]:
    """Pairs in both orders, images for a label, labels for an image."""
    pairs = [*_joint(trained, first=[]), *_joint(trained, IN_TURN, first=["label"])]
    return [*pairs, *drawn_for_a_label(trained), *_drawn_label(trained, _many(trained))]


def main(trained: Trained) -> list[Metric]:
    """The measures that the claims need."""
    return [*_joint(trained, first=[]), *drawn_for_a_label(trained), *_drawn_label(trained, _many(trained))]


def ours(trained: Trained) -> Found:
    rows = {OURS: [*measured(trained), *measures.bits(trained, 250)]}
    rows[MANY_STEPS] = _drawn_label(trained, trained.samples, steps=trained.config.sample.steps)
    for scale in SCALES:
        how: dict[str, Any] = {"guidance_scale": {"label": scale}}
        rows[_guided(OURS, scale)] = [
            *_joint(trained, IN_TURN, first=["label"], **how),
            *drawn_for_a_label(trained, **how),
        ]
    return rows


def _guided(name: str, scale: float) -> str:
    return f"{name}, guidance {scale:g}"


def conditional(trained: Trained) -> Found:
    return {CONDITIONAL: drawn_for_a_label(trained)}


def dropped(trained: Trained) -> Found:
    """Measured with guidance too, which needs a model that can also draw without the label."""
    guided = {_guided(CONDITIONAL, s): drawn_for_a_label(trained, guidance_scale={"label": s}) for s in SCALES}
    return {DROPPED: drawn_for_a_label(trained), **guided}


def image_alone(trained: Trained) -> Found:
    return {IMAGE: [*_joint(trained), *measures.bits(trained, 250)]}


def classified(trained: Trained) -> list[Metric]:
    def answer(given: dict[str, Tensor]) -> Tensor:
        return trained.said(given, "image", "label")

    return _accuracy(trained, answer, _many(trained))


def classifier(trained: Trained) -> Found:
    return {CLASSIFIER: classified(trained)}


def reference(trained: Trained) -> list[Metric]:
    """The judge on real images, and one half of the held-out images against the other."""
    name, features = _features(_judge(trained))
    truth, halves = trained.held_out().data, [features(half) for half in measures.two_halves(trained)]
    true = measures.agreement(_judge(trained)(truth["image"]), truth["label"])
    found = []
    for condition in (JOINT, IN_TURN, OF_LABEL):
        found += measures.quality(condition, name, *halves)
        found.append(Metric(condition, "consistency", true, higher_is_better=True))
    return found


def verdicts(rows: list[Row], slack: float = 1.0) -> list[Verdict]:
    """Claims against the classifier and a class-conditional model that, as ours, can also draw without the label."""
    mine, theirs = (means(rows, name, OF_LABEL) for name in (OURS, DROPPED))
    distance = next((name for name in theirs if name.startswith("FD-")), "FD")
    together, in_turn = means(rows, OURS, JOINT), means(rows, _guided(OURS, SCALES[-1]), IN_TURN)
    accuracy, alone = means(rows, OURS, OF_IMAGE), means(rows, CLASSIFIER, OF_IMAGE)
    model = "the class-conditional model's, label dropped"
    turns = f"the same of pairs whose label is drawn first, and guides the image by {SCALES[-1]:g}"
    return [
        at_most(f"{distance} for a label no worse than {model}", mine[distance], theirs[distance]),
        at_least(f"recall for a label no worse than {model}", mine["recall"], theirs["recall"]),
        *(
            at_least(f"{name} for a label {near(0.02, slack)} {model}", mine[name], theirs[name] - 0.02 * slack)
            for name in ("precision", "consistency")
        ),
        at_least("pairs drawn together agree at least 90 per cent of the time", together["consistency"], 0.9),
        *([at_least(turns, in_turn["consistency"], 0.9)] if in_turn else []),
        at_least(
            f"accuracy {near(0.03, slack)} the classifier's", accuracy["accuracy"], alone["accuracy"] - 0.03 * slack
        ),
    ]


def pictures(trained: Trained) -> dict[str, tuple[str, PILImage.Image]]:
    """Pairs drawn together, and images for each label in turn."""
    classes = trained.config.modalities["label"].classes
    joint = trained.draw(purpose=10, count=2 * classes)
    given = trained.draw({"label": seeded(2 * classes, classes)}, purpose=11, count=2 * classes)
    parts = {name: trained.model.part(name) for name in joint}
    return {
        "joint": (
            "Drawn from noise: the label first, then the image given the label.",
            sample_grid(parts, joint, "image and label from noise"),
        ),
        "given-label": ("Drawn for a given label.", sample_grid(parts, given, "image from label", ["label"])),
    }


# Without what only helps to predict labels: their loss, a pass without noise, and more examples at little noise.
DRAWS_ALONE = {
    "modalities.label.weight": {"kind": "none"},
    "modalities.label.loss_weight": 0.0,
    "modalities.image.given_probability": 0.0,
    "train.low_noise": {"share": 0.0},
    "train.clean_pass": 0.0,
}
METHODS = [
    Method(OURS, ours),
    Method(CONDITIONAL, conditional, {**DRAWS_ALONE, "modalities.label.given_probability": 1.0}),
    Method(DROPPED, dropped, {**DRAWS_ALONE, "modalities.label.given_probability": 0.9}),
    Method(
        IMAGE,
        image_alone,
        {
            "modalities.label": None,
            "train.given_probability": 0.0,
            "train.low_noise": {"share": 0.0},
            "train.clean_pass": 0.0,
            "sample.first": None,
        },
    ),
    Method(CLASSIFIER, classifier, supervised=("image", "label")),
]
SINGLE = {DROPPED: drawn_for_a_label, CLASSIFIER: classified}
NEEDED = {OURS: main, **SINGLE}
TASK = Task(
    name="image-label",
    title="Image and label together",
    question="Does one model of images and labels draw as well as a class-conditional model and classify as well as a "
    "classifier, with the same backbone and the same number of training images?",
    methods=[
        *METHODS,
        *fine_tuned(METHODS, SINGLE),
        *other_budgets(METHODS, NEEDED),
    ],
    needed=NEEDED,
    reference=reference,
    verdicts=verdicts,
    pictures=pictures,
    smoke={
        "data": {"kind": "digits"},
        "modalities.image": {"kind": "image", "channels": 1, "size": 8, "levels": 17},
        "modalities.label": {"kind": "label", "classes": 10, "weight": {"kind": "carried", "scale": 0.17}},
        "backbone": {"kind": "mlp", "width": 64, "blocks": 1, "features": 8},
        "sample": {"sampler": "ddim", "steps": 4, "batch_size": 50},
    },
)
