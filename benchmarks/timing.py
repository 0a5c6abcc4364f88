"""Timing on a shared machine: every provider alternates in one run, on one kept-warm allocator, and medians count."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Fresh pages cost more than the arithmetic here, so freed memory is kept by both sides alike: no mmap for large
# blocks, no trimming. glibc reads these at start-up; other allocators ignore them.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def with_warm_allocator(module: str) -> None:
    """Start the running benchmark again, once, with the allocator's settings in its environment."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.environ.update(ALLOCATOR)
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


@dataclass(frozen=True)
class Times:
    """Seconds a call: the 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float


def alternate(providers: Mapping[str, Callable[[], object]], seconds: float, least: int = 7) -> dict[str, Times]:
    """Time the providers in turn, round after round, for about `seconds` and at least `least` rounds."""
    for call in providers.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in providers}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, call in providers.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: Times(*(_quantile(values, q) for q in (0.2, 0.5, 0.8))) for name, values in times.items()}


def _quantile(values: list[float], q: float) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[round(q * 10) - 1]
