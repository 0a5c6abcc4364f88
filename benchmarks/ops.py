"""Every op against eager torch, torch.compile, diffusers and a memory copy: `python -m benchmarks.ops`.

Writes benchmarks/results/ops.csv and ops.png, and prints the results as a table. Runs on the GPU if there is one.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from benchmarks import tables
from benchmarks.timing import ALLOCATOR, Times, alternate, peak_memory, with_warm_allocator

RESULTS = Path(__file__).parent / "results"
SIZES = ("1x3x8x8", "64x3x64x64", "128x3x128x128", "128x3x256x256")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each size and case [8]")
    parser.add_argument("--sizes", default=",".join(SIZES), help=f"[{','.join(SIZES)}]")
    parser.add_argument("--only", default="", help="only the cases whose name holds this, such as step or 'backward'")
    parser.add_argument("--device", help="cpu or cuda [cuda if there is one]")
    parser.add_argument("--out", type=Path, default=RESULTS / "ops.csv", help="the CSV file; the picture is next to it")
    args = parser.parse_args()
    with_warm_allocator("benchmarks.ops")

    import torch

    import mmfast
    from benchmarks.cases import selected
    from mmfast.ops import backends

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    backend = backends.choose(device)
    title = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(
        f"{backends.report()[backend.name]['detail']} ({backend.name} backend), torch {torch.__version__}, {title}\n"
        f"allocator on every side: {' '.join(f'{k}={v}' for k, v in ALLOCATOR.items())}\n"
    )
    torch._dynamo.config.cache_size_limit = 1000
    rows: list[dict[str, object]] = []
    for name in args.sizes.split(","):
        size = tuple(int(n) for n in name.split("x"))
        for case in selected(args.only):
            rows += measure(case, size, device, args.seconds)
            tables.write(rows, args.out)  # keep what was measured, whatever happens later
    from benchmarks.picture import draw

    draw(rows, args.out.with_suffix(".png"), f"mmfast {mmfast.__version__}, {title}")
    print(f"\n{args.out} and {args.out.with_suffix('.png')} (mmfast {mmfast.__version__})")


def measure(case, size: tuple[int, ...], device: str, seconds: float) -> list[dict[str, object]]:  # type: ignore[no-untyped-def]
    """Measure one case and size: a row for every provider, printed at once."""
    import torch

    from benchmarks.cases import COPY, EAGER, Setting, memory_copy

    torch.compiler.reset()
    providers = {**case.build(Setting(size, device)), COPY: memory_copy(size, case.tensors, device)}
    times = alternate(providers, seconds, device)
    elements, copy = torch.Size(size).numel(), times[COPY].p50
    compiled = [t for name, t in times.items() if name.startswith("torch.compile")]
    best = min(compiled, key=lambda t: t.p50) if compiled else None
    print(f"{'x'.join(map(str, size))}  {case.op}: {case.case}")
    rows = []
    for name, t in times.items():
        row = {
            "op": case.op,
            "case": case.case,
            "size": "x".join(map(str, size)),
            "device": device,
            "provider": name,
            **{f"{p}_us": round(getattr(t, p) * 1e6, 2) for p in ("p20", "p50", "p80")},
            "ns_per_element": round(t.p50 / elements * 1e9, 4),
            "of_copy_bandwidth": round(copy / t.p50, 3),
            "peak_bytes": peak_memory(providers[name], device),
        }
        rows.append(row)
        print(
            f"  {name:<32}{t.p50 * 1e6:12.1f} us {row['ns_per_element']:10.3f} ns/element "
            f"{copy / t.p50:7.2f} of a copy's bandwidth {int(row['peak_bytes']) / 2**20:9.1f} MiB"  # type: ignore[call-overload]
        )
    print(f"  mmfast is {_ratio(times, EAGER)}{_against(best, times['mmfast'])}{_ratio(times, 'diffusers')}\n")
    return rows


def _ratio(times: dict[str, Times], name: str) -> str:
    return f"{times[name].p50 / times['mmfast'].p50:.2f} times as fast as {name}, " if name in times else ""


def _against(best: Times | None, ours: Times) -> str:
    return f"{best.p50 / ours.p50:.2f} times as fast as the better torch.compile, " if best else ""


if __name__ == "__main__":
    main()
