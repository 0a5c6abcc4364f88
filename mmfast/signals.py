"""Signals that ask a program to stop: Ctrl-C, SIGTERM and, except under nohup, the closing of the terminal."""

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
    """A context in which `answer` handles these signals. Has no effect outside the main thread."""
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
    """Raise KeyboardInterrupt, but only once, so that further signals do not disturb the shutdown."""
    global _ending
    if not _ending:
        _ending = True
        raise KeyboardInterrupt


def end_at_once() -> None:
    """From here on let these signals end the process silently: only Python's own shutdown is left."""
    for number in asking():
        signal.signal(number, signal.SIG_DFL)
