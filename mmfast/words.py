"""Counts with their nouns."""

from __future__ import annotations


def plural(count: int, thing: str) -> str:
    """1 example, 2 examples, 2 classes, 1,000 batches."""
    return f"{count:,} {thing}" + ("" if count == 1 else "es" if thing.endswith(("s", "ch")) else "s")
