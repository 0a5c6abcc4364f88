"""Augmentation: mirror all modalities of an example together, as a function of (seed, number in the run)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfast import ops
from mmfast.data import Batch
from mmfast.model import Model
from mmfast.streams import FLIP


def mirrored(model: Model, batch: Batch, seed: int, numbers: Tensor) -> Batch:
    """Mirror each example of the batch left to right with probability 1/2, in every modality that `mirrors`.

    numbers: int64 [B], the examples' numbers in the run. An example has a new number in each epoch, so it is mirrored
    in some epochs only. Derived modalities, such as hidden parts, are made afterwards, from the mirrored data.
    """
    words = ops.random_words([len(numbers), 1], seed=seed, sample_ids=numbers, stream=FLIP, device=numbers.device)
    flips = words[:, 0] < 2**31

    def seen(name: str, x: Tensor) -> Tensor:
        if name not in model.parts or not model.part(name).mirrors:
            return x
        return torch.where(flips.reshape(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)

    return Batch({name: seen(name, x) for name, x in batch.data.items()}, batch.present)
