"""Static checks of the GPU kernels' machine code: python -m benchmarks.gpu_static [--json FILE]

Each kernel is compiled for each target, and its registers, spills and widths of global memory accesses are reported.
The times are the bytes moved in a typical case divided by the card's bandwidth from its data sheet; no GPU is used. The
exit code is 1 if a kernel spills or lacks 128-bit loads or stores where a thread moves whole vectors, or if nothing
could be compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path

from benchmarks.gpu_static_types import CannotCompileError, Row

# A source of compiled kernels is a module with rows(targets) -> list[Row]; it raises CannotCompileError if it cannot.
SOURCES = {"cuda": "benchmarks.static_cuda", "triton": "benchmarks.static_triton"}

# Memory bandwidth in GB/s, from the vendor's data sheets.
CARDS = {
    "sm_80": ("A100 80GB", 2039),
    "sm_90": ("H100 SXM", 3350),
    "sm_100": ("B200", 8000),
    "sm_120": ("RTX 5090", 1792),
}
SHAPES = [(64, 3, 64, 64), (128, 3, 256, 256)]
NO_GPU = (
    "No GPU ran any of it: the times are the bytes moved over the data sheet's bandwidth, and nothing was measured."
)


def collect(backends: Sequence[str], targets: Sequence[str]) -> tuple[list[Row], dict[str, str]]:
    """The rows of the backends, and the reasons for those that have none."""
    rows, missing = [], {}
    for backend in backends:
        module = SOURCES[backend]
        try:
            rows += importlib.import_module(module).rows(targets)
        except CannotCompileError as error:
            missing[backend] = str(error)
        except ModuleNotFoundError as error:
            missing[backend] = f"there is no {error.name}"
    return rows, missing


def microseconds(row: Row, shape: Sequence[int]) -> float:
    """The time to move the row's bytes at the bandwidth of the target's card."""
    return prod(shape) * row.bytes_per_element / (CARDS[row.target][1] * 1e9) * 1e6


def table(rows: Sequence[Row]) -> str:
    shapes = ["x".join(map(str, shape)) for shape in SHAPES]
    head = ["backend", "kernel", "target", "registers", "spills", "LDG.128", "other LDG", "STG.128", "other STG"]
    head += ["B/element", "least", *(f"us {s}" for s in shapes), "problem"]
    lines = [head]
    for r in rows:
        counts = [r.registers, r.spills, r.loads_128, r.loads_narrow, r.stores_128, r.stores_narrow]
        times = [f"{microseconds(r, shape):.1f}" for shape in SHAPES]
        traffic = [f"{r.bytes_per_element:.2f}", f"{r.least_bytes_per_element:.2f}"]
        lines.append([r.backend, r.kernel, r.target, *map(str, counts), *traffic, *times, r.problem])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = 3  # columns of words
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < left or i == len(head) - 1 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_static", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(CARDS), help="comma-separated, of " + ", ".join(CARDS))
    parser.add_argument("--backends", default=",".join(SOURCES), help="comma-separated, of " + ", ".join(SOURCES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    targets, backends = options.targets.split(","), options.backends.split(",")
    for given, known in ((targets, CARDS), (backends, SOURCES)):
        unknown = [x for x in given if x not in known]
        if unknown:
            parser.error(f"{', '.join(unknown)}: it should be one of {', '.join(known)}")

    rows, missing = collect(backends, targets)
    print(table(rows))
    for target in targets:
        name, bandwidth = CARDS[target]
        print(f"{target}: {name}, {bandwidth} GB/s by its data sheet")
    for note in sorted({f"{r.kernel.split()[0]}: {r.note}" for r in rows if r.note}):
        print(note)
    for backend, reason in missing.items():
        print(f"{backend}: not compiled, {reason}")
    print(NO_GPU)
    if options.json:
        entries = [
            {**asdict(r), "problem": r.problem, "microseconds": [microseconds(r, shape) for shape in SHAPES]}
            for r in rows
        ]
        options.json.write_text(json.dumps({"note": NO_GPU, "shapes": SHAPES, "rows": entries}, indent=1) + "\n")
    problems = [f"{r.kernel} for {r.target}: {r.problem}" for r in rows if r.problem]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
