"""Weights sharded over the ranks (FSDP2), for networks whose training does not fit on one GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.errors import MmfastError
from mmfast.model import Model
from mmfast.ranks import Ranks


def shard(model: Model, ranks: Ranks, device: torch.device) -> None:
    """Shard the backbone's weights over the ranks; all other weights stay whole.

    Each block in a ModuleList of the backbone is gathered separately when it runs. A large model should start on the
    CPU, and is then never whole on a GPU.
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
    """This rank's shard of a tensor, or the tensor itself if it is not sharded."""
    return x.to_local() if is_shard(x) else x  # type: ignore[attr-defined]


def full(x: Tensor) -> Tensor:
    """The whole tensor, gathered on every rank if it is sharded. All ranks call this together."""
    return x.full_tensor() if is_shard(x) else x  # type: ignore[attr-defined]


def whole(tensors: Mapping[str, Tensor], first: bool) -> dict[str, Tensor]:
    """Gather tensors on the first rank, those that were sharded on the CPU. All ranks call this together."""
    found = {}
    for name, x in tensors.items():
        gathered = full(x)
        if first:
            found[name] = gathered.cpu() if is_shard(x) else gathered
    return found


def like(x: Tensor, other: Tensor) -> Tensor:
    """Shard a whole tensor as `other` is, if it is sharded. All ranks call this together."""
    if not is_shard(other):
        return x
    from torch.distributed.tensor import distribute_tensor

    goal: Any = other
    return distribute_tensor(x.to(goal.device), goal.device_mesh, goal.placements)


def groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, with shards in a group of their own."""
    parameters = list(parameters)
    parts = [[p for p in parameters if is_shard(p) == kind] for kind in (False, True)]
    return [{"params": part} for part in parts if part]


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], most: float, ranks: Ranks) -> Tensor:
    """Clip gradients like torch's clip_grad_norm_ if some are sharded; returns the norm over all ranks."""
    grads = [p.grad for p in parameters if p.grad is not None]
    nothing = torch.zeros((), device=grads[0].device)
    shards = sum((local(g).square().sum() for g in grads if is_shard(g)), nothing)
    others = sum((g.square().sum() for g in grads if not is_shard(g)), nothing)
    norm = (ranks.mean(shards.clone()) * ranks.count + others).sqrt()
    for g in grads:
        local(g).mul_((most / (norm + 1e-6)).clamp(max=1))
    return norm
