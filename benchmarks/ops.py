"""q_sample against eager torch, torch.compile and a memory copy: `python -m benchmarks.ops`.

float32, two modalities that cover the whole image, t a tensor; what every side does is look its coefficients up,
make (or read) the noise, and write z_t and eps. Writes benchmarks/results/ops.csv and prints the same as a table.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import ALLOCATOR, alternate, with_warm_allocator

RESULTS = Path(__file__).parent / "results"
SIZES = ((64, 3, 64, 64), (128, 3, 128, 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each size and case [20]")
    parser.add_argument("--out", type=Path, default=RESULTS / "ops.csv", help="the CSV file")
    args = parser.parse_args()
    with_warm_allocator("benchmarks.ops")

    import torch

    import mmfast
    from mmfast.ops import backends

    backend = backends.choose("cpu")
    print(
        f"{backends.report()[backend.name]['detail']} ({backend.name} backend), torch {torch.__version__}, "
        f"{platform.machine()}\nallocator on both sides: {' '.join(f'{k}={v}' for k, v in ALLOCATOR.items())}\n"
    )
    rows = [row for size in SIZES for case in CASES for row in measure(size, case, args.seconds)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{args.out} (mmfast {mmfast.__version__})")


def measure(size: tuple[int, ...], case: str, seconds: float) -> list[dict[str, object]]:
    """One size and case: a row for every provider, printed as they come."""
    import torch

    elements = torch.Size(size).numel()
    times = alternate(CASES[case](size), seconds)
    best = min(times[name].p50 for name in times if name.startswith("torch.compile"))
    rows = []
    print(f"{'x'.join(map(str, size))}, {case}")
    for name, t in times.items():
        row = {
            "op": "q_sample",
            "case": case,
            "size": "x".join(map(str, size)),
            "provider": name,
            **{f"{p}_ns_per_element": round(getattr(t, p) / elements * 1e9, 4) for p in ("p20", "p50", "p80")},
            "times_copy": round(t.p50 / times["memory copy"].p50, 3),
        }
        rows.append(row)
        print(f"  {name:<32} {t.p50 / elements * 1e9:7.3f} ns/element {row['times_copy']:7.2f} x a copy of the bytes")
    ours = times["mmfast"].p50
    eager = f"{times['eager torch'].p50 / ours:.2f} times as fast as eager torch, " if "eager torch" in times else ""
    print(f"  mmfast is {eager}{best / ours:.2f} times as fast as the better torch.compile\n")
    return rows


def _setting(size: tuple[int, ...]):  # type: ignore[no-untyped-def]
    import torch

    import mmfast

    torch.manual_seed(0)
    sched = mmfast.Schedule.cosine(1000, {"a": mmfast.bridge(2.0), "b": mmfast.bridge(1.0)})
    z0, a, b, eps = (torch.randn(size) for _ in range(4))
    t = torch.randint(1, 1001, (size[0],))
    table = sched.marginal[torch.float32]

    def formula(z0: torch.Tensor, a: torch.Tensor, b: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        of_z0, w_a, w_b, sigma = table[t][:, :, None, None, None].unbind(1)
        return of_z0 * z0 + w_a * a + w_b * b + sigma * eps

    return sched, z0, a, b, eps, t, formula


def _copy(size: tuple[int, ...], tensors: int) -> Callable[[], object]:
    """A copy that moves as many bytes as reading and writing this many tensors in all."""
    import torch

    elements = torch.Size(size).numel() * tensors // 2
    source, target = torch.ones(elements), torch.empty(elements)
    return lambda: target.copy_(source)


def _compiled(function: Callable[..., object], **options: bool) -> Callable[..., object]:
    import torch

    return torch.compile(function, fullgraph=True, dynamic=False, options=options or None)


def noise_inside(size: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Three tensors read, the noise made, z_t and eps written."""
    import torch

    from mmfast import ops

    sched, z0, a, b, _, t, formula = _setting(size)

    def noisy(z0: torch.Tensor, a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        eps = torch.randn_like(z0)
        return formula(z0, a, b, t, eps), eps

    default, fallback = _compiled(noisy), _compiled(noisy, fallback_random=True)
    return {
        "mmfast": lambda: ops.q_sample(z0, {"a": a, "b": b}, t, sched),
        "eager torch": lambda: noisy(z0, a, b, t),
        "torch.compile": lambda: default(z0, a, b, t),
        "torch.compile, fallback_random": lambda: fallback(z0, a, b, t),
        "memory copy": _copy(size, 5),
    }


def noise_handed_in(size: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Four tensors read, z_t written."""
    from mmfast import ops

    sched, z0, a, b, eps, t, formula = _setting(size)
    compiled = _compiled(formula)
    return {
        "mmfast": lambda: ops.q_sample(z0, {"a": a, "b": b}, t, sched, noise=eps),
        "eager torch": lambda: formula(z0, a, b, t, eps),
        "torch.compile": lambda: compiled(z0, a, b, t, eps),
        "memory copy": _copy(size, 5),
    }


CASES: dict[str, Callable[[tuple[int, ...]], dict[str, Callable[[], object]]]] = {
    "noise made inside": noise_inside,
    "noise handed in": noise_handed_in,
}

if __name__ == "__main__":
    main()
