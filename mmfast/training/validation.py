"""The loss on held-out examples: always the same examples, at the same times, with the same noise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmfast import ops
from mmfast.config import Config
from mmfast.data import Examples
from mmfast.errors import MmfastError
from mmfast.model import Model
from mmfast.ranks import Ranks
from mmfast.streams import VALIDATE
from mmfast.training.examples import parts
from mmfast.training.objective import Losses
from mmfast.training.try_out import check_batch

# The number of the first validation example. Training never reaches it; numbers have 48 bits.
FIRST = 2**47
# The largest batch.
AT_ONCE = 64


def chosen(seed: int, length: int, count: int) -> Tensor:
    """`count` of `length` examples in random order, all of them before any repeats: int64 [count]."""
    keys = ops.random_words([length, 1], seed=seed, sample_ids=torch.arange(length), stream=VALIDATE)[:, 0]
    return keys.argsort(stable=True)[torch.arange(count) % length]


class Validation:
    """The loss of a model on `train.validate_examples` draws of (example, time, noise), to compare averages by.

    They have example numbers of their own, so their times, given modalities and noise differ from those in training.
    The ranks share the work.
    """

    def __init__(self, config: Config, examples: Examples, losses: Losses, ranks: Ranks, device: torch.device) -> None:
        self.config, self.examples, self.losses, self.ranks, self.device = config, examples, losses, ranks, device
        self.rows = chosen(config.seed, len(examples), config.train.validate_examples)
        self.size = min(AT_ONCE, len(parts(config, ranks, 0)[0]))

    @torch.no_grad()
    def __call__(self, model: Model) -> dict[str, float]:
        """The means by name: "loss", and "loss.NAME" for each of its parts. The model should be in evaluation mode.

        Raises MmfastError if an example cannot be read.
        """
        places = torch.arange(len(self.rows)).split(self.size)
        found = self.ranks.map(lambda k: self._of(model, k), places)
        sums: dict[str, float] = {}
        for k, values in zip(places, found, strict=True):
            if isinstance(values, str):  # raised on all ranks, so that none leaves the others waiting
                raise MmfastError(values)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value * len(k) / len(self.rows)
        return sums

    def _of(self, model: Model, places: Tensor) -> Mapping[str, float] | str:
        """The means over some examples, or the error if one cannot be read."""
        try:
            batch = self.examples.__getitems__(self.rows[places].tolist())
            check_batch(model, batch)
        except MmfastError as error:
            return str(error)
        batch = batch.to(self.device)
        numbers = (FIRST + places).to(self.device)
        found = self.losses(model, batch, numbers, self.config)
        values = torch.stack([x.double() for x in found.values()]).tolist()
        return {"loss": sum(values), **{f"loss.{name}": x for name, x in zip(found, values, strict=True)}}
