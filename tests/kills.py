"""python -m tests.kills [--runs 100] [--seed 0]: runs that are killed with SIGKILL end as the run that was not.

A run is killed one to three times, each time within one part of training (start, a checkpoint, its export, sampling,
evaluation) before a line of the package drawn from those that the part takes, or at a moment of the clock. The same
command, repeated, then has to end with the same weights, state, kept states, stats, pictures and metrics, bit for bit.
The runs are in turn of images and of a table, whose samples have overviews.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child could use no more
sys.path[:0] = [str(Path(__file__).parent / "support")]

import torch  # noqa: E402
from small_run import COMMAND, assert_same, kept  # noqa: E402
from tiny import flags  # noqa: E402

import mmfast  # noqa: E402
from mmfast.cli import main  # noqa: E402
from mmfast.run import Run  # noqa: E402
from mmfast.training import loop, trainer  # noqa: E402

MORE = [("evaluate.samples", "4"), ("evaluate.bound_steps", "1"), ("sample.count", "1"), ("train.keep_every", "2")]
# With how many pictures a run of each has: a table's have overviews beside them.
PRESETS = {"digits": 12, "table": 15}
WORDS = {preset: [preset if word == "digits" else word for word in [*COMMAND, *flags(MORE)]] for preset in PRESETS}
# The parts of training, each by where its function is looked up.
PARTS: dict[str, tuple[Any, str]] = {
    "start": (Run, "start"),
    "checkpoint": (Run, "save_state"),
    "export": (trainer.Trainer, "export"),
    "step": (trainer.Trainer, "step"),
    "sampling": (loop, "sample_run"),
    "evaluation": (loop, "evaluate_run"),
}
CLOCK = "the clock"
SOURCES = str(Path(mmfast.__file__).parent)


class Lines:
    """Counts the lines of the package that run within a part, and calls `then` before one of them."""

    def __init__(self, part: str, at: int, then: Callable[[], object]) -> None:
        self.count, self.at, self.then = 0, at, then
        owner, name = PARTS[part]
        self.work = getattr(owner, name)
        setattr(owner, name, classmethod(lambda cls, *args: self._run(*args)) if part == "start" else self._method())

    def _method(self) -> Any:
        return lambda *args, **named: self._run(*args, **named)

    def _run(self, *args: Any, **named: Any) -> Any:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return self.work(*args, **named)
        finally:
            sys.settrace(before)

    def _enter(self, frame: Any, event: str, arg: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(SOURCES) else None

    def _line(self, frame: Any, event: str, arg: object) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.at:
                self.then()
        return self._line


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], object]) -> int:
    """Do it in a process of its own: its exit status, or -9 where it was killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                code = int(work() or 0)  # type: ignore[call-overload]
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except KeyboardInterrupt:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


class Kills:
    """An uninterrupted run of a preset, and others that are killed and compared with it."""

    def __init__(self, folder: Path, preset: str) -> None:
        self.preset, self.words, self.folder = preset, WORDS[preset], folder / preset
        self.folder.mkdir()
        self.straight = self.folder / "straight"
        # Here, so that the children find all imported and made that takes long.
        assert self.train(self.straight) == 0

    def train(self, run: Path) -> int:
        return main([*self.words, "--out", str(run)])

    @functools.cached_property
    def seconds(self) -> float:
        began = time.monotonic()
        assert in_child(lambda: self.train(self.folder / "timed")) == 0
        return time.monotonic() - began

    @functools.cached_property
    def lines(self) -> dict[str, int]:
        return {part: self.count_lines(part) for part in PARTS}

    def count_lines(self, part: str) -> int:
        """The lines that a part of an uninterrupted run takes."""
        seen = self.folder / f"{part}.lines"

        def work() -> int:
            lines = Lines(part, 0, kill)
            status = self.train(self.folder / f"{part}.run")
            seen.write_text(str(lines.count))
            return status

        assert in_child(work) == 0
        return int(seen.read_text())

    def run(self, rng: random.Random, run: Path) -> list[str]:
        """Train a run in spite of its kills, and compare: the kills that came. Raises AssertionError."""
        kills, seconds, lines = [], self.seconds, self.lines
        for _ in range(rng.choice([1, 2, 3])):
            part = rng.choice([*PARTS, CLOCK])
            # A run that goes on takes fewer lines: half of the moments lie early.
            at = rng.random() ** 2

            def work(part: str = part, at: float = at) -> int:
                if part == CLOCK:
                    timer = threading.Timer(at * seconds, kill)
                    timer.daemon = True
                    timer.start()
                else:
                    Lines(part, 1 + int(at * lines[part]), kill)
                return self.train(run)

            status = in_child(work)
            assert status in (0, -signal.SIGKILL), f"status {status} after {kills}"
            if status:
                kills.append(part)
        status = in_child(lambda: self.train(run))
        assert status == 0, f"status {status} after {kills}"
        try:
            self.compare(run)
        except (AssertionError, OSError, ValueError) as error:
            raise AssertionError(f"after kills in {kills}: {error}") from None
        return kills

    def compare(self, run: Path) -> None:
        assert len(kept(self.straight)) == 3
        assert_same(run, self.straight, PRESETS[self.preset])
        metrics = [(x / "metrics.json").read_bytes() for x in (run, self.straight)]
        assert metrics[0] == metrics[1], "metrics.json"
        left = [p.name for p in run.rglob("*") if p.name.startswith(".tmp-")]
        assert not left, f"left half-written: {left}"


def program() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="[100]")
    parser.add_argument("--seed", type=int, default=0, help="of the kills [0]")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="begin at this run [0]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    total, failed = Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        of = [Kills(Path(folder), preset) for preset in PRESETS]
        done = 0
        with contextlib.suppress(KeyboardInterrupt):  # what there is so far is told
            for k in range(args.first, args.first + args.runs):
                try:
                    total.update(of[k % len(of)].run(random.Random(f"{args.seed} {k}"), Path(folder) / f"run-{k}"))
                except AssertionError as error:
                    failed.append(k)
                    print(f"run {k}: {error}", flush=True)
                done += 1
    print(f"{'killed in':<12} kills")
    for part, count in total.most_common():
        print(f"{part:<12} {count:>5}")
    equal = done - len(failed)
    print(f"{done} runs, {sum(total.values())} kills: {equal} ended equal to the uninterrupted run")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(program())
