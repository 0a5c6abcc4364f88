"""Ranks that are still meeting: each says in the store that it is there, until a `Watch` has connections that tell.

A process that dies before that is missing nowhere: the others would wait for its connection until a time-out.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from mmfast.ranks.watch import EXPLAINED, SEEN, died, end, say

# Seconds: how often a rank says that it is there, and after how many without a word it counts as dead.
BEAT, LATE = 0.5, 10.0
# A rank's last word, when it has met all; and the key that the first rank sets when it ends all.
MET, OVER = b"met", "over"


class Arrival:
    """Ends this process when another that had come dies while they meet. name: of this rank, for the line that says so.

    The first looks at all the others, and they at it. Those that have not come yet are waited for elsewhere. store:
    makes a client of the ranks' store for this alone, since the main thread may be waiting in its own.
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
            # A transfer that failed: where a rank has died, this process ends here, and a line says which.
            self.thread.join(LATE + EXPLAINED)
        self.met = kind is None
        self.left.set()
        self.thread.join()

    def _speak(self, beat: int) -> None:
        self.store.set(str(self.index), f"{beat} {self.name}")

    def _run(self) -> None:
        try:
            self._watch()
        except RuntimeError:  # the store is gone, and the first rank with it, where that has it
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
        """Whether a rank that had come has said nothing for too long."""
        word: bytes = self.store.get(str(peer)) if self.store.check([str(peer)]) else b""
        now = time.monotonic()
        if word != self.words.get(peer, b""):
            self.words[peer], self.changed[peer] = word, now
        return word not in (b"", MET) and now - self.changed[peer] > LATE

    def _end(self, peer: int) -> None:
        if self.index in (0, 1):
            name = self.words.get(peer, b"").decode(errors="replace").partition(" ")[2]
            say(f"mmfast: {died(peer, self.count, name)}")
        time.sleep(SEEN)  # for the others, and torchrun, to see it
        end(1)


def client(host: str, port: int, prefix: str) -> Any:
    """A client of its own of the store that the ranks meet at."""
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)
    return dist.PrefixStore(prefix, store)
