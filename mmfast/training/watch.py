"""What training shows the user: progress, losses and, after the first steps, an estimate of the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from mmfast import memory
from mmfast.config import Config
from mmfast.errors import say
from mmfast.progress import Bar, duration
from mmfast.words import plural

# Seconds, and at least two steps, before the estimate. The first step does not count, because it may compile.
TIMED = 2.0


class Watch(Bar):
    """The progress bar of training, or plain lines: one every `train.log_every` steps, at most a thousand."""

    def __init__(self, config: Config, done: int, device: torch.device, quiet: bool) -> None:
        super().__init__(
            config.train.steps, "training", done=done, quiet=quiet, leave=True, examples=config.train.batch_size
        )
        self.device = device
        self.first: float | None = None  # when the first step had ended
        self.told = quiet
        self.validated = ""

    def update(self, units: int = 1) -> None:
        """Count a finished step."""
        super().update(units)
        now = time.monotonic()
        if self.first is None:
            self.first = now
        steps = self.done - self.begun_at - 1
        if not self.told and steps >= 2 and now - self.first >= TIMED:
            self.told = True
            self._tell((now - self.first) / steps)

    def _tell(self, seconds: float) -> None:
        left = self.total - self.done
        peak = memory.peak(self.device)
        kind = "GPU memory" if self.device.type == "cuda" else "memory"
        used = "" if peak is None else f"; {peak / 2**30:.2g} GiB of {kind} at the peak so far"
        takes = f"about {duration(left * seconds)}".replace("about less", "less")
        say(f"{seconds:.3g} s a step: {takes} for the {plural(left, 'step')} left{used}")

    def measured(self, loss: float) -> None:
        """Set the loss on held-out examples, which is shown from here on."""
        self.validated = _short(loss)

    def figures(self, line: Mapping[str, Any]) -> None:
        """Show the losses in a line of the stats, and the last loss on held-out examples."""
        parts = {name.removeprefix("loss."): _short(x) for name, x in line.items() if name.startswith("loss")}
        self.show({**parts, **({"validation": self.validated} if self.validated else {})})


def _short(x: float | None) -> str:
    return "not finite" if x is None or not math.isfinite(x) else f"{x:.3f}"
