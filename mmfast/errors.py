"""Errors that a user can mend: each message names the argument, what it was and what it should be."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable
from typing import Any


class MmfastError(ValueError):
    """Bad input: the message is one line and says what to do. The CLI prints it and exits with 2."""


class BackendError(MmfastError):
    """A backend was asked for that does not exist or cannot run here."""


def unknown(what: str, value: object, known: Iterable[object]) -> MmfastError:
    """The error for a name that is not among the known ones, with the nearest of them as a suggestion."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return MmfastError(f"{what} is {value!r}; it should be one of {', '.join(names) or '(none)'}{hint}")


def missing_extra(package: str, extra: str, purpose: str) -> MmfastError:
    """The error for an optional package that is not installed."""
    return MmfastError(f"{purpose} needs {package}, which is not installed: pip install 'mmfast[{extra}]'")


def line_of(error: MmfastError) -> str:
    """The one line of an error: from a process that loads data it comes with its traceback above it."""
    return str(error).strip().splitlines()[-1].removeprefix("mmfast.errors.MmfastError: ")


def say(line: str) -> None:
    """A line on stderr, if somebody reads it; above the bar where there is one."""
    tqdm: Any = sys.modules.get("tqdm")  # where it has not been imported there is no bar
    write = print if tqdm is None else tqdm.tqdm.write
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a terminal that has closed, or none at all
        write(line, file=sys.stderr)


def notice(line: str) -> None:
    """Say on stderr, in one line, what is no error but should be known."""
    say(f"mmfast: {line}")
