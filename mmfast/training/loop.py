"""The training loop: run from the first step, or from where a run stopped, to the last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from mmfast.build import build_data, check_beside_data, files_of, pick_device, stored, with_found
from mmfast.config import Config, by_key
from mmfast.data import Data
from mmfast.errors import MmfastError, notice, say
from mmfast.evaluate import evaluate_run
from mmfast.files import write_text
from mmfast.from_run import check_start, moved_on, record_start, recorded_start, take_weights
from mmfast.grids import Gallery, directions, sample_run
from mmfast.progress import silenced
from mmfast.ranks import joined
from mmfast.run import RECORD, NotAlone, Run
from mmfast.signals import interrupt
from mmfast.training.advice import slow_here, without_effect
from mmfast.training.examples import loader
from mmfast.training.latents import with_latents
from mmfast.training.log import Board
from mmfast.training.objective import Losses, losses
from mmfast.training.record import Record, changes, load, of_examples, of_files
from mmfast.training.stop import Stop
from mmfast.training.trainer import Trainer
from mmfast.training.try_out import rehearse
from mmfast.training.watch import Watch
from mmfast.words import plural


class Kept:
    """The record of a run's data: compare it with the stored one, then replace that."""

    def __init__(self, config: Config, data: Data, files: Mapping[str, Path], allowed: bool, quiet: bool) -> None:
        self.config, self.data, self.files, self.allowed, self.quiet = config, data, files, allowed, quiet
        self.before: Record | None = None
        self.now = Record()
        self.changed: list[str] = []

    def compare(self, run: Run) -> None:
        """Raise MmfastError if the data has changed since the run began, unless that is allowed."""
        self.before = load(run.folder / RECORD)
        if self.files:
            self.now = of_files(self.files, self.before, self.quiet)
        else:
            self.now = of_examples(self.data, stored(self.config))
        self.changed = changes(self.before, self.now) if self.before else []
        if self.changed and not self.allowed:
            raise MmfastError(
                f"the data has changed since the run in --out {run.folder} began: {'; '.join(self.changed)}. Nothing "
                "was done: restore it, choose another --out, or add --allow-changed-data to continue with the current "
                "data"
            )

    def write(self, run: Run, step: int) -> None:
        """Store the record, with a line about the changes that were allowed."""
        self.now.allowed = list(self.before.allowed) if self.before else []
        if self.changed:
            notice(f"{run.folder}: going on with changed data: {'; '.join(self.changed)}")
            run.guard(lambda: run.set_aside(len(self.now.allowed)))
            self.now.allowed.append(f"after step {step}: {'; '.join(self.changed)}")
        if self.now != self.before:
            run.guard(lambda: write_text(run.folder / RECORD, self.now.to_json()))


def fit(
    config: Config,
    out: str,
    data: Data,
    losses: Losses = losses,
    quiet: bool = False,
    *,
    files: Mapping[str, Path] | None = None,
    allow_changed_data: bool = False,
    start: str | None = None,
) -> Trainer:
    """Train the model of a config with any loss into the folder `out`, or resume the run that is there.

    files: the data's files by name. A run records them, and resumes with changed ones only if allow_changed_data is
    set. Without files it records some of the examples. start: the folder of a run whose weights this one starts from
    (`mmfast.from_run.take_weights`); a resumed run ignores it.

    Returns the trainer, with its run, its model and the average of the model. Raises MmfastError for bad input, before
    anything is changed. Under torchrun all ranks call this together.
    """
    trainer = _fitted(config, out, data, losses, quiet, files or {}, allow_changed_data, start)
    trainer.board.close()
    return trainer


def _fitted(
    config: Config,
    out: str,
    data: Data,
    losses: Losses,
    quiet: bool,
    files: Mapping[str, Path],
    allow_changed_data: bool,
    start: str | None,
) -> Trainer:
    """`fit`, with the trainer's board left open."""
    with joined() as here:
        model = rehearse(config, data, losses, here)  # fail before a folder is created
        if start is not None and Path(start).resolve() == Path(out).resolve():
            raise MmfastError(f"--from {start} is the run itself; to resume it, repeat the command that began it")
        goes_on = here.told(Run(Path(out)).begun)  # then `start` is no longer needed, and may be gone
        before = here.told(recorded_start(out))
        remark = check_start(out, start, before, goes_on)
        taken = take_weights(model, config, start) if start is not None and not goes_on else None
        remark = moved_on(out, before, taken) if taken is not None else remark
        here.check_same(the_config=by_key(config), the_number_of_examples=(len(data.train), len(data.test)))
        lines = (*without_effect(model, config, here.count), *slow_here(config, pick_device(config.train.device)))
        for line in filter(None, (remark, *lines)) if here.first else ():
            notice(line)
        quiet = quiet or not here.first
        kept = Kept(config, data, files, allow_changed_data, quiet)

        def accept(run: Run) -> None:
            kept.compare(run)
            if taken is not None:  # before the config: no run of these weights lacks the record
                record_start(run, taken)

        with here.in_turn(machines=False):  # reading every file may take the first rank hours
            run = Run.start(out, config, accept) if here.first else Run(Path(out))
        trainer = Trainer(config, run, data, losses, here, model)
        trainer.restore()
        if trainer.done < config.train.steps:
            with here.in_turn():  # the first computes, the others read the cache
                trainer.data = with_latents(data, trainer.model, config, trainer.device, quiet)
        if here.first:
            kept.write(run, trainer.done)
        if here.told(bool(kept.changed)):
            trainer.best = None  # it was the best on the previous held-out examples
        if trainer.done and not quiet:
            print(f"{out}: resuming after step {trainer.done} of {config.train.steps}", flush=True)
        elif taken is not None and here.first:
            print(taken, flush=True)
        # Each step reseeds torch's generator.
        with torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []):
            _steps(trainer, quiet)
        trainer.export()  # the run may have been killed between its last checkpoint and the export
        return trainer


