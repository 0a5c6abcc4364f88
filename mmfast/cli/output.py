"""What the commands print: a reader that goes, a full disk or a name that is no text end nothing that is computed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class Output(io.TextIOBase):
    """A stream that drops what cannot be written to `stream` from the first such time on; `error`: why."""

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
    """Let what is still to be written to a stream go nowhere: else Python tries again when it ends, with status 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def let_go_of_stderr() -> None:
    """Drop what waits to be written to stderr where nobody reads it any more, as on a terminal that has closed."""
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            _drop(sys.stderr)


@contextlib.contextmanager
def kept_going() -> Iterator[Output | None]:
    """Prints go through an Output meanwhile; names that stdout's encoding has no letters for are escaped."""
    if sys.stdout is None:  # closed: then print does nothing
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
