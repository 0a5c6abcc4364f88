"""Skip examples that cannot be read: each is reported once, and another takes its place."""

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
    """Examples in which one that cannot be read is always replaced by the next one that can.

    So the number of examples and the places of all others do not change, whenever a file turns out to be damaged.
    """

    unreadable: Tensor = field(init=False, repr=False)  # bool [len], shared with data loading workers

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
        """The index itself, or the next that is not known to be unreadable. Raises MmfastError if none is left."""
        if not self.unreadable[index]:
            return index
        for place in (*range(index + 1, len(self)), *range(index)):
            if not self.unreadable[place]:
                return place
        raise MmfastError(
            f"data: no example can be read, and nothing is left to train on; one error is: {self.reason(index)}"
        )

    def _mark(self, places: Sequence[int]) -> bool:
        """Mark and report, once each, those of these examples that cannot be read; returns whether there are any."""
        reasons = {place: reason for place in places if (reason := self.reason(place))}
        for place, reason in reasons.items():
            if not self.unreadable[place]:
                self.unreadable[place] = True
                notice(f"{reason}; it is left out (data.on_error: skip), and the next example takes its place")
        return bool(reasons)

    def reason(self, place: int) -> str:
        """Why an example cannot be read; empty if it can."""
        try:
            self.examples.__getitems__([place])
        except MmfastError as error:
            return str(error)
        return ""
