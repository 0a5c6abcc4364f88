"""Signals that ask a run to stop: it does so after the step in hand, with its state saved."""

from __future__ import annotations

import signal
import threading
from typing import Any

from mmfast.training.examples import HANGUP


class Stop:
    """Ctrl-C, SIGTERM and a terminal that closes ask for a stop after the step in hand; a second Ctrl-C stops at once.

    Under nohup a terminal that closes is ignored, as it was. at_once: whether a second one does; not under torchrun,
    which may pass on what the terminal has sent, and kills what does not end in half a minute.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.asked, self.at_once = False, at_once

    def _ask(self, number: int, frame: Any) -> None:
        # Ctrl-C in a terminal may be followed by SIGTERM from whoever started this: that is one wish, not two.
        if self.asked and self.at_once and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> Stop:
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
                numbers.append(HANGUP)
            self.before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
