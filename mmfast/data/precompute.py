"""Embeddings of a data set's images by a pretrained network, computed once and cached."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmfast.data.base import Batch, Data, Examples, Judge, Layer
from mmfast.data.cache import kept
from mmfast.errors import MmfastError
from mmfast.metrics.features import Extractor, extractor
from mmfast.modalities.components import principal_axes
from mmfast.progress import Bar
from mmfast.sizes import Size
from mmfast.trust import source_digest
from mmfast.words import plural


@dataclass
class Embedder:
    """A network's features of images, projected onto the `dim` directions of largest variance over the training data.

    The mean is subtracted first: a network's features are much alike, and any two would have a cosine near 1.
    """

    network: Extractor
    mean: Tensor  # [D], or [D, rows, columns]: one per cell
    axes: Tensor  # [D, dim]
    cells: Size = 0  # 0: vectors

    def __call__(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] in -1 .. 1 -> float32 [B, dim], or [B, dim, rows, columns]."""
        return self.project(features_of(self.network, images.float().clamp(-1, 1), self.cells))

    def project(self, features: Tensor) -> Tensor:
        """Project features [B, D, ...] onto the axes: [B, dim, ...]."""
        return torch.einsum("bd...,dk->bk...", features - self.mean, self.axes)


def features_of(network: Extractor, images: Tensor, cells: Size) -> Tensor:
    """Vectors [B, D], or maps [B, D, rows, columns] if `cells` is not 0."""
    return network.maps(images, cells) if cells else network(images)


@dataclass
class Embedded(Layer):
    """Examples with one more modality."""

    name: str
    vectors: Tensor

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch = self.examples.__getitems__(indices)
        return Batch({**batch.data, self.name: self.vectors[torch.as_tensor(indices)]}, batch.present)


def with_embeddings(
    data: Data,
    anchor: str,
    name: str,
    network: str,
    dim: int,
    cache: str | Path = "",
    cells: Size = 0,
    whole: bool = False,
) -> Data:
    """The data with embeddings of its images, and the network as their judge.

    whole: use the network's own vectors, whose length should be `dim`, without projection.
    cells: 0 for one vector per image, [dim]; else a map [dim, rows, columns], with the same axes in every cell.
    Reads the whole data set, which should be small enough for that. Features are cached in the folder `cache`
    (mmfast.data.cache). Raises MmfastError if the network has fewer than `dim` features, or has no maps for `cells`.
    """
    images = _Images(data, anchor, extractor(network), network, cache, cells)
    embedder, parts = _maps(images, name, dim) if cells else _vectors(images, name, dim, whole)
    train, test = (Embedded(part, name, x) for part, x in zip((data.train, data.test), parts, strict=True))

    def judges() -> dict[str, Judge]:
        return {**data.judges(), name: embedder}

    return dataclasses.replace(data, train=train, test=test, judges=judges)


BATCH = 256
# The axes of maps are fitted to this many images, or up to twice as many; each has many cells.
FITTED = 2048


@dataclass(frozen=True)
class _Images:
    """The images of a data set, and the network to embed them with."""

    data: Data
    anchor: str
    features: Extractor
    network: str
    cache: str | Path
    cells: Size

    def made_by(self) -> dict[str, str]:
        """What the features depend on besides the images: the network's name and, for a module:function, its code."""
        module, colon, _ = self.network.partition(":")
        return {"network": self.network, **({"code": source_digest(module)} if colon else {})}

    def seen(self, examples: Examples, rows: Sequence[int]) -> Iterator[Tensor]:
        """The features of some examples' images, a batch at a time."""
        batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        with Bar(len(batches), f"features of {plural(len(rows), 'image')} by {self.features.name}", "batch") as bar:
            for batch in batches:
                yield features_of(self.features, examples.__getitems__(batch).data[self.anchor], self.cells)
                bar.update()

    def digest(self, examples: Examples, start: bytes = b"") -> str:
        """A hash of all examples' images."""
        found = hashlib.sha256(start)
        for i in range(0, len(examples), BATCH):
            rows = range(i, min(i + BATCH, len(examples)))
            found.update(examples.__getitems__(rows).data[self.anchor].contiguous().numpy().tobytes())
        return found.hexdigest()

    def check(self, name: str, dim: int, vectors: Tensor) -> None:
        """Raise MmfastError if features [n, D] span fewer than `dim` directions."""
        if min(vectors.shape) < dim:
            raise MmfastError(
                f"modalities.{name}.dim is {dim}; {len(vectors)} vectors of {vectors.shape[1]} features of "
                f"{self.network} have fewer directions"
            )


def _vectors(images: _Images, name: str, dim: int, whole: bool) -> tuple[Embedder, list[Tensor]]:
    """Embed as vectors. The features themselves are cached, so that they serve any `dim`."""

    def of(examples: Examples) -> Tensor:
        def make() -> dict[str, Tensor]:
            return {"features": torch.cat(list(images.seen(examples, range(len(examples)))))}

        key = {**images.made_by(), "images": images.digest(examples, images.network.encode())}
        return kept(images.cache, "features", key, make)["features"]

    found = [of(images.data.train), of(images.data.test)]
    if whole:
        length = found[0].shape[1]
        if length != dim:
            raise MmfastError(
                f"modalities.{name}.dim is {dim}; with components it should be the length of the vectors of "
                f"{images.network}, {length}"
            )
        return Embedder(images.features, torch.zeros(length), torch.eye(length)), found
    images.check(name, dim, found[0])
    embedder = Embedder(images.features, *principal_axes(found[0], dim))
    return embedder, [embedder.project(x) for x in found]


def _maps(images: _Images, name: str, dim: int) -> tuple[Embedder, list[Tensor]]:
    """Embed as maps. Only the projected maps are cached, because unprojected ones are large."""
    features, cells, train = images.features, images.cells, images.data.train
    parts = {"train": train, "test": images.data.test}

    def make() -> dict[str, Tensor]:
        found = torch.cat(list(images.seen(train, range(0, len(train), max(1, len(train) // FITTED)))))
        mean = found.mean(0)
        each = (found - mean).movedim(1, -1).flatten(0, -2)
        images.check(name, dim, each)
        embedder = Embedder(features, mean, principal_axes(each, dim)[1], cells)
        projected = {
            key: torch.cat([embedder.project(x) for x in images.seen(part, range(len(part)))])
            for key, part in parts.items()
        }
        return {"mean": mean, "axes": embedder.axes, **projected}

    digests = {key: images.digest(part) for key, part in parts.items()}
    key = {**images.made_by(), "dim": dim, "cells": cells, "images": digests, "fitted": FITTED}
    found = kept(images.cache, "maps", key, make)
    return Embedder(features, found["mean"], found["axes"], cells), [found[part] for part in parts]
