"""Detect ranks that die while the ranks are still meeting, by heartbeats in the store, until a `Watch` takes over.

Without it, nothing would notice such a death, and the others would wait for a connection until a time-out.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from mmfast.ranks.watch import EXPLAINED, SEEN, died, end, say

# Seconds: the interval of the heartbeats, and how long without one until a rank counts as dead.
BEAT, LATE = 0.5, 10.0
# A rank's last value in the store, once it has met all; and the key that the first rank sets when it ends all.
MET, OVER = b"met", "over"


class Arrival:
    """End this process if another rank that has arrived dies while they meet. name: of this rank, for the message.

    The first rank watches all the others, and they watch it. Ranks that have not arrived are waited for elsewhere.
    store: makes a separate client of the ranks' store, since the main thread may be waiting in its own.
    """

    def __init__(self, index: int, count: int, name: str, store: Callable[[], Any]) -> None:
        self.index, self.count, self.name = index, count, name
        self.make_store = store
        self.left, self.met = threading.Event(), False
        self.words: dict[int, bytes] = {}
        self.changed: dict[int, float] = {}
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Arrival:
        self.store = self.make_store()
        self._speak(0)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and issubclass(kind, RuntimeError):
            # A transfer failed. If a rank has died, this process ends here, and a message states which.
            self.thread.join(LATE + EXPLAINED)
        self.met = kind is None
        self.left.set()
        self.thread.join()

    def _speak(self, beat: int) -> None:
        self.store.set(str(self.index), f"{beat} {self.name}")

    def _run(self) -> None:
        try:
            self._watch()
        except RuntimeError:  # the store is gone, and so is the first rank if it hosts the store
            if not self.left.wait(EXPLAINED):
                self._end(0)

    def _watch(self) -> None:
        beat = 0
        while not self.left.wait(BEAT):
            beat += 1
            self._speak(beat)
            for peer in range(1, self.count) if self.index == 0 else [0]:
                if self._late(peer):
                    if self.index == 0:
                        self.store.set(OVER, "")
                    self._end(peer)
            if self.index and self.store.check([OVER]):
                end(1)
        if self.met:
            with contextlib.suppress(RuntimeError):  # the others have met too, and may have ended
                self.store.set(str(self.index), MET)

    def _late(self, peer: int) -> bool:
        """Whether a rank that has arrived has sent no heartbeat for too long."""
        word: bytes = self.store.get(str(peer)) if self.store.check([str(peer)]) else b""
        now = time.monotonic()
        if word != self.words.get(peer, b""):
            self.words[peer], self.changed[peer] = word, now
        return word not in (b"", MET) and now - self.changed[peer] > LATE

    def _end(self, peer: int) -> None:
        if self.index in (0, 1):
            name = self.words.get(peer, b"").decode(errors="replace").partition(" ")[2]
            say(f"mmfast: {died(peer, self.count, name)}")
        time.sleep(SEEN)  # so that the others and torchrun see it
        end(1)


def client(host: str, port: int, prefix: str) -> Any:
    """A separate client of the store at which the ranks meet."""
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)
    return dist.PrefixStore(prefix, store)
