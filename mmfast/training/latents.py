"""Latents of the training images, computed once and cached: an autoencoder may cost more than the network itself."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfast.autoencoders import Autoencoder
from mmfast.config import Config
from mmfast.data import Batch, Data, Examples
from mmfast.data.base import Layer
from mmfast.data.decoded import Decoded, decoded
from mmfast.data.rows import KEY
from mmfast.model import Model
from mmfast.progress import Bar

# Images encoded together. The number is always the same, so that the latents of an image do not depend on the others.
AT_ONCE = 16
# Options of a data set that do not change what is read.
NO_MATTER = ("cache", "cache_gb", "on_error")


def with_latents(data: Data, model: Model, config: Config, device: torch.device, quiet: bool = True) -> Data:
    """The data, with the latents of the training images added (`Batch.z0`).

    They are cached in a memory-mapped file, keyed by the images' content and the autoencoder's weights. The data is
    returned unchanged if images are mirrored, if the weights are unknown (the autoencoder is not a torch module), if
    autoencoder.keep is false, or if the data set has no cache or one too small for all latents.
    """
    autoencoder, options, examples = getattr(model.anchor, "autoencoder", None), config.data, data.train
    if autoencoder is None or not autoencoder.keep or data.flip:
        return data
    digest, limit = autoencoder.digest(), getattr(options, "cache_gb", 0.0)
    if digest is None or not limit:
        return data
    about = {
        "latents": digest,
        "scale": [autoencoder.factor, autoencoder.shift],
        "device": device.type,
        "data": {name: x for name, x in dataclasses.asdict(options).items() if name not in NO_MATTER},
    }
    encoded = Encoded(examples, model.anchor_name, autoencoder, device)
    keys = []
    with Bar(len(examples), "looking at the images", "image", quiet=quiet) as bar:
        for rows in _chunks(len(examples)):
            keys += [key(x) for x in encoded.images(rows)]
            bar.update(len(rows))
    blanks = {"z0": torch.zeros(autoencoder.shape)}
    kept = decoded(encoded, blanks, keys, about, options.cache, limit, {"z0": "whole"})
    if not isinstance(kept, Decoded):
        return data
    with Bar(len(examples), "encoding the images", "image", quiet=quiet) as bar:
        for rows in _chunks(len(examples)):
            kept.__getitems__(rows)
            if not kept.writes:
                break
            bar.update(len(rows))
    # A data loading worker could not encode the rest: it is forked, and cannot use the GPU.
    if not (kept.writes and kept.complete):
        return data
    return dataclasses.replace(data, train=Latent(examples, kept, keys, model.anchor_name))


def key(image: Tensor) -> bytes:
    """A hash of one image's values."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()[:KEY]


def _chunks(count: int) -> Iterator[range]:
    return (range(i, min(i + AT_ONCE, count)) for i in range(0, count, AT_ONCE))


@dataclass
class Encoded:
    """The latents of examples and nothing else, computed on access."""

    examples: Examples
    anchor: str
    autoencoder: Autoencoder
    device: torch.device

    def __len__(self) -> int:
        return len(self.examples)

    def images(self, indices: Sequence[int]) -> Tensor:
        return self.examples.__getitems__(indices).data[self.anchor]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        found = []
        for x in self.images(indices).split(AT_ONCE):
            whole = torch.cat((x, x[-1:].expand(AT_ONCE - len(x), *x.shape[1:])))
            found.append(self.autoencoder.encode(whole.to(self.device))[: len(x)].cpu())
        return Batch({"z0": torch.cat(found)})


@dataclass
class Latent(Layer):
    """Examples with their latents, as long as their images are still those that were encoded."""

    kept: Examples
    keys: Sequence[bytes]
    anchor: str

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch = self.examples.__getitems__(indices)
        same = all(key(x) == self.keys[int(i)] for x, i in zip(batch.data[self.anchor], indices, strict=True))
        return dataclasses.replace(batch, z0=self.kept.__getitems__(indices).data["z0"]) if same else batch
