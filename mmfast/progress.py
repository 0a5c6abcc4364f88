"""The progress of long work: a bar on a terminal, plain lines elsewhere. Failing to show it never ends the work.

Times come from a monotonic clock, so changes of the system's clock do not affect them.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

from mmfast.errors import say
from mmfast.words import plural

# The most plain lines for the steps of one piece of work, and the seconds between lines without figures.
MOST_LINES, PAUSE = 1000, 60.0


_SILENT = ContextVar("_SILENT", default=False)


@contextlib.contextmanager
def silenced(quiet: bool = True) -> Iterator[None]:
    """Show no bars and none of their lines inside, at any depth. With quiet=False, change nothing."""
    token = _SILENT.set(quiet or _SILENT.get())
    try:
        yield
    finally:
        _SILENT.reset(token)


class Bar:
    """The progress of `total` units of work, `done` of them done already, on stderr as a bar or as lines of text.

    leave: whether the bar stays when the work has ended. examples: how many a unit has, to show examples per second.
    """

    def __init__(
        self,
        total: int,
        text: str,
        unit: str = "step",
        *,
        done: int = 0,
        quiet: bool = False,
        leave: bool = False,
        examples: int = 0,
    ) -> None:
        self.total, self.text, self.unit, self.done, self.examples = total, text, unit, done, examples
        self.begun_at, self.shown_at = done, done
        self.begun = self.said = time.monotonic()
        self.quiet, self.bar = quiet or _SILENT.get(), None
        if self.quiet:
            return
        if on_terminal():
            how = {"total": total, "initial": done, "desc": text, "unit": unit, "leave": leave, "smoothing": 0.05}
            self._draw(lambda _: setattr(self, "bar", _Terminal(**how)))
        else:
            say(f"{text}: {plural(total - done, unit)}")

    def update(self, units: int = 1) -> None:
        """Record that `units` more are done."""
        self.done += units
        if self.bar is not None:
            self._draw(lambda bar: bar.update(units))
        elif not self.quiet and time.monotonic() - self.said >= PAUSE:
            self._line({})

    def show(self, figures: dict[str, str]) -> None:
        """Show figures next to the bar or in a line, unless there would be more than MOST_LINES lines."""
        if self.bar is not None:
            self._draw(lambda bar: bar.set_postfix(figures))
        elif not self.quiet and (self.done - self.shown_at) * MOST_LINES >= self.total:
            self._line(figures)

    def _line(self, figures: dict[str, str]) -> None:
        seconds = max(1e-9, time.monotonic() - self.begun)
        rate = (self.done - self.begun_at) / seconds
        parts = [f"{self.text}: {self.unit} {self.done:,} of {self.total:,}"]
        parts += [f"{name} {value}" for name, value in figures.items()]
        if self.examples:
            parts.append(f"{_three_digits(rate * self.examples)} examples/s")
        if rate > 0 and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        say(", ".join(parts))
        self.said, self.shown_at = time.monotonic(), self.done

    def _draw(self, draw: Any) -> None:
        try:
            draw(self.bar)
        except (OSError, ValueError):  # nobody reads it any more
            self.quiet, self.bar = True, None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self._draw(lambda bar: bar.close())


class _Terminal(tqdm):
    """tqdm with the monotonic clock; with the system's, it would stand still after that has been set back."""

    monitor_interval = 0  # its monitor compares with the system's clock

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = time.monotonic()


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _three_digits(rate: float) -> str:
    """A rate with three significant digits and without an exponent."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 100 else f"{rate:.3g}"


def duration(seconds: float) -> str:
    """42 s, 3 min 5 s, 2 h 10 min, 3 days 4 h."""
    whole = round(seconds)
    for size, unit, next_size, next_unit in ((86400, "day", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            count, rest = whole // size, whole % size // next_size
            counted = plural(count, unit) if unit == "day" else f"{count} {unit}"
            return counted + (f" {rest} {next_unit}" if rest else "")
    return f"{whole} s" if seconds >= 1 else "less than 1 s"
