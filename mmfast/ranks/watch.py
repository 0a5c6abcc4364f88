"""Let every rank know how each other rank ends: the first listens to all, and they to it, on separate connections.

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

# How a rank ends: with its work done; asked to stop; by an error that it reports; without a message; or at the request
# of the first rank, because another rank has ended.
BYE, STOPPED, FAILED, DIED, END = range(5)
STATUS = {STOPPED: 130, FAILED: 2, DIED: 1}
# Bytes of a message: how the rank ends, the exit status, and the error.
LENGTH = 4096
FOREVER = timedelta(days=3650)
# Seconds: for torchrun to see which process ended first, and for a process to end by itself.
SEEN, BY_ITSELF = 2.0, 1.0
# Seconds to wait for the reason of another rank's failure, which shows here as a failed transfer.
EXPLAINED = 10.0


class Watch:
    """End this process if another rank has died or cannot go on. names: of all ranks, for the message."""

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
        """Tell the others how this rank ends, and wait for theirs; returns whether `text` has been reported before.

        patience: the most seconds to wait; None to wait as long as it takes, since they may still be at work.
        """
        with self.lock:
            said = text in self.said
            self.said.add(text)
        if how != BYE:
            self.leaving.set()
        if self.index != 0:
            self._tell(0, how, text=text)
        # Ranks with an error of their own end at once; the others are told to.
        self.wait(BY_ITSELF if patience is not None and self.index == 0 else patience)
        if self.index == 0:
            self._tell_all(how)
            self.wait(EXPLAINED)  # a listener that still waits for a message would abort this process as it ends
        return said

    def wait(self, patience: float | None) -> None:
        """Wait until all others have sent how they end."""
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
        """On the first rank, report the reason once, and end the others and this process."""
        # This rank may be about to report the same error.
        by_itself = how != DIED and self.leaving.wait(BY_ITSELF)
        with self.lock:
            cause = not self.said
            new = text not in self.said
            self.said.add(text)
        if how == DIED:
            if not cause:  # it has ended because of another rank
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
    """The message about a rank that has died; name: its machine and process, "" if they are not known."""
    which = f"rank {peer} of {count}" + (f" ({name})" if name else "")
    return (
        f"{which} has died, so all ranks end; its output is above, the last checkpoint is "
        "kept, and the same command continues from it"
    )


def say(line: str) -> None:
    """Print a line on stderr, if it is open."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def end(status: int) -> NoReturn:
    """Exit at once, since the main thread may be blocked forever."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
