"""Examples of which some cannot be read: they are left out, and said once, and others take their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmfast.data.base import Batch, Layer
from mmfast.errors import MmfastError, notice

ON_ERROR = "an example that cannot be read stops training, or is left out and another takes its place"
CHOICES = ("stop", "skip")


@dataclass
class Skipping(Layer):
    """Examples in which the next one that can be read stands for one that cannot, each time it is asked for.

    So the number of examples and the places of all others stay as they are, whenever a file turns out to be damaged.
    """

    unreadable: Tensor = field(init=False, repr=False)  # bool [len], shared with processes that load data

    def __post_init__(self) -> None:
        self.unreadable = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        while True:
            chosen = [self._stand_in(int(index)) for index in indices]
            try:
                return self.examples.__getitems__(chosen)
            except MmfastError:
                if not self._mark(chosen):
                    raise

    def _stand_in(self, index: int) -> int:
        """The example itself, or the next that is not known to be unreadable. Raises MmfastError where none is left."""
        if not self.unreadable[index]:
            return index
        for place in (*range(index + 1, len(self)), *range(index)):
            if not self.unreadable[place]:
                return place
        raise MmfastError(
            f"data: no example can be read, and nothing is left to train on; one says {self.reason(index)}"
        )

    def _mark(self, places: Sequence[int]) -> bool:
        """Note which of these cannot be read, and say so once; whether there are any."""
        reasons = {place: reason for place in places if (reason := self.reason(place))}
        for place, reason in reasons.items():
            if not self.unreadable[place]:
                self.unreadable[place] = True
                notice(f"{reason}; it is left out (data.on_error: skip), and the next example takes its place")
        return bool(reasons)

    def reason(self, place: int) -> str:
        """Why an example cannot be read; empty where it can."""
        try:
            self.examples.__getitems__([place])
        except MmfastError as error:
            return str(error)
        return ""
