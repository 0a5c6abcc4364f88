"""Example number n of a run: its place in the data, its timestep, and which of its modalities are given.

All are functions of (seed, n) through the counter-based generator. So resuming takes one integer, and batch size,
accumulation and the number of ranks change nothing. A step's batch is computed in parts, in turn or by several ranks.
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmfast import ops
from mmfast.config import Config
from mmfast.data import Batch, Examples
from mmfast.errors import MmfastError
from mmfast.ranks import ALONE, Ranks
from mmfast.signals import HANGUP
from mmfast.streams import GIVEN, ORDER, TIMESTEP

# On Linux data loading workers are forked, so that they inherit the data sets and the permissions that the user gave.
START = "fork" if sys.platform == "linux" else None
# Sent when a child process ends. Windows does not have it.
CHILD: Any = getattr(signal, "SIGCHLD", None)


def _words(seed: int, numbers: Tensor, stream: int, count: int, draw: int = 0) -> Tensor:
    """`count` random 32-bit words for each example of the run: int64 [B] -> int64 [B, count]."""
    shape = [len(numbers), count]
    return ops.random_words(shape, seed=seed, sample_ids=numbers, stream=stream, draw=draw, device=numbers.device)


@functools.lru_cache(maxsize=256)
def constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float64 constants on a device, cached because a copy from the host makes a GPU wait."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def timesteps(seed: int, numbers: Tensor, T: int, at_T: Tensor | None = None) -> Tensor:
    """Draw t of each example of the run, uniform on 1 .. T: int64 [B].

    at_T: [B], the probability of drawing t = T instead. None means never.
    """
    t = 1 + (_words(seed, numbers, TIMESTEP, 1)[:, 0] * T >> 32)
    if at_T is None:
        return t
    return torch.where(_words(seed, numbers, TIMESTEP, 1, draw=1)[:, 0] < at_T.double() * 2.0**32, T, t)


def low_noise(seed: int, numbers: Tensor, most: int, share: float) -> Tensor:
    """A uniform timestep in 1 .. most for a share of the examples, 0 for the rest: int64 [B]."""
    chosen, place = _words(seed, numbers, TIMESTEP, 2, draw=2).unbind(1)
    return torch.where(chosen < share * 2.0**32, 1 + (place * most >> 32), 0)


@dataclass(frozen=True)
class Roles:
    """The role of each modality in each example, float [B, N] of 0 and 1: given, unknown, or at a time of its own.

    Unknown takes precedence over a time of its own. A modality with none of these roles shares the anchor's time.
    """

    given: Tensor
    unknown: Tensor
    own: Tensor
    own_times: Tensor  # int64 [B, N], uniform on 1 .. T


def roles(seed: int, numbers: Tensor, shares: Sequence[Sequence[float]], present: Tensor, T: int) -> Roles:
    """Draw the roles of the modalities in each example of the run.

    shares: for each modality, the probabilities of being given, unknown, and at a time of its own. present: [B, N], 1
    where the example has the modality; a missing one is unknown. `given_flags` decides what is given.
    """
    count = len(shares)
    words = _words(seed, numbers, GIVEN, count).double() / 2.0**32
    given, unknown, own = (constants(tuple(x), numbers.device) for x in zip(*shares, strict=True))
    flags = given_flags(seed, numbers, [x[0] for x in shares], present)
    is_unknown = ((words >= given) & (words < given + unknown)) | (present == 0)
    is_own = (words >= given + unknown) & (words < given + unknown + own)
    times = 1 + (_words(seed, numbers, TIMESTEP, count, draw=3) * T >> 32)
    return Roles(flags, is_unknown.float(), is_own.float(), times)


def given_flags(seed: int, numbers: Tensor, probabilities: Sequence[float], present: Tensor | None = None) -> Tensor:
    """Draw which modalities are given in each example, each with its probability: float [B, N] of 0 and 1.

    present: [B, N], 1 where the example has the modality (None: everywhere). A missing modality is never given. If all
    modalities that an example has would be given, nothing would be left to learn, so one of them, drawn at random, is
    not given.
    """
    count = len(probabilities)
    bounds = constants(tuple(p * 2.0**32 for p in probabilities), numbers.device)
    there = torch.ones(len(numbers), count, device=numbers.device) if present is None else present
    flags = (_words(seed, numbers, GIVEN, count) < bounds).float() * there
    kept = ((1 + _words(seed, numbers, GIVEN, count, draw=1)) * there).argmax(1, keepdim=True)
    whole = (flags == there).all(1, keepdim=True)
    return torch.where(whole, flags.scatter(1, kept, 0.0), flags)


@dataclass
class Order:
    """Map example number n of the run to its index in the data set, with a new permutation every epoch."""

    seed: int
    length: int
    epoch: int = -1
    permutation: Tensor | None = None

    def index(self, n: int) -> int:
        epoch, place = divmod(n, self.length)
        if self.permutation is None or epoch != self.epoch:
            keys = _words(self.seed, torch.arange(self.length), ORDER, 1, draw=epoch)[:, 0]
            self.epoch, self.permutation = epoch, keys.argsort(stable=True)
        return int(self.permutation[place])


def parts(config: Config, ranks: Ranks, step: int) -> list[range]:
    """The parts of a step's batch (steps count from 0) that a rank computes, each as the numbers of its examples.

    There are `train.accumulation` parts, or the least multiple of it that divides evenly among the ranks. So two runs
    with the same number of parts compute the same, however many ranks share them. Raises MmfastError if the batch
    cannot be divided so.
    """
    train = config.train
    count = math.lcm(train.accumulation, ranks.count)
    size, left = divmod(train.batch_size, count)
    if left:
        raise MmfastError(
            f"train.batch_size is {train.batch_size}; it should be a multiple of {count}, so that {ranks.count} ranks "
            f"have equal shares in parts of train.accumulation={train.accumulation}"
        )
    starts = [step * train.batch_size + k * size for k in range(ranks.index, count, ranks.count)]
    return [range(start, start + size) for start in starts]


class _Batches:
    """The batch sampler of a DataLoader: the indices of each part, from optimiser step `done` on."""

    def __init__(self, config: Config, length: int, done: int, ranks: Ranks) -> None:
        self.config, self.length, self.done = config, length, done
        self.ranks = Ranks(ranks.index, ranks.count)  # the original cannot be pickled

    def __iter__(self) -> Iterator[list[int]]:
        order = Order(self.config.seed, self.length)
        for step in range(self.done, self.config.train.steps):
            for part in parts(self.config, self.ranks, step):
                yield [order.index(n) for n in part]


class Loading:
    """The batches of a DataLoader, in order. `close` ends its worker processes, which ignore signals.

    Raises MmfastError if a worker cannot start, or when a batch is due from a worker that has died. torch would raise
    as soon as it dies, in the middle of a step, so that the progress so far could not be saved.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self._batches, self._processes = _begun(loader), loader.num_workers
        self._hears = self._processes > 0 and _hears_children()
        if self._hears:
            self._before = signal.signal(CHILD, signal.SIG_DFL)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            if not (self._processes and _is_of_a_death(error)):
                raise
            raise MmfastError(
                "a process that loads data has died, perhaps because memory ran out: lower train.workers, or free some "
                "memory, and repeat the command"
            ) from None

    def close(self) -> None:
        # Private to torch. Without it workers live until the last reference to the batches goes, such as a traceback.
        getattr(self._batches, "_shutdown_workers", lambda: None)()
        for process in getattr(self._batches, "_workers", ()):  # one may be waiting for another that has died
            process.kill()
        if self._hears:
            signal.signal(CHILD, self._before)
            self._hears = False


