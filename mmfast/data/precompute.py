"""Embeddings of a data set's images by a pretrained network: computed once, and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mmfast.data.base import Batch, Data, Examples, Judge
from mmfast.data.cache import kept
from mmfast.errors import MmfastError
from mmfast.metrics.features import Extractor, extractor


@dataclass
class Embedder:
    """A network's features of images along the `dim` directions in which they vary most over the training data.

    The mean is taken off first: features of a network are much alike, and their cosines would be near 1 for any two.
    """

    network: Extractor
    mean: Tensor
    axes: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] in -1 .. 1 -> float32 [B, dim]."""
        return (self.network(images.float().clamp(-1, 1)) - self.mean) @ self.axes


def principal_axes(features: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The mean [D] and the first `dim` principal axes [D, dim] of features [n, D], in float64 inside."""
    x = features.double()
    mean = x.mean(0)
    _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
    axes = vectors.flip(1)[:, :dim]
    # An axis has no sign of its own: its largest number is made positive.
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return mean.float(), (axes * signs).float()


@dataclass
class Embedded:
    """Examples with one modality more."""

    examples: Examples
    name: str
    vectors: Tensor

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch = self.examples.__getitems__(indices)
        return Batch({**batch.data, self.name: self.vectors[torch.as_tensor(indices)]}, batch.present)


def with_embeddings(data: Data, anchor: str, name: str, network: str, dim: int, cache: str | Path = "") -> Data:
    """The data with embeddings of its images, and the network as their judge.

    Goes through the whole data set, which should be small enough for that; the features of the same images are found
    again in the folder `cache` (mmfast.data.cache). Raises MmfastError for a network with fewer than `dim` features.
    """
    features = extractor(network)
    train, test = (_features(part, anchor, features, network, cache) for part in (data.train, data.test))
    if train.shape[1] < dim or len(train) < dim:
        raise MmfastError(
            f"modalities.{name}.dim is {dim}; {len(train)} examples with {train.shape[1]} features of {network} have "
            "fewer directions"
        )
    embedder = Embedder(features, *principal_axes(train, dim))
    parts = [
        Embedded(part, name, (x - embedder.mean) @ embedder.axes)
        for part, x in ((data.train, train), (data.test, test))
    ]

    def judges() -> dict[str, Judge]:
        return {**data.judges(), name: embedder}

    return Data(parts[0], parts[1], judges)


def _features(examples: Examples, anchor: str, features: Extractor, network: str, cache: str | Path) -> Tensor:
    """[n, D] of every example's image, from the cache where they are there."""
    batches = [range(i, min(i + 256, len(examples))) for i in range(0, len(examples), 256)]
    digest = hashlib.sha256(network.encode())
    for rows in batches:
        digest.update(examples.__getitems__(rows).data[anchor].contiguous().numpy().tobytes())

    def make() -> dict[str, Tensor]:
        bar = tqdm(batches, desc=f"features of {len(examples)} images by {features.name}", unit="batch")
        return {"features": torch.cat([features(examples.__getitems__(rows).data[anchor]) for rows in bar])}

    return kept(cache, "features", {"network": network, "images": digest.hexdigest()}, make)["features"]
