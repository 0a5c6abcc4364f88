"""Every rank knows how every other one ends: the first listens to all, and they to it, over connections of their own.

A process that dies closes its connections, however it dies, so the others need not wait for a time-out.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

# How a rank ends: with its work done; asked to stop; by an error that it has said; without a word; told to by the
# first rank, for another's sake.
BYE, STOPPED, FAILED, DIED, END = range(5)
STATUS = {STOPPED: 130, FAILED: 2, DIED: 1}
# Bytes of a message: how, the status to end with, and the error.
LENGTH = 4096
FOREVER = timedelta(days=3650)
# Seconds: for torchrun to see which process ended first, for this one to end by itself, for others to end too.
SEEN, BY_ITSELF = 2.0, 1.0
# Seconds that a failure of another rank, which shows here as a failed transfer, is given to explain itself.
EXPLAINED = 10.0


class Watch:
    """Ends this process when another one has died or cannot go on. names: of all ranks, for the line that says so."""

    def __init__(self, index: int, names: Sequence[str]) -> None:
        self.index, self.names = index, names
        self.group: Any = dist.new_group(backend="gloo", timeout=FOREVER)
        self.lock = threading.Lock()
        self.said: set[str] = set()
        self.leaving, self.lost = threading.Event(), threading.Event()
        peers = range(1, len(names)) if index == 0 else [0]
        self.listeners = [threading.Thread(target=self._listen, args=(peer,), daemon=True) for peer in peers]
        for listener in self.listeners:
            listener.start()

    def leave(self, how: int, text: str = "", patience: float | None = None) -> bool:
        """Say how this rank ends, and wait for the others' word; returns whether `text` has been said before.

        patience: the seconds to wait at most; None: as long as it takes, since they may still be at work.
        """
        with self.lock:
            said = text in self.said
            self.said.add(text)
        if how != BYE:
            self.leaving.set()
        if self.index != 0:
            self._tell(0, how, text=text)
        # Those that end by an error of their own do so at once; the rest are told to.
        self.wait(BY_ITSELF if patience is not None and self.index == 0 else patience)
        if self.index == 0:
            self._tell_all(how)
            self.wait(EXPLAINED)  # a listener that still waits for a message would abort this process as it ends
        return said

    def wait(self, patience: float | None) -> None:
        """Wait until all others have said how they end."""
        until = None if patience is None else time.monotonic() + patience
        for listener in self.listeners:
            listener.join(None if until is None else max(0.0, until - time.monotonic()))

    def _tell(self, peer: int, how: int, status: int = 0, text: str = "") -> None:
        data = bytes([how, status]) + text.encode()[: LENGTH - 2]
        message = torch.frombuffer(bytearray(data.ljust(LENGTH, b"\0")), dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):  # it has ended already
            dist.send(message, peer, group=self.group)

    def _tell_all(self, how: int) -> None:
        for peer in range(1, len(self.names)):
            self._tell(peer, BYE if how == BYE else END, STATUS.get(how, 0))

    def _listen(self, peer: int) -> None:
        message = torch.zeros(LENGTH, dtype=torch.uint8)
        try:
            dist.recv(message, peer, group=self.group)
            how, status, *rest = message.tolist()
        except RuntimeError:
            how, status, rest = DIED, STATUS[DIED], []
        if how == BYE:
            return
        if how == DIED:
            self.lost.set()
            if self.index == 1:
                say(f"mmfast: {self._died(0)}")
        if self.index == 0:
            self._end_all(peer, how, bytes(rest).rstrip(b"\0").decode(errors="replace"))
        elif not self.leaving.wait(BY_ITSELF):
            end(status)

    def _end_all(self, peer: int, how: int, text: str) -> None:
        """On the first rank: say why, once, and end the others and this process."""
        # The same error may be about to be said here.
        by_itself = how != DIED and self.leaving.wait(BY_ITSELF)
        with self.lock:
            cause = not self.said
            new = text not in self.said
            self.said.add(text)
        if how == DIED:
            if not cause:  # one that has ended for another's sake
                return
            say(f"mmfast: {self._died(peer)}")
        elif how == FAILED and new:
            say(f"mmfast: error: rank {peer}: {text}")
        elif how == STOPPED and not by_itself:
            say(f"mmfast: rank {peer} was stopped, and the others with it")
        if by_itself:
            return
        self._tell_all(how)
        time.sleep(SEEN if how == DIED else 0.0)
        end(STATUS[how])

    def _died(self, peer: int) -> str:
        return died(peer, len(self.names), self.names[peer])


def died(peer: int, count: int, name: str) -> str:
    """What is said of a rank that has died; name: its machine and its process, "" where they are not known."""
    which = f"rank {peer} of {count}" + (f" ({name})" if name else "")
    return (
        f"{which} has died, so all ranks end; what it said is above, the last checkpoint is "
        "kept, and the same command goes on from it"
    )


def say(line: str) -> None:
    """A line on stderr, if somebody reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def end(status: int) -> NoReturn:
    """End at once: the main thread may wait for what never comes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
