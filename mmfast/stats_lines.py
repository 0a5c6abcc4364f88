"""The lines of stats.jsonl, one per step, and what can be recovered from a damaged file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator


def stats_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """The intact lines of stats, with their steps; a kill, a power cut or a disk may have damaged others."""
    for line in io.BytesIO(data):  # one at a time: there may be gigabytes
        try:
            text = line.decode().removesuffix("\n")
            stats = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(stats, dict) and type(stats.get("step")) is int:
            yield stats["step"], text + "\n"


def healed(before: bytes, step: int, recent: str) -> tuple[str, list[str]]:
    """One line for each of the steps 1 .. step, if there is one; and in words, what was missing or ambiguous.

    before: the file's content. recent: known lines, which replace those in the file.
    """
    lines: dict[int, str] = {}
    unsure = set()
    for n, line in stats_lines(before):
        if lines.setdefault(n, line) != line:
            unsure.add(n)
    known = dict(stats_lines(recent.encode()))
    lines |= known
    steps = range(1, step + 1)
    missing = [n for n in steps if n not in lines]
    twice = [n for n in steps if n in unsure - known.keys()]
    found = [f"no line for steps {_ranges(missing)}"] if missing else []
    found += [f"two for steps {_ranges(twice)}, of which the first is kept"] if twice else []
    return "".join(lines[n] for n in steps if n in lines), found


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 5] -> "1 .. 3, 5", with at most four ranges."""
    ends = [n for k, n in enumerate(numbers) if k == 0 or numbers[k - 1] != n - 1]
    last = [n for k, n in enumerate(numbers) if k == len(numbers) - 1 or numbers[k + 1] != n + 1]
    found = [f"{a}" if a == b else f"{a} .. {b}" for a, b in zip(ends, last, strict=True)]
    return ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
