"""Inputs are tried one at a time in forked children, whose deaths are seen: what cannot be told is a fault too."""

import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, Protocol

from .guard import Guard, forget_peak, handles, resident

# Of the processor's time; and of the clock's, of which a busy machine may give little: what waits for ever is seen too.
SECONDS, WAIT = 10.0, 40.0
MEMORY = 2**30
# An allocation beyond this fails, so that no input takes the machine's memory.
MOST = 6 * 2**30
# A child that has tried so many is replaced, since what the inputs leave behind is not the fault of the next.
TURNS = 2000


LIMITS = ((signal.SIGALRM, signal.ITIMER_REAL, WAIT), (signal.SIGPROF, signal.ITIMER_PROF, SECONDS))


class Fault(Exception):
    """What may not happen."""


class Kind(Protocol):
    """A kind of inputs. `attempt` makes one and tries it in an empty folder of its own: it returns None for a right
    result, or the line of an error, and raises `Fault` or anything else where neither is what came."""

    def prepare(self, base: Path) -> None: ...

    def attempt(self, rng: random.Random, folder: Path) -> str | None: ...


@dataclass(frozen=True)
class Outcome:
    number: int
    error: str | None = None  # its line
    fault: str | None = None

    @property
    def what(self) -> str:
        return "fault" if self.fault else "result" if self.error is None else "error"


def attempt(kind: Kind, seed: str, number: int, place: Path, guard: Guard) -> Outcome:
    """Try one input in this process."""
    folder = place / f"input-{number}"
    folder.mkdir()
    rng = random.Random(f"{seed} {number}")
    before, open_before = resident(), handles()
    forget_peak()
    error = fault = None
    # What it was at is known only to itself.
    trace = open(place / "trace", "w")  # noqa: SIM115
    for alarm, timer, seconds in LIMITS:
        signal.signal(alarm, signal.SIG_DFL)
        signal.setitimer(timer, seconds)
    faulthandler.register(signal.SIGPROF, file=trace, chain=True)
    faulthandler.dump_traceback_later(WAIT - 0.5, file=trace)
    guard.watch(folder)
    try:
        error = kind.attempt(rng, folder)
    except Fault as found:
        fault = str(found)
    except BaseException:
        fault = traceback.format_exc()
    seen = _stop(guard)
    trace.close()
    grown = resident(peak=True) - before
    if error is not None and not fault and ("\n" in error or "Traceback" in error or len(error) > 2000):
        fault = f"an error that is not one short line: {error[:2000]}"
    if seen and not fault:
        fault = "; ".join(seen)
    if grown > MEMORY and not fault:
        fault = f"{grown / 2**20:.0f} MB more memory"
    left_open = {x for x in handles() - open_before if "pipe:" not in x and "/shared" not in x}
    if left_open and not fault:
        fault = f"left open: {left_open}"
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(number, error, fault)


def _stop(guard: Guard) -> list[str]:
    for _, timer, _ in LIMITS:
        signal.setitimer(timer, 0)
    faulthandler.cancel_dump_traceback_later()
    faulthandler.unregister(signal.SIGPROF)
    seen = guard.seen
    guard.watch(None)
    return seen


def _serve(kind: Kind, seed: str, pipe: Any, place: Path, quiet: bool) -> None:
    with open(os.devnull, "w") as nothing:
        for stream in (1, 2) if quiet else ():
            os.dup2(nothing.fileno(), stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST, now + MOST))
    place.mkdir()
    guard = Guard()
    while (number := pipe.recv()) is not None:
        pipe.send(attempt(kind, seed, number, place, guard))


class _Child:
    def __init__(self, kind: Kind, seed: str, place: Path, quiet: bool) -> None:
        context = get_context("fork")
        self.place = place
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(kind, seed, theirs, place, quiet))
        sys.stdout.flush()
        self.process.start()
        theirs.close()
        self.number: int | None = None
        self.turns = 0

    def give(self, number: int | None) -> None:
        self.number, self.turns = number, self.turns + 1
        self.pipe.send(number)

    def outcome(self) -> Outcome:
        """What came of the input, or how the child died of it."""
        assert self.number is not None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            hung = None
            if -code in (signal.SIGALRM, signal.SIGPROF):
                hung = f"a hang: {SECONDS:g} s of work or {WAIT:g} s\n{(self.place / 'trace').read_text()}"
            return Outcome(self.number, fault=hung or f"the process died, exit code {code}")

    def end(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        shutil.rmtree(self.place, ignore_errors=True)


def run(kind: Kind, seed: str, numbers: Iterable[int], jobs: int, place: Path, quiet: bool = True) -> Iterator[Outcome]:
    """Try the inputs of these numbers, and yield what comes of each, in any order.

    A hang is one only if it is one again: a shared machine may stand still.
    """
    left, again = iter(numbers), set[int]()
    repeat: list[int] = []
    count = 0

    def child() -> _Child:
        nonlocal count
        count += 1
        return _Child(kind, seed, place / f"child-{count}", quiet)

    def following() -> int | None:
        return repeat.pop() if repeat else next(left, None)

    children: list[_Child] = []
    try:
        for _ in range(jobs):
            if (number := following()) is not None:
                children.append(child())
                children[-1].give(number)
        while children:
            ready = connection.wait([x.pipe for x in children])
            for k in [k for k, x in enumerate(children) if x.pipe in ready][::-1]:
                found = children[k].outcome()
                dead = found.fault is not None and not children[k].process.is_alive()
                if found.fault and found.fault.startswith("a hang") and found.number not in again:
                    again.add(found.number)
                    repeat.append(found.number)
                else:
                    yield found
                number = following()
                if dead or number is None or children[k].turns >= TURNS:
                    children.pop(k).end()
                    if number is None:
                        continue
                    children.insert(k, child())
                children[k].give(number)
    finally:
        for x in children:
            x.end()


def one_line(call: Callable[[], Any]) -> str | None:
    """None where a call returns, the line of the MmfastError that it raises, or any other error as it is."""
    from mmfast.errors import MmfastError

    try:
        call()
    except MmfastError as error:
        return str(error)
    return None
