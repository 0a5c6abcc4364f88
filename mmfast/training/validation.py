"""The loss of held-out examples: always the same examples, at the same times, with the same noise."""

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

# The number of the first of them. No example of training has one so high; numbers have 48 bits.
FIRST = 2**47
# At most so many at a time.
AT_ONCE = 64


def chosen(seed: int, length: int, count: int) -> Tensor:
    """`count` of `length` examples in an order of chance, all of them before one comes again: int64 [count]."""
    keys = ops.random_words([length, 1], seed=seed, sample_ids=torch.arange(length), stream=VALIDATE)[:, 0]
    return keys.argsort(stable=True)[torch.arange(count) % length]


class Validation:
    """The loss of a model on `train.validate_examples` (example, time, noise), by which averages are compared.

    They are examples of the run with numbers of their own, so that their times, what is given of them, and their noise
    are those of no example of training. The ranks share them out.
    """

    def __init__(self, config: Config, examples: Examples, losses: Losses, ranks: Ranks, device: torch.device) -> None:
        self.config, self.examples, self.losses, self.ranks, self.device = config, examples, losses, ranks, device
        self.rows = chosen(config.seed, len(examples), config.train.validate_examples)
        self.size = min(AT_ONCE, len(parts(config, ranks, 0)[0]))

    @torch.no_grad()
    def __call__(self, model: Model) -> dict[str, float]:
        """The means by name: "loss", and "loss.NAME" for each of its parts. The model is in its evaluation mode.

        Raises MmfastError for an example that cannot be read.
        """
        places = torch.arange(len(self.rows)).split(self.size)
        found = self.ranks.map(lambda k: self._of(model, k), places)
        sums: dict[str, float] = {}
        for k, values in zip(places, found, strict=True):
            if isinstance(values, str):  # on all ranks alike: none may leave the others waiting
                raise MmfastError(values)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value * len(k) / len(self.rows)
        return sums

    def _of(self, model: Model, places: Tensor) -> Mapping[str, float] | str:
        """The means over some of them; or why they cannot be had."""
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
