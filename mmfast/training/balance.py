"""The balance of the loss: weights of its parts that training finds, on top of those of the config.

A part L_i is a modality's, already times its `loss_weight`. What is minimised is sum_i w_i L_i, and what the rule adds.
The weights know the steps before alone, and are the same on all ranks.
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

# Of the running mean of squared gradient norms, in steps; and of s_i, beyond which a weight would be no number.
MEMORY, LARGEST = 100, 10.0


class Balance(nn.Module):
    """None: every w_i is 1. A rule is a subclass, whose parameters are trained and whose state is the run's.

    Args:
        names: of the parts that are weighed. Others count as they are.
    """

    looks = False  # whether `total` wants the features that the parts are read from

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def weights(self) -> dict[str, Tensor]:
        """w_i by name, float32 [] each; {} where there is no balance."""
        return {}

    def total(self, parts: Mapping[str, Tensor], features: Sequence[Features], share: float) -> Tensor:
        """What is minimised, [], of the parts by name, each [].

        features: those that the parts were read from; share: that of the step's examples which the parts are of.
        Raises MmfastError where none of the parts is weighed.
        """
        return torch.stack(list(parts.values())).sum()

    def update(self, ranks: Ranks, skipped: Tensor) -> None:
        """Take in a step, once all of its parts were computed; skipped: 1 where it is left out, else 0."""

    @contextlib.contextmanager
    def looking(self, model: Model) -> Iterator[list[Features]]:
        """A list of the features of all predictions that the model makes meanwhile."""
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
                f"loss.balance weighs the losses of {', '.join(self.names)}, and these are of {', '.join(parts)}; it "
                "should be none"
            )
        return torch.stack([x * weights[name] if name in weights else x for name, x in parts.items()]).sum()


class Uncertainty(Balance):
    """Weights by homoscedastic uncertainty (Kendall et al., 2018): sum_i exp(-s_i) L_i + s_i / 2.

    s_i is the logarithm of a variance, learnt as the network is, from 0 on, within -LARGEST .. LARGEST. At rest
    exp(-s_i) = 1 / (2 L_i), of a squared error and of a cross-entropy alike, whatever `loss_weight` is. The sum may be
    negative.
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
        self.log_variance.clamp_(-LARGEST, LARGEST)  # and a step of the optimiser beyond: it finds its way back


class GradientNorm(Balance):
    """Weights by gradient norms: w_i = mean_j(G_j) / G_i, so that all parts pull alike, and together as hard as before.

    G_i^2 is the running mean, over some MEMORY steps, of |dL_i / dz|^2, with z the features that the backbone gives to
    the heads. There GradNorm (Chen et al., 2018) comes to rest with alpha = 0; here that is solved for. z stands for
    weights as with Sener and Koltun (2018), so it costs one more backward pass of each head, and none of the backbone.
    A part that has had no gradient has the weight 1. `loss_weight` cancels. The last layers of a network begin at or
    near zero, so the gradients of its first steps say little: in step n < MEMORY the weights are w_i^(n / MEMORY).
    """

    looks = True
    squares: Tensor
    steps: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        # In float64, so that how a batch is cut hardly shows.
        self.register_buffer("squares", torch.zeros(len(self.names), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.now: dict[str, Tensor] = {}

    def weights(self) -> dict[str, Tensor]:
        G = self.squares.sqrt()
        found = torch.where(G > 0, G.sum() / (G > 0).sum() / G, 1.0) ** (self.steps / MEMORY).clamp(max=1)
        return dict(zip(self.names, found.float().unbind(), strict=True))

    def total(self, parts: Mapping[str, Tensor], features: Sequence[Features], share: float) -> Tensor:
        z = [x for each in features for x in each if x.requires_grad]
        for name, x in parts.items():
            if name in self.names and x.requires_grad and z:
                found = torch.autograd.grad(x, z, retain_graph=True, allow_unused=True)
                # A part is a mean over its share of the examples; over all of them its gradient is so much smaller.
                squared = [(g.float() * share).square().sum().double() for g in found if g is not None]
                self.now[name] = sum(squared, self.now.get(name, self.squares.new_zeros(())))
        return self._weighed(parts, self.weights())

    @torch.no_grad()
    def update(self, ranks: Ranks, skipped: Tensor) -> None:
        nothing, left_out = self.squares.new_zeros(()), skipped > 0
        now = ranks.mean(torch.stack([self.now.get(name, nothing) for name in self.names])) * ranks.count
        rate = 1 / (self.steps + 1).clamp(max=MEMORY)
        # Where a step is left out its gradients may be no numbers.
        self.squares.copy_(torch.where(left_out, self.squares, self.squares + rate * (now - self.squares)))
        self.steps.add_(torch.where(left_out, 0.0, 1.0))
        self.now = {}


RULES: dict[str, type[Balance]] = {"none": Balance, "uncertainty": Uncertainty, "gradient_norm": GradientNorm}
