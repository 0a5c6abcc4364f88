"""The exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from mmfast.training import each
from mmfast.training.shards import local

Averaged = TypeVar("Averaged", bound=nn.Module)


class EMA(Generic[Averaged]):
    """shadow <- shadow + (1 - decay) (weights - shadow), in one fused pass over all weights.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that the initial weights are forgotten quickly.
    `model` is the averaged model, for evaluation.
    """

    def __init__(self, model: Averaged, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights after optimiser step `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        shadow: list[Tensor] = [local(p) for p in self.model.parameters()]
        weights: list[Tensor] = [local(p) for p in model.parameters()]
        each.lerp_(shadow, weights, 1 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
