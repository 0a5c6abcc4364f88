"""The processes ("ranks") that torchrun has started for one job, and the communication between them.

A process joins the others with `joined`, and passes the `Ranks` that it yields as an argument. `ALONE` is a single
process, whose methods do the same without communication.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmfast.errors import MmfastError
from mmfast.ranks.arrival import Arrival, client
from mmfast.ranks.watch import BYE, EXPLAINED, FAILED, STOPPED, Watch

T = TypeVar("T")
Item = TypeVar("Item")

# How long a rank waits for another in a step, and how long for the first rank to make what all need.
STEP, PATIENCE = timedelta(minutes=30), timedelta(days=30)


class Elsewhere(MmfastError):
    """Another rank cannot go on; that rank reports the reason."""


@dataclass
class Ranks:
    """This process, `index` of `count`, and its collective operations: all ranks call each method together."""

    index: int = 0
    count: int = 1
    local: int = 0  # the index among the processes of this machine
    machine: str = "0"
    store: Any = field(default=None, repr=False)
    turns: Iterator[int] = field(default_factory=itertools.count, repr=False)
    divides: bool = True  # whether `map` distributes its items; else all ranks do all of them, as shards require

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.index == 0

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is true on any rank."""
        if self.count == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.bool().tolist()

    def together(self, work: Callable[[], T]) -> T:
        """work() on each rank. If it raises MmfastError on any, all raise: that rank its own, the others `Elsewhere`.

        No rank then waits for one that has left.
        """
        error = None
        try:
            found = work()
        except MmfastError as caught:
            error = caught
        if self.any(error is not None)[0]:
            raise error or Elsewhere("another rank cannot go on")
        return found

    def on_first(self, work: Callable[[], object]) -> None:
        """`together`, with work for the first rank only."""
        self.together(work if self.first else lambda: None)

    def mean(self, x: Tensor) -> Tensor:
        """Replace a tensor by its mean over the ranks, in place, and return it."""
        if self.count > 1:
            dist.all_reduce(x)
            x /= self.count
        return x

    def told(self, value: T) -> T:
        """The first rank's value, on all."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def all(self, value: T) -> list[T]:
        """All ranks' values, in the order of the ranks."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def map(self, work: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
        """[work(item) for item in items], each computed by one rank and returned on all. Results are on the CPU."""
        items = list(items)
        if self.count == 1 or not self.divides:
            return [work(item) for item in items]
        mine = range(len(items) * self.index // self.count, len(items) * (self.index + 1) // self.count)
        return [x for part in self.all([work(items[i]) for i in mine]) for x in part]

    def shares(self, count: int) -> list[Tensor]:
        """0 .. count - 1 in one even part per rank, without empty parts: int64 [about count / ranks] each."""
        return [rows for rows in torch.arange(count).tensor_split(self.count if self.divides else 1) if len(rows)]

    def at_most(self, size: int, count: int) -> int:
        """A batch size for `count` examples: `size`, or less if some rank would have no work."""
        return max(1, min(size, -(-count // self.count))) if self.count > 1 and self.divides else size

    def tensors(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first rank's tensors by name, on all ranks and on the CPU."""
        if self.count == 1:
            return dict(found)
        kinds = self.told([(name, list(x.shape), x.dtype) for name, x in found.items()])
        received = {}
        for name, shape, dtype in kinds:
            x = found[name].cpu().contiguous() if self.first else torch.empty(shape, dtype=dtype)
            dist.broadcast(x, 0)
            received[name] = x
        return received

    def check_same(self, **values: object) -> None:
        """Raise MmfastError if a value is not the same on all ranks; its name describes it in the message.

        Of two dicts, the message has the keys in which they differ.
        """
        for name, found in values.items():
            each = self.all(found)
            for index, value in enumerate(each):
                if value != each[0]:
                    own, first = _different(value, each[0])
                    what = name.replace("_", " ")
                    raise MmfastError(
                        f"{what} of rank {index} is {own}; it should be that of rank 0, {first}: give every "
                        "machine the same command, files and version"
                    )

    @contextlib.contextmanager
    def in_turn(self, machines: bool = True) -> Iterator[None]:
        """Let the first rank of each machine go before its others, so that they find what it has cached.

        machines: if False, the first rank of all goes before all others. All leave together, however long it takes.
        """
        leads = not self.local if machines else self.first
        turn = f"turn/{next(self.turns)}"
        key = f"{turn}/{self.machine if machines else 'all'}"
        if self.count > 1 and not leads:
            self.store.wait([key], PATIENCE)
        yield
        if self.count > 1:
            self.store.set(key, "done")
            self.store.set(f"{turn}/rank/{self.index}", "done")
            self.store.wait([f"{turn}/rank/{k}" for k in range(self.count)], PATIENCE)


def _different(value: object, other: object) -> tuple[str, str]:
    """Two values as texts; of two dicts, only the entries in which they differ."""
    if not (isinstance(value, dict) and isinstance(other, dict)):
        return str(value), str(other)
    keys = [key for key in {**other, **value} if value.get(key) != other.get(key)]
    own, first = (", ".join(f"{key} {x.get(key)!r}" for key in keys) for x in (value, other))
    return own, first


ALONE = Ranks()
_joined: Ranks | None = None


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun has started; yields this process's `Ranks`, or `ALONE` without torchrun.

    Nested calls yield the same `Ranks`. If a rank leaves with an error or dies, the others end within seconds. The
    first rank reports an MmfastError, once; the others raise SystemExit. Raises MmfastError if torchrun's variables are
    missing or invalid.
    """
    global _joined
    if _joined is not None or _number("WORLD_SIZE", 1) == 1:
        yield _joined or ALONE
        return
    try:
        _joined, watch = _join()
    except RuntimeError as error:  # from torch.distributed: a rank has died since, or never came
        raise MmfastError(
            f"the ranks have not met ({str(error).strip().splitlines()[0]}); check what the others report, and whether "
            "all were started with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE"
        ) from None
    try:
        with _quiet(not _joined.first):
            yield _joined
    except BaseException as error:
        _leave_by(error, _joined, watch)
        raise
    else:
        watch.leave(BYE, patience=None)
        dist.destroy_process_group()
    finally:
        _joined = None


def local_rank() -> int | None:
    """The number of this process on its machine; None if torchrun has not started it."""
    return _number("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else None


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        was = f"is {text!r}" if text else "is not set"
        raise MmfastError(f"{name} {was}; torchrun sets it: start as torchrun --nproc-per-node N -m mmfast ...")
    return int(text)


def _join() -> tuple[Ranks, Watch]:
    if not dist.is_available():
        raise MmfastError("WORLD_SIZE is above 1, but this torch has no torch.distributed; start without torchrun")
    if dist.is_initialized():
        raise MmfastError("torch.distributed is initialised already; mmfast does that itself: leave it out")
    index, count, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise MmfastError(f"{name} is not set; torchrun sets it: start as torchrun --nproc-per-node N -m mmfast")
    gpus = torch.cuda.device_count() if dist.is_nccl_available() else 0
    if local < gpus:
        torch.cuda.set_device(local)
    store, _, _ = next(dist.rendezvous("env://"))
    store.set_timeout(STEP)
    # If torchrun restarts the job, this attempt must not see what an earlier one has left in the store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, name = dist.PrefixStore(attempt, store), f"{platform.node()}, process {os.getpid()}"
    backend = "cpu:gloo,cuda:nccl" if local < gpus else "gloo"
    where = os.environ["MASTER_ADDR"], _number("MASTER_PORT"), f"{attempt}/arrival"
    with Arrival(index, count, name, functools.partial(client, *where)):
        group = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=index, world_size=count, timeout=STEP)
        own = dist.PrefixStore("mmfast", store)
        here = Ranks(index, count, local, os.environ.get("GROUP_RANK", platform.node()), own)
        return here, Watch(index, here.all(name))


@contextlib.contextmanager
def _quiet(others: bool) -> Iterator[None]:
    """Silence warnings on ranks other than the first, which gives them."""
    with warnings.catch_warnings() if others else contextlib.nullcontext():
        if others:
            warnings.simplefilter("ignore")
        yield


def _leave_by(error: BaseException, here: Ranks, watch: Watch) -> None:
    """Tell the other ranks how this one ends. Raises SystemExit if another rank reports the reason."""
    if isinstance(error, KeyboardInterrupt):
        watch.leave(STOPPED, patience=EXPLAINED)
        if not here.first:
            raise SystemExit(130) from None
    elif isinstance(error, Elsewhere):
        watch.wait(EXPLAINED)
        raise SystemExit(2) from None
    elif isinstance(error, MmfastError):
        said = watch.leave(FAILED, str(error), patience=EXPLAINED)
        if said or not here.first:
            raise SystemExit(2) from None
    else:
        # A rank's death shows here as a failed transfer: the watch ends this process, and reports which rank died.
        if watch.lost.wait(1.0):
            time.sleep(EXPLAINED)
