"""Embeddings of a data set's images by a pretrained network: computed once, and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
    mean: Tensor  # [D], or [D, cells, cells]: of each cell its own
    axes: Tensor  # [D, dim]
    cells: int = 0  # 0: vectors

    def __call__(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] in -1 .. 1 -> float32 [B, dim], or [B, dim, cells, cells]."""
        return self.project(features_of(self.network, images.float().clamp(-1, 1), self.cells))

    def project(self, features: Tensor) -> Tensor:
        """Features [B, D, ...] along the axes: [B, dim, ...]."""
        return torch.einsum("bd...,dk->bk...", features - self.mean, self.axes)


def features_of(network: Extractor, images: Tensor, cells: int) -> Tensor:
    """Vectors [B, D], or where `cells` is not 0 maps [B, D, cells, cells]."""
    return network.maps(images, cells) if cells else network(images)


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


def with_embeddings(
    data: Data, anchor: str, name: str, network: str, dim: int, cache: str | Path = "", cells: int = 0
) -> Data:
    """The data with embeddings of its images, and the network as their judge.

    cells: 0 for one vector an image, [dim]; else a map [dim, cells, cells], with the same axes in every cell.
    Goes through the whole data set, which should be small enough for that; the features of the same images are found
    again in the folder `cache` (mmfast.data.cache). Raises MmfastError for a network with fewer than `dim` features,
    and for maps of a network that has none.
    """
    features = extractor(network)
    make = _maps if cells else _vectors
    embedder, parts = make(data, anchor, name, features, network, dim, cache, cells)
    train, test = (Embedded(part, name, x) for part, x in zip((data.train, data.test), parts, strict=True))

    def judges() -> dict[str, Judge]:
        return {**data.judges(), name: embedder}

    return Data(train, test, judges)


def _vectors(
    data: Data, anchor: str, name: str, features: Extractor, network: str, dim: int, cache: str | Path, cells: int
) -> tuple[Embedder, list[Tensor]]:
    """The features themselves are kept: other numbers of axes are found from them."""
    found = [_features(part, anchor, features, network, cache) for part in (data.train, data.test)]
    _check_dim(name, dim, len(found[0]), found[0].shape[1], network)
    embedder = Embedder(features, *principal_axes(found[0], dim))
    return embedder, [embedder.project(x) for x in found]


# Images that the axes of maps are found from, at most: every one has many cells.
FITTED = 2048


def _maps(
    data: Data, anchor: str, name: str, features: Extractor, network: str, dim: int, cache: str | Path, cells: int
) -> tuple[Embedder, list[Tensor]]:
    """Maps are large before they are projected: only what is left of them is kept."""
    parts = {"train": data.train, "test": data.test}

    def make() -> dict[str, Tensor]:
        rows = range(0, len(data.train), max(1, len(data.train) // FITTED))
        found = torch.cat([x for x in _batches(data.train, anchor, features, rows, cells)])
        mean = found.mean(0)
        each = (found - mean).movedim(1, -1).flatten(0, -2)
        _check_dim(name, dim, len(each), each.shape[1], network)
        embedder = Embedder(features, mean, principal_axes(each, dim)[1], cells)
        projected = {
            key: torch.cat([embedder.project(x) for x in _batches(part, anchor, features, range(len(part)), cells)])
            for key, part in parts.items()
        }
        return {"mean": mean, "axes": embedder.axes, **projected}

    images = {key: _digest(part, anchor) for key, part in parts.items()}
    kept_as = {"network": network, "dim": dim, "cells": cells, "images": images, "fitted": FITTED}
    found = kept(cache, "maps", kept_as, make)
    return Embedder(features, found["mean"], found["axes"], cells), [found["train"], found["test"]]


def _check_dim(name: str, dim: int, rows: int, width: int, network: str) -> None:
    if min(rows, width) < dim:
        raise MmfastError(
            f"modalities.{name}.dim is {dim}; {rows} examples with {width} features of {network} have fewer directions"
        )


BATCH = 256


def _batches(examples: Examples, anchor: str, features: Extractor, rows: Sequence[int], cells: int) -> Iterator[Tensor]:
    """The features of some examples' images, a batch at a time."""
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    for batch in tqdm(batches, desc=f"features of {len(rows)} images by {features.name}", unit="batch"):
        yield features_of(features, examples.__getitems__(batch).data[anchor], cells)


def _digest(examples: Examples, anchor: str, start: bytes = b"") -> str:
    """A hash of every example's image."""
    found = hashlib.sha256(start)
    for i in range(0, len(examples), BATCH):
        rows = range(i, min(i + BATCH, len(examples)))
        found.update(examples.__getitems__(rows).data[anchor].contiguous().numpy().tobytes())
    return found.hexdigest()


def _features(examples: Examples, anchor: str, features: Extractor, network: str, cache: str | Path) -> Tensor:
    """[n, D] of every example's image, from the cache where they are there."""

    def make() -> dict[str, Tensor]:
        return {"features": torch.cat(list(_batches(examples, anchor, features, range(len(examples)), 0)))}

    key = {"network": network, "images": _digest(examples, anchor, network.encode())}
    return kept(cache, "features", key, make)["features"]