def _begun(loader: DataLoader[Batch]) -> Any:
    """The iterator of a DataLoader. If a worker cannot start, end those that have started and raise MmfastError."""
    before, hook = multiprocessing.active_children(), sys.unraisablehook
    try:
        return iter(loader)
    except (OSError, RuntimeError) as error:
        # A thread feeds each worker. Any other RuntimeError is about the data.
        if isinstance(error, RuntimeError) and "start new thread" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        with _deaf():
            for process in multiprocessing.active_children():
                if process not in before:
                    process.kill()
                    process.join()
            # torch's half-built iterator is destroyed here, and fails: silence the traceback that would be on stderr.
            sys.unraisablehook = lambda failure: None
            traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook
    raise MmfastError(
        f"train.workers is {loader.num_workers}, but the system cannot start that many processes ({reason}); lower it, "
        "or free some memory, and repeat the command"
    )


def _hears_children() -> bool:
    """Whether this thread may set the handler of SIGCHLD."""
    return CHILD is not None and threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Suspend torch's SIGCHLD handler, which raises when a worker has died."""
    if not _hears_children():
        yield
        return
    before = signal.signal(CHILD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(CHILD, before)


def _is_of_a_death(error: Exception) -> bool:
    """Whether an error of a DataLoader means that a worker has died: it names its pid, or a transfer was cut off."""
    text = str(error)
    if isinstance(error, RuntimeError):
        return text.startswith("DataLoader worker (pid")
    return not text.startswith("Caught ") or "in pin memory thread" in text  # else one of the data's own


def loader(config: Config, examples: Examples, done: int, pinned: bool = False, ranks: Ranks = ALONE) -> Loading:
    """A rank's parts of the run from step `done` on; pinned: in pinned memory, for asynchronous copies to a GPU."""
    batches: Any = _Batches(config, len(examples), done, ranks)
    return Loading(
        DataLoader(
            examples,  # type: ignore[arg-type]
            batch_sampler=batches,
            num_workers=config.train.workers,
            multiprocessing_context=START if config.train.workers else None,
            worker_init_fn=_leave_signals,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            pin_memory=pinned,
        )
    )


def _leave_signals(worker: int) -> None:
    """Ignore Ctrl-C, SIGHUP and torchrun's SIGTERM: all processes receive them, but only the trainer handles them."""
    for number in (signal.SIGINT, signal.SIGTERM, HANGUP):
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


def _as_it_is(batch: Batch) -> Batch:
    return batch