def train(
    config: Config, out: str, quiet: bool = False, *, allow_changed_data: bool = False, start: str | None = None
) -> Run:
    """`fit` with the diffusion loss, on a config completed from its data (`with_found`); then sample and evaluate.

    Returns the run. Raises MmfastError for bad input, before anything is changed.
    """
    check_beside_data(config, "--out", Path(out))
    with silenced(quiet), joined() as here:
        before = here.told(Run(Path(out)).config() if here.first and Run(Path(out)).exists else None)
        with here.in_turn():
            theirs = Run.open(start).config() if before is None and start is not None else None
            config = with_found(config, before or theirs)  # whose weights depend on the units that it found
            data = build_data(config)
            files = files_of(config) if here.first else {}
        if not (quiet or files) and here.first:  # the command line has already described files in more detail
            print(f"{plural(len(data.train), 'example')} to train on, {len(data.test):,} held out", flush=True)
        trainer = _fitted(config, out, data, losses, quiet, files, allow_changed_data, start)
        run, average, silent = trainer.run, trainer.ema.model, quiet or not here.first
        if not silent:
            count = len(directions(average, trainer.shown))
            each = f" in each of {count} directions" if count > 1 else ""
            say(f"drawing {plural(config.sample.count, 'sample')}{each}, for {run.samples}")
        with contextlib.closing(trainer.board) as board:
            gallery = Gallery(run, trainer.done, board)
            sample_run(gallery, average, config, trainer.shown, quiet=quiet, ranks=trainer.drawing)
        if config.evaluate.samples and not here.told(run.metrics_file.exists()):
            if not silent:
                say(f"drawing {plural(config.evaluate.samples, 'sample')} in each direction, for {run.metrics_file}")
            evaluate_run(run, average, config, data, quiet=quiet, ranks=trainer.drawing)
        return run


def _steps(trainer: Trainer, quiet: bool) -> None:
    config, run, begun = trainer.config, trainer.run, trainer.done
    train, network, ranks = config.train, trainer.model, trainer.ranks
    if train.compile:
        network.backbone.compile()
    if train.cuda_graphs and trainer.device.type == "cuda" and trainer.done < train.steps:
        trainer.capture()
    batches = loader(config, trainer.data.train, trainer.done, pinned=trainer.device.type == "cuda", ranks=ranks)
    over = trainer.done >= train.steps
    trainer.board = board = Board(run.folder, config, trainer.done, silent=over or not ranks.first)
    watch = Watch(config, trainer.done, trainer.device, quiet)
    owed = False  # a checkpoint is due, perhaps postponed because the weights may be bad
    with (
        _lost(trainer),
        watch,
        contextlib.closing(batches),
        _closed_on_error(board),
        Stop(at_once=ranks.count == 1) as stop,
    ):
        if begun and _every(train.validate_every, begun) and "validation.loss" not in trainer.stats.last():
            # The validation at this step had failed, because an example could not be read.
            watch.measured(trainer.validate())
            found = trainer.stats.last()
            board.add([{name: x for name, x in found.items() if name == "step" or name.startswith("validation.")}])
            trainer.checkpoint()
            if ranks.any(stop.asked)[0]:
                interrupt()
        while trainer.done < train.steps:
            try:
                if trainer.done and _every(train.sample_every, trainer.done):
                    trainer.flush()  # some logs refuse scalars of an earlier step than the last picture's
                    # Right after resuming, sample only the pictures that the stopped run had not finished.
                    gallery, again = Gallery(run, trainer.done, board), trainer.done > begun
                    average, drawing = trainer.ema.model, trainer.drawing
                    sample_run(gallery, average, config, trainer.shown, quiet=quiet, again=again, ranks=drawing)
                trainer.step(batches, network)
                if _every(train.validate_every, trainer.done):
                    watch.measured(trainer.validate())
            except NotAlone:
                raise
            except MmfastError:  # an example cannot be read, on any rank: save the progress so far
                if trainer.saved < trainer.done:
                    trainer.checkpoint()
                raise
            watch.update()
            last = trainer.done == train.steps
            if last or _every(train.log_every, trainer.done):
                watch.figures(trainer.flush())
            stopping = ranks.any(stop.asked)[0]
            owed |= last or _every(train.checkpoint_every, trainer.done) or _every(train.keep_every, trainer.done)
            if owed or stopping:
                owed = not trainer.checkpoint(anyway=last or stopping)
            if stopping:
                interrupt()


@contextlib.contextmanager
def _closed_on_error(board: Board) -> Iterator[None]:
    """Leave the logs open for the pictures at the end, unless training fails."""
    try:
        yield
    except BaseException:
        board.close()
        raise


@contextlib.contextmanager
def _lost(trainer: Trainer) -> Iterator[None]:
    """Report the steps that are lost if a second Ctrl-C stops the run without a checkpoint."""
    try:
        yield
    except KeyboardInterrupt:
        first, last = trainer.saved + 1, trainer.done
        if trainer.ranks.first and first <= last:
            steps = f"step {last:,} is" if first == last else f"steps {first:,} .. {last:,} are"
            notice(f"stopped at once: {steps} lost, without a checkpoint; the same command repeats them")
        raise


def _every(steps: int, done: int) -> bool:
    """Whether something done every `steps` steps is due; 0 means never."""
    return steps > 0 and done % steps == 0
