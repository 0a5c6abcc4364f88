"""A run's folder: nothing in it is ever half written, and no run writes into another's.

RUN/config.yaml          the resolved config
RUN/trainer.safetensors  all that resuming needs: weights, averages, optimiser, step (trainer.previous: the one before)
                         trainer.damaged.safetensors: a state that was found damaged, for you to remove
RUN/model.safetensors    the weights; ema.safetensors: their average, which sampling loads
                         ema.best.safetensors: the average that was best on held-out examples
RUN/states/              the state of every n-th step, if train.keep_every asks for them
RUN/stats.jsonl          one line per step; also samples/*.png, tensorboard/, metrics.json
RUN/data.json            a record of the data; from.json: the run whose weights it started from (train's --from)
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfast import config as configs
from mmfast import lock, run_checks
from mmfast.config import Config
from mmfast.errors import MmfastError, notice, unknown
from mmfast.files import (
    append_text,
    check_regular,
    is_temporary,
    load_into,
    load_tensors,
    save_tensors,
    sync,
    write_atomically,
    write_text,
)
from mmfast.lock import Lock
from mmfast.stats_lines import healed

LOCK, TENSORBOARD = ".lock", "tensorboard"
LAST, BEST = "ema.safetensors", "ema.best.safetensors"
# What sampling and evaluation may load, by the name of the option.
WEIGHTS = {"last": LAST, "best": BEST}
# The options on which the figures of metrics.json depend, apart from the weights.
MEASURED = re.compile(r"evaluate\.|sample\.(?!count|batch_size)|modalities\.[^.]*\.given_steps")
RECORD, START = "data.json", "from.json"
STATE, PREVIOUS, DAMAGED = "trainer.safetensors", "trainer.previous.safetensors", "trainer.damaged.safetensors"
# Of which each run has some, unlike a folder with a config.yaml of the user's.
OWN = (LOCK, RECORD, STATE, PREVIOUS, LAST, "stats.jsonl")

# A trainer's state, and a check that raises MmfastError for a state (from a file) that cannot be resumed from.
State = tuple[dict[str, Tensor], dict[str, Any]]
Check = Callable[[dict[str, Tensor], dict[str, Any], Path], None]


class NotAlone(MmfastError):
    """Another process writes to the run, so this one saves nothing more."""


@dataclass
class Run:
    """The folder of one run."""

    folder: Path
    damaged: bool = field(default=False, compare=False, repr=False)  # whether load_state found the newest state damaged
    lock: Lock | None = field(default=None, compare=False, repr=False)
    stats_size: int | None = field(default=None, compare=False, repr=False)  # in bytes, as this process left it

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def stats_file(self) -> Path:
        return self.folder / "stats.jsonl"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def states(self) -> Path:
        return self.folder / "states"

    def kept(self, step: int) -> Path:
        """The file of a step's state, if that is kept for good."""
        return self.states / f"step-{step:07d}.safetensors"

    @property
    def exists(self) -> bool:
        """Whether the folder is a run's, not one in which somebody keeps a config.yaml."""
        return self.config_file.exists() and any((self.folder / name).exists() for name in OWN)

    @property
    def begun(self) -> bool:
        """Whether it has a state to resume from."""
        return any((self.folder / name).exists() for name in (STATE, PREVIOUS))

    @classmethod
    def start(cls, folder: str | Path, config: Config, accept: Callable[[Run], object] = lambda run: None) -> Run:
        """Create a run's folder, or resume the run in it if no option that affects what it learns has changed.

        Other changes (`config.FREE`) are written to its config.yaml; figures of fewer steps are kept in a file named by
        their number. accept: raises MmfastError if the run cannot be resumed for another reason, before anything is
        changed. Raises MmfastError for another config, a folder with other files in it, or one that cannot be written.
        """
        text, run = configs.to_yaml(config), cls(Path(folder))
        run_checks.check_size(text)
        run_checks.make_folder(run.folder)
        changed, before = dict[str, str](), None
        if run.exists:
            before = run.config()
            changed = run_checks.changes(run.folder, before, config, recorded=(run.folder / RECORD).exists())
        else:
            run_checks.check_empty(run.folder, own=(LOCK, START))
        run._check_links()
        run.guard(run._take_lock)
        accept(run)
        if changed:
            notice(f"{folder}: resuming with {', '.join(f'{key} {values}' for key, values in changed.items())}")
            if before is not None and "train.steps" in changed and run.metrics_file.exists():
                kept = run.folder / f"metrics.step-{before.train.steps:07d}.json"
                run.guard(lambda: os.replace(run.metrics_file, kept))
            elif any(map(MEASURED.match, changed)) and run.metrics_file.exists():
                notice(
                    f"{run.metrics_file} has the figures of the previous options; for those of the new ones, use "
                    f"`mmfast eval {folder}`, or remove it and repeat the command"
                )
        if before != config:  # they also differ if a path has another form
            run.guard(lambda: write_text(run.config_file, text))
        run.guard(lambda: run.samples.mkdir(exist_ok=True))
        for folder in (run.folder, run.samples, run.states):  # half-written when a process was killed
            for file in filter(is_temporary, folder.iterdir() if folder.is_dir() else ()):
                file.unlink(missing_ok=True)
        return run

    def set_aside(self, number: int) -> None:
        """Rename what was measured on other data: the figures, and the average that was the best on it.

        As metrics.data-0.json, for example, with this number or the next one that is free.
        """
        files = [file for file in (self.metrics_file, self.folder / BEST) if file.exists()]
        names = ([f.with_suffix(f".data-{n}{f.suffix}") for f in files] for n in itertools.count(number))
        free = next(places for places in names if not any(place.exists() for place in places))
        for file, place in zip(files, free, strict=True):
            os.replace(file, place)

    @property
    def best_of_other_data(self) -> list[Path]:
        """The averages that were the best on data that has changed since."""
        found = self.folder.glob(f"{Path(BEST).stem}.data-*{Path(BEST).suffix}")
        return sorted(found, key=lambda file: (len(file.name), file.name))  # by number

    def _check_links(self) -> None:
        """Raise MmfastError for a link where a run writes in place. Its other writes replace a link."""
        for name in (LOCK, self.stats_file.name, self.samples.name, self.states.name, TENSORBOARD):
            if (self.folder / name).is_symlink():
                raise MmfastError(
                    f"{self.folder / name} is a link, and a run writes through none; remove it, or choose another --out"
                )

    def _take_lock(self) -> None:
        """Keep other processes out of the folder until this object or this process ends, however it ends."""
        try:
            self.lock = lock.take(self.folder / LOCK)
        except BlockingIOError:
            raise MmfastError(
                f"--out {self.folder} is being trained by another process; wait for it, or stop it"
            ) from None

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open an existing run. Raises MmfastError if there is none."""
        run = cls(Path(folder))
        if not os.path.exists(run.config_file):  # unlike Path's, false for a name that is too long
            raise MmfastError(f"{folder} holds no run (no config.yaml); `mmfast train PRESET --out {folder}` makes one")
        return run

    def config(self) -> Config:
        """The run's config, as it was resolved when the run began (`mmfast.config.load_again`)."""
        return configs.load_again(str(self.config_file))

    def guard(self, write: Callable[[], object]) -> None:
        """Call `write`, and turn an OSError into an error that says what to do."""
        try:
            write()
        except OSError as error:
            raise MmfastError(
                f"{self.folder} cannot be written to: {error.strerror}; make room or permit it, then repeat the command"
            ) from None

    def save_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], keep: int | None = None) -> None:
        """Save the trainer's state and keep the one before it; a damaged one never replaces an intact one.

        The stats are on the disk before the state that follows them. keep: the state's step, to keep it for good too,
        as states/step-0001000.safetensors. That file is written first: a run that is killed between the two resumes
        from the state before and writes both again.
        """
        self.check_alone()
        current, kept = self.folder / STATE, self.kept(keep or 0)

        def write() -> None:
            if self.stats_file.exists():
                sync(self.stats_file)
            if keep is not None:
                kept.parent.mkdir(exist_ok=True)
                save_tensors(kept, tensors, metadata)
            if current.exists():
                os.replace(current, self.folder / (DAMAGED if self.damaged else PREVIOUS))
            self.damaged = False
            if keep is None:
                save_tensors(current, tensors, metadata)
            else:  # not a link: if a kept state is put in the newest one's place, that file may be written to
                write_atomically(current, lambda temporary: shutil.copyfile(kept, temporary))

        self.guard(write)

    def save(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Write tensors to a file of the run."""
        self.check_alone()
        self.guard(lambda: save_tensors(self.folder / name, tensors, metadata))

    def best(self, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a state's metadata records of the best average, if that is intact; otherwise None, with a notice."""
        known = metadata.get("best")
        if not isinstance(known, dict) or [type(known.get(x)) for x in ("step", "loss")] != [int, float]:
            return None
        if not (self.folder / BEST).exists() and self.best_of_other_data:
            return None
        try:
            _, written = load_tensors(self.folder / BEST)
        except MmfastError as error:
            notice(f"{error}; the best average from here on replaces it")
            return None
        # Otherwise it has been replaced by one of a later step, which is about to be repeated.
        return known if written.get("step") == known["step"] else None

    def load_state(self, check: Check = lambda tensors, metadata, path: None) -> State | None:
        """Load the newest state that is intact and passes the check; None for a run that has none yet.

        A notice reports a newer one that does not. Raises MmfastError if none does.
        """
        errors = []
        for path in (self.folder / STATE, self.folder / PREVIOUS):
            if not path.exists():  # the current one, if killed between the two renames of save_state
                continue
            try:
                tensors, metadata = load_tensors(path)
                check(tensors, metadata, path)
            except MmfastError as error:
                errors.append(str(error))
                continue
            if errors:
                self.damaged = True
                notice(
                    f"{errors[0]}; resuming from the state before it, {path.name}, of step {metadata.get('step')}; the "
                    f"other will be renamed {DAMAGED}"
                )
            return tensors, metadata
        if errors:
            raise MmfastError(
                f"{'; '.join(errors)}; there is no other state: repeat the command with a new "
                f"--out, or remove {self.folder}/trainer*.safetensors to start again in this one"
            )
        return None

    def load_weights(self, model: torch.nn.Module, which: str = "last") -> dict[str, Any]:
        """Fill a model with averaged weights: the last, or those that were the best on held-out examples.

        Returns their metadata. Raises MmfastError if they are missing or damaged.
        """
        if which not in WEIGHTS:
            raise unknown("weights", which, WEIGHTS)
        path = self.folder / WEIGHTS[which]
        if which == "best" and not path.exists():
            why, others = "no step of train.validate_every was reached, or it is 0", self.best_of_other_data
            if others:
                why = f"none has been measured since the data changed ({others[-1].name} was the best before)"
            raise MmfastError(f"{self.folder} has no best weights, {path.name}: {why}; use the last")
        try:
            tensors, metadata = load_tensors(path)
            load_into(model, tensors, path)
        except MmfastError as error:
            if which == "best":
                raise MmfastError(f"{error}; use the last weights") from None
            raise MmfastError(f"{error}; repeat the run's `mmfast train` command to write it again") from None
        return metadata

    def heal_stats(self, step: int, recent: str = "") -> str:
        """Leave one line for each of the steps 1 .. step in stats.jsonl. Returns its text.

        recent: known lines, which replace those in the file. Lines of later steps are dropped, because those are about
        to be repeated. A notice reports steps without a line, or with two different ones.
        """
        try:
            before = b""
            if self.stats_file.exists():
                check_regular(self.stats_file)
                before = self.stats_file.read_bytes()  # of any length, so that a run of many steps can resume
            text, found = healed(before, step, recent)
            written = text.encode()
        except OSError as error:
            raise MmfastError(f"{self.stats_file} cannot be read: {error.strerror}; allow reading it") from None
        except MemoryError:
            size = self.stats_file.stat().st_size
            raise MmfastError(
                f"{self.stats_file} cannot be read: the memory has no room for its {size:,} bytes; make room, and "
                "repeat the command"
            ) from None
        if found:
            notice(f"{self.stats_file} was damaged: there is {', and '.join(found)}; training itself is not affected")
        if written != before:
            self.guard(lambda: write_text(self.stats_file, text))
        self.stats_size = len(written)
        return text

    def append_stats(self, text: str) -> None:
        size = self.stats_file.stat().st_size if self.stats_file.exists() else 0
        self.guard(lambda: append_text(self.stats_file, text))
        self.stats_size = size + len(text.encode())

    def check_alone(self) -> None:
        """Raise NotAlone if there is no lock, and stats.jsonl is not as this process left it."""
        if self.lock is None and self.stats_size is not None and self.stats_file.exists():
            size = self.stats_file.stat().st_size
            if size != self.stats_size:
                raise NotAlone(
                    f"{self.stats_file} has {size:,} bytes; it should have {self.stats_size:,}, as this process left "
                    "it: another one trains in this folder, whose file system has no locks. This one stops, and saves "
                    "nothing more; when no other is left, repeat the command to resume"
                )
