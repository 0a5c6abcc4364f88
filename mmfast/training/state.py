"""Pack and unpack a trainer's state as tensors by name: "model.*", "ema.*", "balance.*" and "optimizer.INDEX.*"."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.errors import MmfastError
from mmfast.files import check_fit
from mmfast.training.shards import like

OPTIMISED = ("model", "balance")
# What AdamW stores for each parameter that has had a gradient, of which Muon stores the first moment only. Both count
# their steps in float32.
MOMENTS, COUNT, MOST_COUNTED = ("exp_avg", "exp_avg_sq"), "step", 2**24


def pack(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of the modules and of the optimiser, by name."""
    tensors = {f"{kind}.{name}": x for kind, module in modules.items() for name, x in module.state_dict().items()}
    for index, p in enumerate(_parameters(modules)):
        tensors |= {f"optimizer.{index}.{name}": x for name, x in optimizer.state.get(p, {}).items()}
    return tensors


def _parameters(modules: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """The optimised parameters in the modules' order, whatever groups the optimiser has them in."""
    return [p for kind in OPTIMISED if kind in modules for p in modules[kind].parameters()]


def _most_counted(tensors: Mapping[str, Tensor]) -> int:
    """The steps that the optimiser has taken with some parameter."""
    names = (name for name in tensors if name.startswith("optimizer.") and name.endswith(f".{COUNT}"))
    return max((int(tensors[name]) for name in names), default=0)


def counted(tensors: Mapping[str, Tensor], steps: int) -> dict[str, int]:
    """What the metadata of a state says of its optimiser's count: nothing if it is the number of `steps`.

    It is less if no parameter has had a gradient in every step, which the parts of a loss of one's own may take turns
    to give.
    """
    taken = _most_counted(tensors)
    return {} if taken == min(steps, MOST_COUNTED) else {"taken": taken}


def check(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    last: int,
    modules: Mapping[str, nn.Module],
    path: Path,
    single: Set[nn.Parameter] = frozenset(),
) -> None:
    """Raise MmfastError unless `unpack` can load the tensors and they match the step in their metadata, 0 .. last.

    The optimiser should have taken that many steps, less those that were skipped, or as many as the metadata says
    (`counted`). single: the parameters of which it keeps the first moment only.
    """
    step, skipped = metadata.get("step"), metadata.get("skipped", 0)
    if type(step) is not int or not 0 <= step <= last:
        raise MmfastError(f"{path} is of step {step!r}; it should be a number from 0 to train.steps, {last}")
    if type(skipped) is not int or not 0 <= skipped <= step:
        raise MmfastError(f"{path} has {skipped!r} steps that were left out; it should be a number from 0 to {step}")
    wanted = {f"{kind}.{name}": x for kind, module in modules.items() for name, x in module.state_dict().items()}
    for index, p in enumerate(_parameters(modules)):
        entry = {COUNT: torch.zeros(()), **dict.fromkeys(MOMENTS[:1] if p in single else MOMENTS, p)}
        named = {f"optimizer.{index}.{name}": x for name, x in entry.items()}
        if tensors.keys() & named.keys():  # none if the parameter has had no gradient
            wanted |= named
    check_fit(tensors, wanted, path)
    taken = _most_counted(tensors)
    if taken != metadata.get("taken", min(step - skipped, MOST_COUNTED)):
        but = f", less the {skipped} that were left out" if skipped else ""
        raise MmfastError(
            f"{path} is of step {step}{but}, but its optimiser has taken {taken}; both should be the same"
        )


def unpack(tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Load into the modules and the optimiser what `pack` returned and `check` accepted."""
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*modules, "optimizer")}
    for name, x in tensors.items():
        kind, rest = name.split(".", 1)
        parts[kind][rest] = x
    parameters = _parameters(modules)
    place = {p: k for k, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for name, x in parts["optimizer"].items():
        index, rest = name.split(".", 1)
        p = parameters[int(index)]
        state.setdefault(place[p], {})[rest] = like(x, p) if rest in MOMENTS else x
    for kind, module in modules.items():
        current = module.state_dict()
        module.load_state_dict({name: like(x, current[name]) for name, x in parts[kind].items()})
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
