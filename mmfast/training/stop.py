"""Signals that ask a run to stop: it finishes the current step and saves its state first."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

from mmfast.signals import answered, interrupt


class Stop:
    """Stop after the current step on Ctrl-C, SIGTERM or SIGHUP; a second Ctrl-C stops at once.

    Under nohup SIGHUP stays ignored. at_once: whether a second Ctrl-C stops at once. False under torchrun, which may
    forward the signal that the terminal has already sent, and kills processes that do not end within half a minute.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.asked, self.at_once = False, at_once
        self.answered = contextlib.ExitStack()

    def _ask(self, number: int, frame: Any) -> None:
        # Ctrl-C in a terminal may be followed by SIGTERM from the parent process: together they are one request.
        if self.asked and self.at_once and number == signal.SIGINT:
            interrupt()
        self.asked = True

    def __enter__(self) -> Stop:
        self.answered.enter_context(answered(self._ask))
        return self

    def __exit__(self, *error: object) -> None:
        self.answered.close()
