"""Signals that ask a program to stop: Ctrl-C, SIGTERM and, but under nohup, a terminal that closes."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows
# The exit status of a command that was asked to stop.
STOPPED = 130

Handler = Callable[[int, Any], object]
_ending = False  # whether `interrupt` has raised KeyboardInterrupt since handlers were set


def asking() -> list[signal.Signals]:
    """The signals that ask this process to stop."""
    heard = HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP is not None and heard else [])]


@contextlib.contextmanager
def answered(answer: Handler) -> Iterator[None]:
    """`answer` is the handler of these signals meanwhile; in a thread other than the main one nothing changes."""
    global _ending
    main = threading.current_thread() is threading.main_thread()
    if main:
        _ending = False
    before = {number: signal.signal(number, answer) for number in asking()} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt(number: int = signal.SIGINT, frame: Any = None) -> None:
    """Raise KeyboardInterrupt, once: what comes while that ends the work does not disturb the end."""
    global _ending
    if not _ending:
        _ending = True
        raise KeyboardInterrupt


def end_at_once() -> None:
    """From here on such a signal ends the process without a word: all is done but Python's own end."""
    for number in asking():
        signal.signal(number, signal.SIG_DFL)
