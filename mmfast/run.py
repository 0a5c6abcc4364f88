"""A run's folder: nothing in it is ever half written, and no run writes into another's.

RUN/config.yaml          the resolved config
RUN/trainer.safetensors  all that resuming needs: weights, averages, optimiser, step (and the one before it)
RUN/model.safetensors    the weights; ema.safetensors their average: what sampling loads
RUN/stats.jsonl          a line a step; samples/*.png, tensorboard/, metrics.json
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

import torch
from torch import Tensor

from mmfast import config as configs
from mmfast.config import Config
from mmfast.errors import MmfastError
from mmfast.files import TEMPORARY, load_into, load_tensors, save_tensors, write_text

LOCK = ".lock"
STATE, PREVIOUS = "trainer.safetensors", "trainer.previous.safetensors"


@dataclass
class Run:
    """The folder of one run."""

    folder: Path
    lock: Any = field(default=None, compare=False, repr=False)

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def stats_file(self) -> Path:
        return self.folder / "stats.jsonl"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @classmethod
    def start(cls, folder: str | Path, config: Config) -> Run:
        """Make a run's folder, or take up the run that is in it if its config is the same.

        Raises MmfastError for another config, a folder with other things in it, or one that cannot be written.
        """
        run = cls(Path(folder))
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            run.samples.parent.stat()
        except OSError as error:
            raise MmfastError(f"--out {folder} cannot be made: {error.strerror}; choose another folder") from None
        if not os.access(run.folder, os.W_OK | os.X_OK):
            raise MmfastError(f"--out {folder} cannot be written to; choose another folder")
        if run.config_file.exists():
            changed = configs.differences(run.config(), config)
            if changed:
                raise MmfastError(
                    f"--out {folder} holds a run with another config ({'; '.join(changed[:4])}"
                    f"{'; ...' if len(changed) > 4 else ''}); nothing was changed: choose another --out, or repeat the "
                    "command that made the run to go on with it"
                )
        else:
            others = [file.name for file in run.folder.iterdir() if not file.name.startswith((TEMPORARY, LOCK))]
            if others:
                raise MmfastError(
                    f"--out {folder} holds files that are no run ({', '.join(sorted(others)[:3])}); choose a new folder"
                )
        run.guard(run._take_lock)
        if not run.config_file.exists():
            run.guard(lambda: write_text(run.config_file, configs.to_yaml(config)))
        run.guard(lambda: run.samples.mkdir(exist_ok=True))
        for file in run.folder.rglob(f"{TEMPORARY}*"):  # half-written when a process was killed
            file.unlink(missing_ok=True)
        return run

    def _take_lock(self) -> None:
        """Keep other processes out of the folder until this one ends, however it ends."""
        if fcntl is None:
            return
        self.lock = open(self.folder / LOCK, "w")  # noqa: SIM115
        try:
            # A record lock: it ends with this process, and processes that load data do not inherit it.
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise MmfastError(
                f"--out {self.folder} is being trained by another process; wait for it, or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run that exists. Raises MmfastError where there is none."""
        run = cls(Path(folder))
        if not run.config_file.exists():
            raise MmfastError(f"{folder} holds no run (no config.yaml); `mmfast train PRESET --out {folder}` makes one")
        return run

    def config(self) -> Config:
        """The run's config, as it was resolved when the run began."""
        return configs.load(str(self.config_file))

    def guard(self, write: Callable[[], object]) -> None:
        """Do a write, and turn the system's refusal into an error that says what to do."""
        try:
            write()
        except OSError as error:
            raise MmfastError(
                f"{self.folder} cannot be written to: {error.strerror}; make room or permit it, then repeat the command"
            ) from None

    def save_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Keep the trainer's state, and the one before it."""
        current, previous = self.folder / STATE, self.folder / PREVIOUS
        if current.exists():
            self.guard(lambda: os.replace(current, previous))
        self.guard(lambda: save_tensors(current, tensors, metadata))

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole state; None for a run that has none yet.

        Raises MmfastError for a damaged one, saying how to go on from the one before it.
        """
        current, previous = self.folder / STATE, self.folder / PREVIOUS
        if not current.exists():
            # Killed between the two renames of save_state.
            return load_tensors(previous) if previous.exists() else None
        try:
            return load_tensors(current)
        except MmfastError as error:
            older = f"go on from the checkpoint before it, {PREVIOUS}" if previous.exists() else "start again"
            raise MmfastError(f"{error}; nothing was changed: move it away and repeat the command to {older}") from None

    def load_weights(self, model: torch.nn.Module, ema: bool = True) -> None:
        """Fill a model from ema.safetensors (or model.safetensors)."""
        path = self.folder / ("ema.safetensors" if ema else "model.safetensors")
        try:
            tensors, _ = load_tensors(path)
        except MmfastError as error:
            raise MmfastError(f"{error}; the `mmfast train` command of the run, repeated, writes it again") from None
        load_into(model, tensors, path)

    def keep_stats_until(self, step: int) -> None:
        """Drop the lines of stats.jsonl after a step: they are about to be made again."""
        if not self.stats_file.exists():
            return
        kept = [line for line, stats in _lines(self.stats_file) if stats["step"] <= step]
        self.guard(lambda: write_text(self.stats_file, "".join(kept)))

    def append_stats(self, lines: list[dict[str, Any]]) -> None:
        def write() -> None:
            with open(self.stats_file, "a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))

        self.guard(write)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines of a stats file; a kill may have cut the last one short."""
    for line in path.read_text().splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            stats = json.loads(line)
            if line.endswith("\n") and "step" in stats:
                yield line, stats
