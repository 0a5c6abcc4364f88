"""Distances of samples to real data, and for comparison those between two halves of the real data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmfast.config_sections import EvaluateSpec
from mmfast.data import Data, Examples
from mmfast.data.labelled import once
from mmfast.metrics.features import Extractor, extractor
from mmfast.metrics.frechet import frechet_distance
from mmfast.metrics.precision_recall import precision_recall
from mmfast.modalities import Modality
from mmfast.model import Model
from mmfast.ranks import ALONE, Ranks
from mmfast.trust import check_code

# The number of neighbours for precision and recall, as in their paper.
NEIGHBOURS = 3
# The number of images whose features are computed at once.
AT_ONCE = 256
# Anchors x [B, ...] -> features [B, d].
Features = Callable[[Tensor], Tensor]


def chosen_features(spec: EvaluateSpec) -> Extractor:
    """The features that distances use. Raises MmfastError for code that a config names and the user did not allow."""
    check_code("evaluate.features", spec.features)
    return extractor(spec.features, spec.features_weights or None)


def row_distances(part: Modality, name: str, x: Tensor, data: Data, most: int = 10_000) -> dict[str, float]:
    """`Modality.distances` of samples to one half of the real data, and of the other half to it."""
    if not part.distances(x, x):
        return {}
    real = torch.cat([_present(examples, name, most) for examples in (once(data.train), data.test)])
    real = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]
    half = len(real) // 2
    count = min(half, len(x))
    if not count:
        return {}
    these = {"samples": x[:count], "real_halves": real[half : half + count]}
    found = {who: part.distances(rows, real[:half]) for who, rows in these.items()}
    return {f"{name}.{key}.{who}": value for who, figures in found.items() for key, value in figures.items()}


def _present(examples: Examples, name: str, most: int) -> Tensor:
    """x of the examples that have this modality, out of at most `most` examples."""
    batch = examples.__getitems__(_some(examples, most).tolist())
    return batch.data[name][batch.present[name]] if name in batch.present else batch.data[name]


def _some(examples: Examples, most: int) -> Tensor:
    """The rows of at most `most` examples, sampled from all because data sets are often sorted by class."""
    count = len(examples)
    order = torch.arange(count) if count <= most else torch.randperm(count, generator=torch.Generator().manual_seed(1))
    return order[:most].sort().values


def real_features(data: Data, anchor: str, features: Features, most: int = 10_000, ranks: Ranks = ALONE) -> Tensor:
    """The features of the real images of both sets, at most `most` of each: [n, d] in a shuffled order."""
    parts = once(data.train), data.test
    chunks = [(part, rows) for part in parts for rows in _some(part, most).split(AT_ONCE)]

    def of_real(chunk: tuple[Examples, Tensor]) -> Tensor:
        part, rows = chunk
        return features(part.__getitems__(rows.tolist()).data[anchor])

    real = torch.cat(ranks.map(of_real, chunks))
    # Shuffle the halves, because neighbours in a data set are often related.
    return real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]


def against(real: Tensor, images: Tensor, features: Features, named: str, ranks: Ranks = ALONE) -> dict[str, float]:
    """Frechet distance, precision and recall over `features`: samples against real images, and two halves of these.

    The first half of the real images is compared with the samples, and with as many images of the second, because all
    three metrics depend on sample size. Precision and recall also use as many images of the first half. real: the
    result of `real_features`. named: the features' name, which the metrics' names include unless it is pixels.
    """
    share = min(ranks.at_most(len(images), len(images)), AT_ONCE)
    half, fake = len(real) // 2, torch.cat(ranks.map(features, images.split(share)))
    name = "" if named == "pixels" else f"_{named}"
    count, found = min(half, len(fake)), {}
    if count < 2:
        return {}
    one, other = real[:half], real[half : half + count]
    for who, these in (("samples", fake[:count]), ("real_halves", other)):
        found[f"frechet{name}.{who}"] = frechet_distance(these, one)
        if count > NEIGHBOURS:
            measured = precision_recall(one[:count], these, NEIGHBOURS)
            found |= {f"precision{name}.{who}": measured.precision, f"recall{name}.{who}": measured.recall}
    return found


def comparable(model: Model, features: Extractor) -> Features:
    """The features of the anchor's x on the host, [n, d]: of pixels if it is an image, else of z_0."""
    if model.latent:  # whose z_0 holds an autoencoder's latents
        return features
    device = model.schedule.alpha_bar.device
    return lambda x: features(model.anchor.to_z0(x.to(device)).cpu())
