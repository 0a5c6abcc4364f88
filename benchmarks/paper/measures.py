"""The measures that several tasks share, as rows of the report."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.core import Trained
from benchmarks.paper.report import Metric
from mmfast.data.cache import kept
from mmfast.likelihood import bound
from mmfast.metrics.features import Extractor, extractor
from mmfast.metrics.frechet import frechet_distance
from mmfast.metrics.precision_recall import precision_recall

# The other sampler that images are drawn with, beside the preset's: it is slow, and which of two models draws better
# can hang on it.
DDPM: dict[str, Any] = {"sampler": "ddpm", "steps": 100}


def quality(condition: str, name: str, fake: Tensor, true: Tensor) -> list[Metric]:
    """Frechet distance, precision and recall, over features [n, D] of images and of real ones."""
    measured = precision_recall(true, fake)
    return [
        Metric(condition, f"FD-{name}", frechet_distance(fake, true), higher_is_better=False),
        Metric(condition, "precision", measured.precision, higher_is_better=True),
        Metric(condition, "recall", measured.recall, higher_is_better=True),
    ]


def real(trained: Trained, count: int, seed: int = 0) -> Tensor:
    """Held-out images, shuffled: at most `count`."""
    test = trained.data.test
    return test.__getitems__(shuffled(count, len(test), seed).tolist()).data["image"]


def by_ddpm(condition: str) -> str:
    """The condition's name where what is drawn is drawn by `DDPM`."""
    return f"{condition}, by DDPM in {DDPM['steps']} steps"


def two_halves(trained: Trained) -> tuple[Tensor, Tensor]:
    """Two disjoint sets of held-out images, each of as many as there are samples."""
    images = real(trained, 2 * trained.samples)
    return images[: trained.samples], images[trained.samples :]


def image_quality(trained: Trained, condition: str, images: Tensor) -> list[Metric]:
    """`quality` against held-out images, over the task's features."""
    features = extractor(trained.features)
    return quality(condition, features.name, features(images), _of_real(trained, features, real(trained, len(images))))


def reference_quality(trained: Trained, condition: str) -> list[Metric]:
    """`quality` of one half of the held-out images against the other."""
    features = extractor(trained.features)
    a, b = (_of_real(trained, features, half) for half in two_halves(trained))
    return quality(condition, features.name, a, b)


def _of_real(trained: Trained, features: Extractor, images: Tensor) -> Tensor:
    """Features of real images, which every cell wants again: computed once and kept (mmfast.data.cache)."""
    if trained.smoke:
        return features(images)
    key = {"network": trained.features, "images": hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()}
    cache = getattr(trained.config.data, "cache", "")
    return kept(cache, "features", key, lambda: {"features": features(images)})["features"]


def bits(trained: Trained, count: int) -> list[Metric]:
    """The four parts of the bound on held-out data, in bits per dimension of the anchor."""
    batch = trained.held_out(min(count, trained.samples))
    found = bound(trained.model, batch, 4, trained.seed, trained.config.sample.batch_size)
    return [
        # Of all that the model models: models of different modalities are not to be compared by it.
        Metric(
            f"bound of {' and '.join(trained.model.parts)}, held-out",
            f"{part} (bits per dimension)",
            found[f"bound.{part}_bits"],
            higher_is_better=False,
        )
        for part in ("L0", "L1", "L2", "L3", "total")
    ]


def agreement(a: Tensor, b: Tensor) -> float:
    """The share of equal labels."""
    return float((a == b).float().mean())


def shuffled(count: int, among: int, seed: int = 0) -> Tensor:
    """`count` of 0 .. among - 1, drawn without putting back, the same every time."""
    return torch.randperm(among, generator=torch.Generator().manual_seed(seed))[:count]
