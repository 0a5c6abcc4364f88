"""Examples seen otherwise: mirrored, all of an example together, as a function of (seed, number in the run)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfast import ops
from mmfast.data import Batch
from mmfast.model import Model
from mmfast.streams import FLIP


def mirrored(model: Model, batch: Batch, seed: int, numbers: Tensor) -> Batch:
    """The batch with half of its examples mirrored, left to right, in every modality that has a left and a right.

    numbers: int64 [B], the examples' numbers in the run: in another epoch an example has another, and another chance.
    What is made of others, such as hidden parts, is made of them as they stand then.
    """
    words = ops.random_words([len(numbers), 1], seed=seed, sample_ids=numbers, stream=FLIP, device=numbers.device)
    flips = words[:, 0] < 2**31

    def seen(name: str, x: Tensor) -> Tensor:
        if name not in model.parts or not model.part(name).mirrors:
            return x
        return torch.where(flips.reshape(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)

    return Batch({name: seen(name, x) for name, x in batch.data.items()}, batch.present)
