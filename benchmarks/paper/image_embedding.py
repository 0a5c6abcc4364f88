"""Image and embedding: one model for both, against an image model and a regressor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
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
    means,
    near,
    other_budgets,
)
from benchmarks.paper.report import Metric, Row, Verdict
from mmfast.metrics.similarity import cosine, retrieval_rank
from mmfast.pictures import sample_grid

JOINT, OF_EMBEDDING, OF_IMAGE = "drawn together", "given the embedding", "given the image"
IN_TURN, FIRST = "the image drawn first", "the embedding drawn first"
BY_DDPM = measures.by_ddpm(JOINT)
SCALE = 1.5
GUIDED = f"{OURS}, guidance {SCALE:g}"
# Standard deviations, for images in -1 .. 1.
NOISE = (0.02, 0.05, 0.1)
ORDERS: dict[str, list[str]] = {JOINT: [], IN_TURN: ["image"], FIRST: ["embedding"]}
IMAGE, REGRESSOR = "image alone", "regressor alone"


def _embed(trained: Trained) -> Any:
    """The embedding network itself, projected on the axes of the data's embeddings."""
    return trained.judges["embedding"]


def _match(condition: str, said: Tensor, true: Tensor) -> list[Metric]:
    """Cosine of each pair of maps or vectors, and the rank of the true one among all."""
    said, true = said.flatten(1), true.flatten(1)
    rank = retrieval_rank(said, true)
    return [
        Metric(condition, "cosine", cosine(said, true), higher_is_better=True),
        Metric(condition, f"median rank of {len(said)}", float(rank.median), higher_is_better=False),
        Metric(condition, "first in rank", float(rank.top1), higher_is_better=True),
    ]


def _pairs(trained: Trained, condition: str, first: list[str], **options: Any) -> list[Metric]:
    """Measures of images and embeddings from noise: the quality of the images and how well their embeddings match."""
    drawn = trained.draw(purpose=1, first=first, **options)
    matched = _match(condition, drawn["embedding"], _embed(trained)(drawn["image"]))
    return [*measures.image_quality(trained, condition, drawn["image"]), *matched]


def _of_embedding(trained: Trained, **options: Any) -> list[Metric]:
    truth = trained.held_out().data["embedding"]
    images = trained.draw({"embedding": truth}, purpose=2, count=len(truth), **options)["image"]
    return [
        *measures.image_quality(trained, OF_EMBEDDING, images),
        *_match(OF_EMBEDDING, _embed(trained)(images), truth),
    ]


def noisy(embed: Callable[[Tensor], Tensor], truth: dict[str, Tensor], seed: int) -> Found:
    """The network's own answers for held-out images with a little noise: how much error an image may have."""
    found = {}
    for sigma in NOISE:
        noise = torch.randn(truth["image"].shape, generator=torch.Generator().manual_seed(seed))
        said = embed((truth["image"] + sigma * noise).clamp(-1, 1))
        found[f"the network itself, noise {sigma:g}"] = _match(OF_IMAGE, said, truth["embedding"])
    return found


def _read(trained: Trained, **options: Any) -> list[Metric]:
    """Measures of embeddings predicted from held-out images."""
    truth = trained.held_out().data
    read = trained.draw({"image": truth["image"]}, 3, len(truth["image"]), **options)["embedding"]
    return _match(OF_IMAGE, read, truth["embedding"])


def main(trained: Trained) -> list[Metric]:
    """The measures that the claims need."""
    by_ddpm = _pairs(trained, BY_DDPM, ORDERS[JOINT], **measures.DDPM)
    return [*_pairs(trained, JOINT, ORDERS[JOINT]), *by_ddpm, *_read(trained)]


def ours(trained: Trained) -> Found:
    found = [*main(trained), *_of_embedding(trained)]
    found += [m for condition in (IN_TURN, FIRST) for m in _pairs(trained, condition, ORDERS[condition])]
    truth, how = trained.held_out().data, {"guidance_scale": {"embedding": SCALE}}
    return {
        OURS: [*found, *measures.bits(trained, 250)],
        MANY_STEPS: _read(trained, steps=trained.config.sample.steps),
        GUIDED: [*_pairs(trained, FIRST, ORDERS[FIRST], **how), *_of_embedding(trained, **how)],
        **noisy(_embed(trained), truth, trained.seed),
    }


