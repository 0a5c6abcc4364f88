"""Logs in addition to stats.jsonl: TensorBoard, W&B, or your own. A log that fails is dropped; it never ends a run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mmfast.config import Config
from mmfast.errors import MmfastError, missing_extra, notice, unknown
from mmfast.files import read_text, write_text
from mmfast.run import TENSORBOARD
from mmfast.trust import imported

# The prefix of TensorBoard's file names.
PREFIX = "events.out.tfevents."


class Writer(Protocol):
    """The interface of a log: the part of torch's SummaryWriter that mmfast calls."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...

    def add_image(self, tag: str, picture: np.ndarray, step: int, *, dataformats: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """torch's SummaryWriter, resumed after a step: what was logged past it is purged."""

    def __init__(self, folder: Path, config: Config, done: int) -> None:
        # TensorBoard imports TensorFlow if it is installed; silence its start-up messages.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder / TENSORBOARD
        threads = {*threading.enumerate()}
        before = _files(self.folder)
        self.writer: Any = SummaryWriter(str(self.folder), purge_step=done + 1)
        self.hook = _without_tracebacks({*threading.enumerate()} - threads)
        _name_first(before, _files(self.folder))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.writer.add_scalar(tag, value, step)

    def add_image(self, tag: str, picture: np.ndarray, step: int, *, dataformats: str) -> None:
        self.writer.add_image(tag, picture, step, dataformats=dataformats)

    def flush(self) -> None:
        if not self.folder.is_dir():  # some file systems accept writes to a deleted file
            raise FileNotFoundError(f"{self.folder} is gone")
        self.writer.flush()

    def close(self) -> None:
        try:
            self.writer.close()
        finally:
            if threading.excepthook is self.hook[1]:
                threading.excepthook = self.hook[0]


def _without_tracebacks(threads: set[threading.Thread]) -> tuple[Any, Any]:
    """Silence exceptions in these threads, since their errors reach the caller. Returns the previous and new hooks."""
    before = threading.excepthook

    def hook(found: Any) -> None:
        if found.thread not in threads:
            before(found)

    threading.excepthook = hook
    return before, hook


def _files(folder: Path) -> set[Path]:
    return {*folder.glob(f"{PREFIX}*")}


def _name_first(before: set[Path], after: set[Path]) -> None:
    """Rename older event files so that they sort before the new one.

    TensorBoard reads event files by name, and names begin with the time. If the clock was set back, the file that
    purges steps would sort before the files whose steps it purges. The new file is open, so the old ones are renamed.
    """
    bound = min((_time(file) for file in after - before), default=0)
    for file in sorted(before, reverse=True):
        time, rest = _time(file), file.name.removeprefix(PREFIX).partition(".")[2]
        if time >= bound > 0:
            time = bound - 1
            os.replace(file, file.with_name(f"{PREFIX}{time:010d}.{rest}"))
        bound = time


def _time(file: Path) -> int:
    text = file.name.removeprefix(PREFIX).partition(".")[0]
    return int(text) if text.isdecimal() and len(text) <= 12 else 0


class WandB:
    """A run of Weights & Biases, named after the run's folder and resumed by the ID stored there."""

    def __init__(self, folder: Path, config: Config, done: int) -> None:
        import wandb

        self.wandb, name = wandb, folder.resolve().name
        kept = folder / "wandb.id"
        if not os.path.lexists(kept):  # two runs may have folders of the same name
            plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:48]
            write_text(kept, f"{plain}-{secrets.token_hex(4)}\n")
        identity = "" if kept.is_symlink() else read_text(kept, 100).strip()
        if not re.fullmatch(r"[\w-]{1,64}", identity):
            raise MmfastError(f"{kept} does not hold a run's ID; remove it")
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mmfast"),
            name=name,
            id=identity,
            dir=str(folder),
            config=dataclasses.asdict(config),
            resume="allow",
        )

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.run.log({tag: value}, step=step)

    def add_image(self, tag: str, picture: np.ndarray, step: int, *, dataformats: str) -> None:
        self.run.log({tag: self.wandb.Image(picture)}, step=step)

    def flush(self) -> None:
        """Do nothing: wandb sends by itself."""

    def close(self) -> None:
        self.run.finish()


# By name in train.log_to; each is constructed from the run's folder, its config and the number of steps done.
LOGS: dict[str, Callable[[Path, Config, int], Writer]] = {"tensorboard": TensorBoard, "wandb": WandB}


def named(config: Config) -> list[str]:
    """The logs that a config asks for."""
    usual = ["tensorboard"] if config.train.tensorboard else []
    return list(dict.fromkeys([*usual, *config.train.log_to]))


def check_logs(config: Config) -> None:
    """Raise MmfastError for a log that does not exist, is not installed, or is code that the user has not allowed."""
    for name in config.train.log_to:
        if ":" in name:
            if not callable(imported("train.log_to", name)):
                raise MmfastError(f"train.log_to is {name!r}, which is not callable; it should make a log's writer")
        elif name not in LOGS:
            raise unknown("train.log_to", name, [*LOGS, "module:function"])
        elif importlib.util.find_spec(name) is None:  # each has the name of its package
            raise missing_extra(name, name, f"train.log_to: [{name}]")


def _made(name: str, folder: Path, config: Config, done: int) -> Writer:
    if ":" not in name:
        return LOGS[name](folder, config, done)
    found: Writer = imported("train.log_to", name)(log_dir=str(folder / "log"), purge_step=done + 1)
    return found


class Board:
    """All logs of a run, from a step on. One that raises is dropped with a notice."""

    def __init__(self, folder: Path, config: Config, done: int, silent: bool) -> None:
        self.writers: dict[str, Writer] = {}
        if silent:
            return
        for name in named(config):
            missing = name == "tensorboard" and importlib.util.find_spec(name) is None  # TensorBoard is optional
            if not missing and (writer := self._guarded(name, functools.partial(_made, name, folder, config, done))):
                self.writers[name] = writer

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Log lines of stats.jsonl."""

        def write(writer: Writer) -> None:
            for line in lines:
                for name, value in line.items():
                    if name not in ("step", "images") and value is not None:
                        writer.add_scalar(name.replace(".", "/"), value, line["step"])
            writer.flush()

        self._each(write)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        pixels = np.asarray(picture)
        self._each(lambda writer: writer.add_image(name, pixels, step, dataformats="HWC"))

    def close(self) -> None:
        self._each(lambda writer: writer.close())
        self.writers = {}

    def _each(self, write: Callable[[Writer], None]) -> None:
        for name, writer in [*self.writers.items()]:
            self._guarded(name, functools.partial(write, writer))

    def _guarded(self, name: str, work: Callable[[], Any]) -> Any:
        """Return what `work` returns. If it raises, drop the log and return None."""
        try:
            return work()
        except Exception as error:
            reason = " ".join((str(error) or type(error).__name__).split())[:200]
            notice(f"the log {name} cannot be written: {reason}; training goes on without it; stats.jsonl has it all")
            writer = self.writers.pop(name, None)
            if writer is not None:
                with contextlib.suppress(Exception):  # the notice has already been given
                    writer.close()
            return None
