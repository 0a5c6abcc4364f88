"""CUDA graphs of a network's forward and backward pass, because small networks are launch-bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmfast.model import Model


def capture(model: Model, run: Callable[[], object], bf16: bool) -> None:
    """Capture the backbone's passes, which it then replays in training mode, for this batch size only.

    Passes without the decoder (train.clean_pass) are not captured. run: computes a training loss of the model on a
    batch of the size of all later batches; the graphs are captured for the shapes of the backbone's input in it. The
    weights stay in place, so the optimiser's updates take effect.
    """
    seen: list[tuple[Tensor, ...]] = []
    hook = model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    try:
        run()
    finally:
        hook.remove()
    backbone: Any = model.backbone
    forward = backbone.forward
    inputs = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in seen[0])
    # Without the cache the graph itself casts the weights, so each replay casts their current values.
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False):
        graphed: Any = torch.cuda.make_graphed_callables(backbone, inputs)
    assert graphed is backbone  # a module is modified in place
    replay = backbone.forward  # takes tensors only
    backbone.forward = lambda *inputs, decode=True: replay(*inputs) if decode else forward(*inputs, decode=False)