def _images(trained: Trained) -> list[Metric]:
    found = []
    for condition, how in ((JOINT, {}), (BY_DDPM, measures.DDPM)):
        found += measures.image_quality(trained, condition, trained.draw(purpose=1, **how)["image"])
    return found


def image_alone(trained: Trained) -> Found:
    return {IMAGE: [*_images(trained), *measures.bits(trained, 250)]}


def _said(trained: Trained) -> list[Metric]:
    truth = trained.held_out().data
    said = trained.said(truth, "image", "embedding")
    return _match(OF_IMAGE, said, truth["embedding"])


def regressor(trained: Trained) -> Found:
    return {REGRESSOR: _said(trained)}


def reference(trained: Trained) -> list[Metric]:
    """One half of the held-out images against the other; the cosine of random pairs is chance level."""
    a, b = measures.two_halves(trained)
    embed: Callable[[Tensor], Tensor] = _embed(trained)
    chance = [m for m in _match(JOINT, embed(a), embed(b)) if m.metric == "cosine"]
    quality = measures.reference_quality(trained, JOINT)
    others = (
        dataclasses.replace(m, condition=where) for where in (IN_TURN, FIRST, BY_DDPM, OF_EMBEDDING) for m in quality
    )
    return [*quality, *others, *chance]


def verdicts(rows: list[Row], slack: float = 1.0) -> list[Verdict]:
    alone, read = (means(rows, name, OF_IMAGE)["cosine"] for name in (REGRESSOR, OURS))
    found = [at_least(f"embedding read: {near(5, slack, ' per cent')} the regressor", read, (1 - 0.05 * slack) * alone)]
    for condition in (*ORDERS, BY_DDPM):
        mine, image = means(rows, OURS, condition), means(rows, IMAGE, BY_DDPM if condition == BY_DDPM else JOINT)
        if condition != JOINT and not mine:
            continue  # not measured
        distance = next((name for name in image if name.startswith("FD-")), "FD")
        how = "" if condition == JOINT else f", {condition}"
        claim = f"cosine of the generated embedding and the generated image's{how}: at least 0.8 of the regressor's"
        found += [
            at_least(claim, mine["cosine"], 0.8 * alone),
            at_most(f"{distance}{how}: no worse than the image model's", mine[distance], image[distance]),
        ]
    return found


def pictures(trained: Trained) -> dict[str, tuple[str, PILImage.Image]]:
    """Generated pairs, and other images for their embeddings."""
    joint = trained.draw(purpose=10, count=24)
    again = trained.draw({"embedding": joint["embedding"]}, purpose=11, count=24)
    part = trained.model.part("image")
    parts = {"image": part, "embedding": trained.model.part("embedding"), "again": part}
    data = {**joint, "again": again["image"]}
    caption = "Image and embedding drawn from noise together, and another image drawn for the same embedding."
    return {"joint": (caption, sample_grid(parts, data, "image and embedding from noise, and an image from it"))}


METHODS = [
    Method(OURS, ours),
    Method(IMAGE, image_alone, {"modalities.embedding": None, "train.given_probability": 0.0, "train.clean_pass": 0.0}),
    # It predicts the map best from the decoder, which it has to itself.
    Method(REGRESSOR, regressor, {"modalities.embedding.reads": "decoder"}, supervised=("image", "embedding")),
]
NEEDED = {OURS: main, IMAGE: _images, REGRESSOR: _said}
TASK = Task(
    name="image-embedding",
    title="Image and embedding together",
    question="Does one model of images and their embeddings draw as well as an image model, with embeddings that match "
    "its images?",
    methods=[*METHODS, *other_budgets(METHODS, NEEDED)],
    needed=NEEDED,
    reference=reference,
    verdicts=verdicts,
    pictures=pictures,
    features="vgg16@64",  # a twelfth of the work of 224 x 224
    smoke={
        "data": {"kind": "digits"},
        "modalities.image": {"kind": "image", "channels": 1, "size": 8, "levels": 17},
        "modalities.embedding": {"kind": "feature_map", "dim": 1, "cells": 4, "network": "pixels"},
        "backbone": {"kind": "mlp", "width": 64, "blocks": 1, "features": 8},
        "sample": {"sampler": "ddim", "steps": 4, "batch_size": 50},
    },
)
