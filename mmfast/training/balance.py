"""Loss balancing: weights of the parts of the loss that are found in training, on top of those of the config.

L_i is the loss of modality i, already multiplied by its `loss_weight`. Training minimises sum_i w_i L_i plus whatever
the rule adds. The weights depend only on earlier steps, and are the same on all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmfast.backbones.features import Features
from mmfast.errors import MmfastError
from mmfast.model import Model, Prediction
from mmfast.ranks import Ranks

# MEMORY: steps that the running mean of squared gradient norms covers. LARGEST bounds |s_i| to keep weights finite.
MEMORY, LARGEST = 100, 10.0


class Balance(nn.Module):
    """No balancing: every w_i is 1. A rule is a subclass; its parameters are trained, its state saved with the run.

    Args:
        names: the parts to weight. Other parts count as they are.
    """

    looks = False  # whether `total` needs the features that the parts are computed from

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def weights(self) -> dict[str, Tensor]:
        """w_i by name, float32 [] each; {} without a rule."""
        return {}

    def total(self, parts: Mapping[str, Tensor], features: Sequence[Features], share: float) -> Tensor:
        """The loss to minimise, [], from the parts by name, each [].

        features: those that the parts were computed from. share: the fraction of the step's examples that the parts
        cover. A rule raises MmfastError if it weights none of the parts.
        """
        return torch.stack(list(parts.values())).sum()

    def update(self, ranks: Ranks, skipped: Tensor) -> None:
        """Update the weights after all parts of a step are computed; skipped: 1 if the step is skipped, else 0."""

    @contextlib.contextmanager
    def looking(self, model: Model) -> Iterator[list[Features]]:
        """Collect the features of all predictions that the model makes in this context, if the rule `looks`."""
        seen: list[Features] = []

        def look(module: nn.Module, inputs: object, output: Prediction) -> None:
            assert output.features is not None
            seen.append(output.features)

        hook = model.register_forward_hook(look) if self.looks else None
        try:
            yield seen
        finally:
            if hook is not None:
                hook.remove()

    def _weighed(self, parts: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """sum_i w_i L_i."""
        if not parts.keys() & weights.keys():
            raise MmfastError(
                f"loss.balance weights the losses of {', '.join(self.names)}, but these are of {', '.join(parts)}; it "
                "should be none"
            )
        return torch.stack([x * weights[name] if name in weights else x for name, x in parts.items()]).sum()


class Uncertainty(Balance):
    """Weights by homoscedastic uncertainty (Kendall et al., 2018): sum_i exp(-s_i) L_i + s_i / 2.

    s_i is the logarithm of a variance. It is learnt with the network, starts at 0 and is clamped to -LARGEST ..
    LARGEST. At the optimum exp(-s_i) = 1 / (2 L_i), for squared errors and cross-entropies alike, whatever
    `loss_weight` is. The sum may be negative.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def weights(self) -> dict[str, Tensor]:
        return dict(zip(self.names, (-self.log_variance.detach()).exp().unbind(), strict=True))

    def total(self, parts: Mapping[str, Tensor], features: Sequence[Features], share: float) -> Tensor:
        each = dict(zip(self.names, self.log_variance.unbind(), strict=True))
        weighed = self._weighed(parts, {name: (-s).exp() for name, s in each.items()})
        return weighed + torch.stack([each[name] for name in parts if name in each]).sum() / 2

    @torch.no_grad()
    def update(self, ranks: Ranks, skipped: Tensor) -> None:
        self.log_variance.clamp_(-LARGEST, LARGEST)  # a step may overshoot; the next update clamps it


def _gradients(x: Tensor, features: Sequence[Features]) -> list[Tensor]:
    """The gradients of x by the features that its head reads: of the pixels and the averages, or of the levels."""
    both = [z for each in features for z in (each.pixels, each.before)]
    for read in (both, [z for each in features for z in each.levels]):
        those = [z for z in read if z is not None and z.requires_grad]
        found = torch.autograd.grad(x, those, retain_graph=True, allow_unused=True) if those else ()
        if kept := [g for g in found if g is not None]:
            return kept
    return []


class GradientNorm(Balance):
    """Weights by gradient norms: w_i = mean_j(G_j) / G_i, which makes all parts pull with the mean gradient norm.

    G_i^2 is the running mean, over about MEMORY steps, of |dL_i / dz|^2, where z is the features that the backbone
    passes to the heads. This is the fixed point of GradNorm (Chen et al., 2018) with alpha = 0, in closed form. The
    gradient by z replaces that by the weights, as in Sener and Koltun (2018): it costs one more backward pass of each
    head and none of the backbone. A part without a gradient so far has weight 1. `loss_weight` cancels. The last layers
    start at or near zero, so the first gradients say little: in step n < MEMORY the weights are w_i^(n / MEMORY).
    """

    looks = True
    squares: Tensor
    steps: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        # In float64, so that splitting a batch into parts makes next to no difference.
        self.register_buffer("squares", torch.zeros(len(self.names), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.now: dict[str, Tensor] = {}

    def weights(self) -> dict[str, Tensor]:
        G = self.squares.sqrt()
        found = torch.where(G > 0, G.sum() / (G > 0).sum() / G, 1.0) ** (self.steps / MEMORY).clamp(max=1)
        return dict(zip(self.names, found.float().unbind(), strict=True))

    def total(self, parts: Mapping[str, Tensor], features: Sequence[Features], share: float) -> Tensor:
        for name, x in parts.items():
            if name in self.names and x.requires_grad:
                # A part is a mean over its share of the examples; in the mean over all, its gradient scales by share.
                squared = [(g.float() * share).square().sum().double() for g in _gradients(x, features)]
                self.now[name] = sum(squared, self.now.get(name, self.squares.new_zeros(())))
        return self._weighed(parts, self.weights())

    @torch.no_grad()
    def update(self, ranks: Ranks, skipped: Tensor) -> None:
        nothing, left_out = self.squares.new_zeros(()), skipped > 0
        now = ranks.mean(torch.stack([self.now.get(name, nothing) for name in self.names])) * ranks.count
        rate = 1 / (self.steps + 1).clamp(max=MEMORY)
        # The gradients of a skipped step may be NaN.
        self.squares.copy_(torch.where(left_out, self.squares, self.squares + rate * (now - self.squares)))
        self.steps.add_(torch.where(left_out, 0.0, 1.0))
        self.now = {}


RULES: dict[str, type[Balance]] = {"none": Balance, "uncertainty": Uncertainty, "gradient_norm": GradientNorm}
