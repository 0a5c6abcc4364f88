"""Weights in shards, one on each rank (FSDP2), for networks whose training does not fit on one GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.errors import MmfastError
from mmfast.model import Model
from mmfast.ranks import Ranks


def shard(model: Model, ranks: Ranks, device: torch.device) -> None:
    """Leave a shard of each of the backbone's weights here; what is beside the backbone stays whole.

    The blocks of the backbone's lists are gathered one after another when their turn comes. So a large model begins on
    the CPU, and is never whole on a GPU.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise MmfastError(f"train.shard needs torch 2.6 or later, and this is {torch.__version__}") from None
    mesh = init_device_mesh(device.type, (ranks.count,))
    for part in model.backbone.modules():
        for block in part if type(part) is nn.ModuleList else ():
            fully_shard(block, mesh=mesh)
    fully_shard(model.backbone, mesh=mesh)
    model.to(device)


def is_shard(x: Tensor) -> bool:
    return hasattr(x, "full_tensor")


def local(x: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    return x.to_local() if is_shard(x) else x  # type: ignore[attr-defined]


def whole(tensors: Mapping[str, Tensor], first: bool) -> dict[str, Tensor]:
    """Tensors without shards, on the first rank: on the CPU those that were. All ranks call this together."""
    found = {}
    for name, x in tensors.items():
        full: Tensor = x.full_tensor() if is_shard(x) else x  # type: ignore[attr-defined]
        if first:
            found[name] = full.cpu() if is_shard(x) else full
    return found


def like(x: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, or its shard where `other` is one. All ranks call this together."""
    if not is_shard(other):
        return x
    from torch.distributed.tensor import distribute_tensor

    goal: Any = other
    return distribute_tensor(x.to(goal.device), goal.device_mesh, goal.placements)


def groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameters for an optimiser, which takes shards by themselves."""
    parameters = list(parameters)
    parts = [[p for p in parameters if is_shard(p) == kind] for kind in (False, True)]
    return [{"params": part} for part in parts if part]


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], most: float, ranks: Ranks) -> Tensor:
    """torch's clip_grad_norm_ where some gradients are in shards: returns their norm, over all ranks."""
    grads = [p.grad for p in parameters if p.grad is not None]
    nothing = torch.zeros((), device=grads[0].device)
    shards = sum((local(g).square().sum() for g in grads if is_shard(g)), nothing)
    others = sum((g.square().sum() for g in grads if not is_shard(g)), nothing)
    norm = (ranks.mean(shards.clone()) * ranks.count + others).sqrt()
    for g in grads:
        local(g).mul_((most / (norm + 1e-6)).clamp(max=1))
    return norm
