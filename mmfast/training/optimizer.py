"""The optimisers: AdamW, and Muon for the matrices of the network with AdamW for the rest."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.training import shards

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
        alike: dict[object, list[nn.Parameter]] = {}
        for p in group["params"]:
            if p.grad is not None:  # one in shards alone, so that only one is whole at a time
                alike.setdefault(p if shards.is_shard(p) else min(_sides(p)), []).append(p)
        taken = 1.0 if skipped is None else 1 - skipped
        for these in alike.values():
            updates = [self._momentum(p, skipped) for p in these]
            with full_precision():
                steps = orthogonal([x if x.shape[0] <= x.shape[1] else x.mT for x in updates])
            for p, update, step in zip(these, updates, steps, strict=True):
                step = (step if step.shape == update.shape else step.mT).reshape(p.shape)
                rate, weights = group["lr"] * taken, shards.local(p)
                if group["weight_decay"]:
                    weights.mul_(1 - rate * group["weight_decay"])
                weights.sub_(shards.local(shards.like(step, p)) * (rate * RMS * math.sqrt(max(update.shape))))

    def _momentum(self, p: nn.Parameter, skipped: Tensor | None) -> Tensor:
        """The Nesterov momentum of the gradient as a whole float32 matrix."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        grad, average = p.grad, state["exp_avg"]
        mine, kept = shards.local(grad), shards.local(average)
        if skipped is not None:
            mine = torch.where(skipped > 0, kept, mine)  # leaves the average as it is
        kept.lerp_(mine, 1 - MOMENTUM)
        state["step"] += 1 if skipped is None else 1 - skipped
        update = torch.empty_like(grad)
        shards.local(update).copy_(mine.lerp(kept, MOMENTUM))
        return shards.full(update).reshape(len(p), -1).float()


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
    """Matrices [m, n], m <= n, of one m, with the singular values moved towards 1, by Newton-Schulz steps.

    They become 0.7 to 1.2; those below about 1/700 of the Frobenius norm stay smaller. Each step multiplies the matrix
    X from the left by a polynomial of X X^T. The polynomials commute, so all products but the last are of m x m
    matrices, of all X at once. This needs float32 products (`full_precision`): each step multiplies the rounding errors
    of small eigenvalues by about 12.
    """
    a, b, c = POLYNOMIAL
    gram = torch.stack([x @ x.mT for x in matrices])
    square = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)[:, None, None]  # of the Frobenius norm
    gram, total = gram / square, square.rsqrt()
    for k in range(ITERATIONS):
        factor = b * gram + c * (gram @ gram)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        total = factor @ total if k else factor * total
        if k < ITERATIONS - 1:
            gram = factor @ gram @ factor
    return [product @ x for product, x in zip(total, matrices, strict=True)]
