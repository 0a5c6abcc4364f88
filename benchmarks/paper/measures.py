"""The measures that several tasks share, as rows of the report."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.core import Trained
from benchmarks.paper.curves import ERRORS
from benchmarks.paper.report import Metric
from mmfast.data.cache import kept
from mmfast.evaluate import likelihood
from mmfast.likelihood import PARTS
from mmfast.metrics.features import Extractor, extractor
from mmfast.metrics.frechet import frechet_distance
from mmfast.metrics.precision_recall import precision_recall

# A second sampler besides the preset's, in even steps, as is usual. It is slow, but which of two models draws better
# can depend on the sampler.
DDPM: dict[str, Any] = {"sampler": "ddpm", "steps": 100, "spacing": 1.0}

# The reverse processes of the bound, by the keys' prefix (mmfast.reverse.fit).
REVERSES = {
    "bound": "the posterior's variance",
    "bound.fitted": "variances fitted to training data",
    "bound.nearer": "fitted variances, the nearer of network and z_t",
}


def quality(condition: str, name: str, fake: Tensor, true: Tensor) -> list[Metric]:
    """Frechet distance, precision and recall over features [n, D] of generated and real images."""
    measured = precision_recall(true, fake)
    return [
        Metric(condition, f"FD-{name}", frechet_distance(fake, true), higher_is_better=False),
        Metric(condition, "precision", measured.precision, higher_is_better=True),
        Metric(condition, "recall", measured.recall, higher_is_better=True),
    ]


def real(trained: Trained, count: int, seed: int = 0) -> Tensor:
    """At most `count` held-out images, shuffled."""
    test = trained.data.test
    return test.__getitems__(shuffled(count, len(test), seed).tolist()).data["image"]


def by_ddpm(condition: str) -> str:
    """The condition's name for samples drawn with `DDPM`."""
    return f"{condition}, by DDPM in {DDPM['steps']} steps"


def two_halves(trained: Trained) -> tuple[Tensor, Tensor]:
    """Two disjoint sets of held-out images, each as large as the set of samples."""
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
    """Features of real images, cached (mmfast.data.cache) because every cell needs the same ones."""
    if trained.smoke:
        return features(images)
    key = {"network": trained.features, "images": hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()}
    cache = getattr(trained.config.data, "cache", "")
    return kept(cache, "features", key, lambda: {"features": features(images)})["features"]


def bits(trained: Trained, count: int) -> list[Metric]:
    """The bound on held-out data (mmfast.likelihood) and the error of the predicted image against t.

    The bound has a condition for each reverse process and a column for each part.
    """
    batch = trained.held_out(min(count, trained.samples))
    found = likelihood(trained.model, trained.config, trained.data, batch)
    # The bound covers all modalities of the model: do not compare models of different modalities by it.
    of = f"bound of {' and '.join(trained.model.parts)}, held-out"
    rows = [
        Metric(f"{of}, {how}", column, found[f"{prefix}.{key}"], higher_is_better=False)
        for prefix, how in REVERSES.items()
        for key, column in _columns(trained).items()
        if f"{prefix}.{key}" in found
    ]
    curve = {int(key.removeprefix("x0_error.")): x for key, x in found.items() if key.startswith("x0_error.")}
    return rows + [Metric(ERRORS, f"t = {t}", x, higher_is_better=False) for t, x in curve.items()]


def _columns(trained: Trained) -> dict[str, str]:
    """The columns of the bound: keys of mmfast.likelihood.bound and their titles."""
    found = {f"{part}_bits": f"{part} (bits per dimension)" for part in (*PARTS, "pixels")}
    for name in trained.model.names:
        found[f"discrete.{name}_bits"] = f"{name} (bits per example)"
        found[f"density.{name}"] = f"{name} (density, nats per example)"
    return found


def agreement(a: Tensor, b: Tensor) -> float:
    """The share of equal labels."""
    return float((a == b).float().mean())


def shuffled(count: int, among: int, seed: int = 0) -> Tensor:
    """`count` of 0 .. among - 1 in random order, without repetition; the same every time."""
    return torch.randperm(among, generator=torch.Generator().manual_seed(seed))[:count]
