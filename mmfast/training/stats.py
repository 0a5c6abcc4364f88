"""The lines of stats.jsonl: kept on the device, and read and written only every so many steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmfast.config import Config
from mmfast.errors import MmfastError, notice
from mmfast.run import Run
from mmfast.stats_lines import stats_lines

# How many characters of stats.jsonl a checkpoint keeps: about a thousand lines.
RECENT = 2**18
# The number of steps in which at most `train.max_skipped` may be skipped.
WINDOW = 100

Line = dict[str, Any]


class Stats:
    """The statistics of every step. `recent`: the end of stats.jsonl; `skipped`: how many steps were skipped so far."""

    def __init__(self, config: Config, run: Run, writes: bool) -> None:
        self.config, self.run, self.writes = config, run, writes
        self.pending: list[Line] = []
        self.recent = ""
        self.skipped = 0
        self.lately: list[int] = []  # the skipped steps among the last WINDOW
        self.most: list[int] = []  # the most skipped steps in any WINDOW that ended since the last flush
        self.unwritten = ""

    def restore(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Repair stats.jsonl up to the step of a state. Only the rank that writes calls this."""
        self.recent = self.run.heal_stats(step, str(metadata.get("stats", "")))[-RECENT:]

    def taken_up(self, step: int, skipped: int, recent: str) -> None:
        """Take over what is known of the steps up to `step`, on all ranks."""
        self.skipped, self.recent = skipped, recent
        lines = [(n, json.loads(line)) for n, line in stats_lines(recent.encode())]
        self.lately = [n for n, line in lines if step - WINDOW < n <= step and line.get("skipped") is True]
        self.most = self.lately

    def last(self) -> Line:
        """The last line that was written; {} if there is none."""
        lines = self.recent.splitlines()
        return json.loads(lines[-1]) if lines else {}

    def add_to_last(self, figures: Mapping[str, float]) -> None:
        """Add figures to the last step's line, which may have been written already."""
        if self.pending:
            self.pending[-1] |= figures
            return
        line = _plain({**self.last(), **figures})
        self.recent = "".join([*self.recent.splitlines(keepends=True)[:-1], json.dumps(line) + "\n"])[-RECENT:]
        if self.writes and "step" in line:
            self.run.heal_stats(line["step"], self.recent)

    def flush(self) -> list[Line]:
        """Write the lines of the steps since the last call, and return them.

        The host reads the losses only here, every so many steps, so that it seldom waits for a GPU. The lines are the
        same on all ranks. Non-finite values become null. A skipped step has "skipped": true, and a notice on stderr
        reports such steps.
        """
        if not self.pending:
            return []
        places = [(k, name) for k, line in enumerate(self.pending) for name in line if isinstance(line[name], Tensor)]
        values = torch.stack([self.pending[k][name] for k, name in places]).tolist()
        rows: list[Line] = [{**line} for line in self.pending]
        for (k, name), value in zip(places, values, strict=True):
            rows[k][name] = value
        lines = [_plain(row) for row in rows]
        self.pending = []
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self._write(text)
        self.recent = (self.recent + text)[-RECENT:]
        self._count([line["step"] for line in lines if line.get("skipped")], lines[-1]["step"])
        return lines

    def _write(self, text: str) -> None:
        """Append to the file. If that fails, keep the text for the next call, until a checkpoint calls `insist`.

        Raises MmfastError if another process writes to the file too.
        """
        if not self.writes:
            return
        self.run.check_alone()
        self.unwritten += text
        try:
            self.run.append_stats(self.unwritten)
        except MmfastError as error:
            if self.unwritten == text:
                notice(f"{error}; training goes on until the next checkpoint")
            return
        self.unwritten = ""

    def insist(self) -> None:
        """Write the lines that could not be written before. Raises MmfastError if that fails again."""
        if self.unwritten:
            self.run.append_stats(self.unwritten)
            self.unwritten = ""

    def _count(self, new: list[int], step: int) -> None:
        self.skipped += len(new)
        # The window with the most skipped steps counts, of all that end among the new ones, however rare flushes are.
        kept, first, self.most = [*self.lately, *new], 0, list[int]()
        for last, n in enumerate(kept):
            while kept[first] <= n - WINDOW:
                first += 1
            if last >= len(self.lately) and last - first >= len(self.most):
                self.most = kept[first : last + 1]
        self.lately = [n for n in kept if n > step - WINDOW]
        if new and self.writes:
            which = f"step {new[0]:,} was" if len(new) == 1 else f"{len(new):,} steps of {new[0]:,} .. {new[-1]:,} were"
            notice(f"{which} left out, with a gradient {self._why()}; {self.skipped:,} of {step:,} so far")

    def _why(self) -> str:
        above = self.config.train.skip_above
        return "that is not finite" if above is None else f"of {above:g} or more (train.skip_above), or not finite"

    def check(self) -> None:
        """Raise MmfastError if too many recent steps were skipped."""
        if len(self.most) > self.config.train.max_skipped:
            raise MmfastError(
                f"{len(self.most)} of the last {WINDOW} steps, up to step {self.most[-1]:,}, were left out, with a "
                f"gradient {self._why()}; train.max_skipped is {self.config.train.max_skipped}. The last checkpoint is "
                "kept, and stats.jsonl has the run-up. Lower train.learning_rate or train.grad_clip, or use "
                "train.precision=fp32, in a new --out"
            )


def _plain(line: Line) -> Line:
    """A line for JSON: None for non-finite values, and "skipped" only if it is true."""
    found = {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in line.items() if k != "skipped"}
    return {**found, "skipped": True} if line.get("skipped") else found
