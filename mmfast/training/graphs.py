"""CUDA graphs of a network's forward and backward pass: small networks wait for their launches, not for arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmfast.model import Model


def capture(model: Model, run: Callable[[], object], bf16: bool) -> None:
    """Record the backbone's passes, which it then replays in training mode, for this batch size alone.

    run: a training loss of the model for a batch of the size that all batches will have, whose backbone input is what
    the graphs are recorded for. The weights stay where they are in memory, and are what the optimiser changes.
    """
    seen: list[tuple[Tensor, ...]] = []
    hook = model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    try:
        run()
    finally:
        hook.remove()
    inputs = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in seen[0])
    # The weights are cast within the graph, so that it casts what they have become.
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False):
        graphed: Any = torch.cuda.make_graphed_callables(model.backbone, inputs)
    assert graphed is model.backbone  # a module is changed in place
