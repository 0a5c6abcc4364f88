"""Errors that a user can fix: each message names the argument, what it was and what it should be."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

# Characters of a message, because a value that it shows may print as megabytes.
LONGEST = 1500


class MmfastError(ValueError):
    """Bad input: the message is one line and says what to do. The CLI prints it and exits with 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(_one_line(str(message)))


def _one_line(text: str) -> str:
    """A text as one printable line, whatever values and file names it contains."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) > 1 and any("Traceback (most recent call last)" in line for line in lines):
        # From a process that loads data: its traceback, then the error, which is one line.
        lines = [lines[-1].removeprefix(f"{MmfastError.__module__}.{MmfastError.__name__}: ")]
    line = " ".join(lines)
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class BackendError(MmfastError):
    """A requested backend does not exist or cannot run here."""


def unknown(what: str, value: object, known: Iterable[object]) -> MmfastError:
    """The error for an unknown name, which suggests the nearest known one."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return MmfastError(f"{what} is {value!r}; it should be one of {', '.join(names) or '(none)'}{hint}")


def missing_extra(package: str, extra: str, purpose: str) -> MmfastError:
    """The error for an optional package that is not installed."""
    return MmfastError(f"{purpose} needs {package}, which is not installed: pip install 'mmfast[{extra}]'")


@contextlib.contextmanager
def optional_package(package: str, extra: str, purpose: str) -> Iterator[None]:
    """Guard the import of an optional package. Raises MmfastError if it is not installed or fails to import."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_extra(package, extra, purpose) from error
    except Exception as error:  # a release may raise anything if torch is too old for it
        raise MmfastError(
            f"{purpose} needs {package}, which is installed but fails to import: {type(error).__name__}: {error}; "
            f"install another version of {package}, or of torch"
        ) from error


def say(line: str) -> None:
    """Print a line on stderr, above the progress bar if there is one. Failures are ignored."""
    tqdm: Any = sys.modules.get("tqdm")  # if it has not been imported, there is no bar
    write = print if tqdm is None else tqdm.tqdm.write
    with contextlib.suppress(OSError, ValueError, AttributeError):  # the terminal has closed, or there is none
        write(line, file=sys.stderr)


def notice(line: str) -> None:
    """Print a notice of one line on stderr: not an error, but something that the user should know."""
    say(f"mmfast: {line}")
