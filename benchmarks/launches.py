"""Count the operations of torch that compute something: on a GPU each is one launch, or a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that only describe memory anew.
VIEWS = {
    "alias", "as_strided", "detach", "diagonal", "expand", "permute", "select", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts what is computed within a with block, in `count`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        self.count += function.overloadpacket.__name__ not in VIEWS  # type: ignore[attr-defined]
        return function(*args, **(kwargs or {}))


@contextmanager
def of_steps(optimizer: torch.optim.Optimizer) -> Iterator[Launches]:
    """Count in the optimiser's steps within the block, and in nothing else."""
    step, launches = optimizer.step, Launches()

    def watched(*args: Any) -> Any:
        with launches:
            return step(*args)

    optimizer.step = watched  # type: ignore[assignment, method-assign]
    try:
        yield launches
    finally:
        del optimizer.step  # the class's is found again
