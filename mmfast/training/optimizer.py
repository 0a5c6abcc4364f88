"""The optimisers: AdamW, and Muon for the matrices of the network with AdamW for the rest."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.training import each, shards

# Muon's momentum, its number of iterations, and their polynomial a x + b x^3 + c x^5 (Jordan et al., 2024).
MOMENTUM, ITERATIONS, POLYNOMIAL = 0.95, 5, (3.4445, -4.7750, 2.0315)
# Of an update, relative to the learning rate: about that of AdamW's updates (Liu et al., 2025).
RMS = 0.2
# Layers with fewer inputs or outputs, such as the network's last, stay with AdamW.
LEAST_SIDE = 16


def build(
    name: str, model: nn.Module, others: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """The optimiser, "adamw" or "muon", for the model and, without weight decay, for `others`."""
    mine = matrices(model) if name == "muon" else set()
    groups = shards.groups(p for p in model.parameters() if p not in mine)
    groups += [{**group, "muon": True} for group in shards.groups(p for p in model.parameters() if p in mine)]
    if others := list(others):
        groups.append({"params": others, "weight_decay": 0.0})
    kind = Muon if mine else torch.optim.AdamW
    return kind(groups, learning_rate, weight_decay=weight_decay, fused=True)


def matrices(model: nn.Module) -> set[nn.Parameter]:
    """The weights of linear and convolutional layers with at least LEAST_SIDE outputs and inputs (of all offsets)."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = (layer.weight for layer in model.modules() if isinstance(layer, layers))
    return {p for p in found if isinstance(p, nn.Parameter) and min(_sides(p)) >= LEAST_SIDE}


def _sides(p: Tensor) -> tuple[int, int]:
    """The outputs of a layer's weight, and its inputs times offsets."""
    return len(p), p.numel() // max(1, len(p))


def with_one_moment(optimizer: torch.optim.Optimizer) -> set[nn.Parameter]:
    """The parameters of which the optimiser keeps the first moment of the gradient and no second."""
    return {p for group in optimizer.param_groups if group.get("muon") for p in group["params"]}


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for the groups with `muon`, AdamW for the others, at the same learning rate.

    Muon replaces the gradient, as Nesterov momentum, by a matrix with nearly the same singular vectors and singular
    values near 1, so that no direction dominates a step. A convolution is a matrix of [outputs, inputs x offsets]. An
    update is scaled by RMS sqrt(the longer side), as in Moonlight (Liu et al., 2025).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step. If `found_inf` is set on the optimiser and is 1, nothing changes."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            found = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("muon"):
                self._step(group, getattr(self, "found_inf", None))
        return found

    def _step(self, group: dict[str, Any], skipped: Tensor | None) -> None:
        those = [p for p in group["params"] if p.grad is not None]
        apart = [[p] for p in those if shards.is_shard(p)]  # one at a time, so that only one is whole
        for these in [*apart, [p for p in those if not shards.is_shard(p)]]:
            if these:
                self._step_together(these, group, skipped)

    def _step_together(self, these: list[nn.Parameter], group: dict[str, Any], skipped: Tensor | None) -> None:
        updates = self._momenta(these, skipped)
        with full_precision():
            steps = orthogonal(updates)
        scales = [RMS * math.sqrt(max(x.shape)) for x in steps]
        steps = [shards.local(shards.like(x.reshape(p.shape), p)) for x, p in zip(steps, these, strict=True)]
        rate = group["lr"] if skipped is None else group["lr"] * (1 - skipped)
        weights = [shards.local(p) for p in these]
        if group["weight_decay"]:
            each.mul_(weights, 1 - rate * group["weight_decay"])
        each.mul_(steps, scales)
        each.mul_(steps, rate)
        each.sub_(weights, steps)

    def _momenta(self, these: list[nn.Parameter], skipped: Tensor | None) -> list[Tensor]:
        """The Nesterov momentum of each gradient, as a whole float32 matrix."""
        for p in these:
            if not self.state[p]:
                average = torch.zeros_like(p, memory_format=torch.preserve_format)
                self.state[p].update(step=torch.zeros((), device=p.device), exp_avg=average)
        grads: list[Tensor] = [p.grad for p in these]  # type: ignore[misc]
        mine = [shards.local(x) for x in grads]
        averages = [shards.local(self.state[p]["exp_avg"]) for p in these]
        if skipped is not None:
            mine = _unless(skipped, mine, averages)  # an average of itself and itself stays as it is
        each.lerp_(averages, mine, 1 - MOMENTUM)
        each.add_([self.state[p]["step"] for p in these], 1 if skipped is None else 1 - skipped)
        updates = each.lerp(mine, averages, MOMENTUM)
        return [_whole(x, grad).reshape(len(p), -1).float() for x, grad, p in zip(updates, grads, these, strict=True)]


