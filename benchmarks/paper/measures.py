"""The measures that several tasks share, as rows of the report."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.paper.core import Trained
from benchmarks.paper.report import Metric
from mmfast.metrics.bound import bound
from mmfast.metrics.features import extractor
from mmfast.metrics.frechet import frechet_distance
from mmfast.metrics.precision_recall import precision_recall

Features = Callable[[Tensor], Tensor]


def quality(condition: str, name: str, features: Features, images: Tensor, real: Tensor) -> list[Metric]:
    """Frechet distance, precision and recall of images against real ones, over the same features."""
    fake, true = features(images), features(real)
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


def two_halves(trained: Trained) -> tuple[Tensor, Tensor]:
    """Two disjoint sets of held-out images, each of as many as there are samples."""
    images = real(trained, 2 * trained.samples)
    return images[: trained.samples], images[trained.samples :]


def image_quality(trained: Trained, condition: str, images: Tensor) -> list[Metric]:
    """`quality` against held-out images, over the task's features."""
    features = extractor(trained.features)
    return quality(condition, features.name, features, images, real(trained, len(images)))


def reference_quality(trained: Trained, condition: str) -> list[Metric]:
    """`quality` of one half of the held-out images against the other."""
    a, b = two_halves(trained)
    features = extractor(trained.features)
    return quality(condition, features.name, features, a, b)


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
