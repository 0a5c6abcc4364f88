"""Signals that ask a run to stop: it does so after the step in hand, with its state saved."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

from mmfast.signals import answered, interrupt


class Stop:
    """Ctrl-C, SIGTERM and a terminal that closes ask for a stop after the step in hand; a second Ctrl-C stops at once.

    Under nohup a terminal that closes is ignored, as it was. at_once: whether a second one does; not under torchrun,
    which may pass on what the terminal has sent, and kills what does not end in half a minute.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.asked, self.at_once = False, at_once
        self.answered = contextlib.ExitStack()

    def _ask(self, number: int, frame: Any) -> None:
        # Ctrl-C in a terminal may be followed by SIGTERM from whoever started this: that is one wish, not two.
        if self.asked and self.at_once and number == signal.SIGINT:
            interrupt()
        self.asked = True

    def __enter__(self) -> Stop:
        self.answered.enter_context(answered(self._ask))
        return self

    def __exit__(self, *error: object) -> None:
        self.answered.close()