def _unless(skipped: Tensor, these: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """`these`, or the others if `skipped` is 1: in a few launches, without reading a GPU's value."""
    a, b = (torch.cat([x.reshape(-1) for x in part]) for part in (others, these))
    chosen = torch.where(skipped > 0, a, b)
    return [x.view(own.shape) for x, own in zip(chosen.split([x.numel() for x in these]), these, strict=True)]


def _whole(x: Tensor, grad: Tensor) -> Tensor:
    """The whole of a tensor of which this rank has the part x, where grad may be in shards."""
    if not shards.is_shard(grad):
        return x
    sharded = torch.empty_like(grad)
    shards.local(sharded).copy_(x)
    return shards.full(sharded)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Let float32 matrices be multiplied in float32, and not in TF32 or bfloat16."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(legacy)
        return
    devices: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [device.fp32_precision for device in devices]
    try:
        for device in devices:
            device.fp32_precision = "ieee"
        yield
    finally:
        for device, precision in zip(devices, before, strict=True):
            device.fp32_precision = precision


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices with the singular values moved towards 1, by Newton-Schulz steps, as new tensors.

    The values become 0.7 to 1.2; those below about 1/700 of the Frobenius norm stay smaller. Matrices of one shape are
    multiplied together. This needs float32 products (`full_precision`): each step multiplies the rounding errors of
    small eigenvalues by about 12.
    """
    by_side: dict[int, dict[torch.Size, list[int]]] = {}
    for k, x in enumerate(matrices):
        by_side.setdefault(min(x.shape), {}).setdefault(x.shape, []).append(k)
    found = list(matrices)
    for alike in by_side.values():
        stacks = _orthogonal([torch.stack([matrices[k] for k in same]) for same in alike.values()])
        for same, stack in zip(alike.values(), stacks, strict=True):
            for k, x in zip(same, stack.unbind(), strict=True):
                found[k] = x
    return found


def _orthogonal(stacks: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonal` for stacks [K, m, n] of which the shorter side is the same.

    Each step multiplies a wide matrix X from the left by a polynomial of X X^T, and a tall one from the right by one of
    X^T X. The polynomials commute, so all products but the last are of small square matrices, of all X at once.
    """
    a, b, c = POLYNOMIAL
    gram = torch.cat([torch.bmm(x, x.mT) if _is_wide(x) else torch.bmm(x.mT, x) for x in stacks])
    square = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)[:, None, None]  # of the Frobenius norm
    gram, total = gram / square, square.rsqrt()
    for k in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        total = torch.bmm(factor, total) if k else factor * total
        if k < ITERATIONS - 1:
            gram = torch.bmm(torch.bmm(factor, gram), factor)
    products = total.split([len(x) for x in stacks])
    return [torch.bmm(p, x) if _is_wide(x) else torch.bmm(x, p) for p, x in zip(products, stacks, strict=True)]


def _is_wide(x: Tensor) -> bool:
    return x.shape[-2] <= x.shape[-1]
