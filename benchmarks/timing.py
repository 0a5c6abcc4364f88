"""Timing on a shared machine: all providers alternate in one run with one warm allocator, and medians count."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Fresh pages cost more than the arithmetic here, so all sides keep freed memory: no mmap for large blocks, no trimming.
# glibc reads these at start-up; other allocators ignore them.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def with_warm_allocator(module: str) -> None:
    """Restart the running benchmark once, with the allocator's settings in its environment."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.environ.update(ALLOCATOR)
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


@dataclass(frozen=True)
class Times:
    """Seconds per call: the 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float


def alternate(
    providers: Mapping[str, Callable[[], object]], seconds: float, device: str = "cpu", least: int = 7
) -> dict[str, Times]:
    """Time the providers in turn, round after round, for about `seconds` and at least `least` rounds.

    A provider's turn is a loop of about ten milliseconds, so that the clock and the caches left by the others do not
    dominate a call of microseconds.
    """
    calls = {name: _calls_a_turn(call, device) for name, call in providers.items()}
    times: dict[str, list[float]] = {name: [] for name in providers}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, call in providers.items():
            times[name].append(_turn(call, calls[name], device))
    return {name: Times(*(_quantile(values, q) for q in (0.2, 0.5, 0.8))) for name, values in times.items()}


def _turn(call: Callable[[], object], count: int, device: str) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def _calls_a_turn(call: Callable[[], object], device: str) -> int:
    for _ in range(3):
        call()
    return max(1, min(300, round(1e-2 / max(_turn(call, 3, device), 1e-9))))


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Peak bytes that a call allocates on top of what was there before, including its result."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _quantile(values: list[float], q: float) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[round(q * 10) - 1]
