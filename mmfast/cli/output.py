"""The commands' output: a closed pipe, a full disk or an unprintable name never ends a computation."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class Output(io.TextIOBase):
    """A stream that writes to `stream` until a write fails, then drops everything; `error` is the reason."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._do(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(self.stream.flush)

    def isatty(self) -> bool:
        return bool(self.stream.isatty())

    def fileno(self) -> int:
        return int(self.stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"

    def _do(self, write: Any) -> None:
        if self.error is None:
            try:
                write()
            except OSError as error:
                self.error = error
                _drop(self.stream)


def _drop(stream: Any) -> None:
    """Send a stream's pending output to the null device: else Python retries at exit and ends with status 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def let_go_of_stderr() -> None:
    """Drop pending output to stderr if nobody reads it any more, for instance because the terminal has closed."""
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            _drop(sys.stderr)


@contextlib.contextmanager
def kept_going() -> Iterator[Output | None]:
    """Send prints through an Output, and escape characters that stdout's encoding lacks."""
    if sys.stdout is None:  # closed, so print does nothing
        yield None
        return
    with contextlib.suppress(AttributeError, io.UnsupportedOperation, ValueError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    output = Output(sys.stdout)
    with contextlib.redirect_stdout(output):
        try:
            yield output
        finally:
            output.flush()
