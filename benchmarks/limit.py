"""How close the CPU's noise generator is to its limit: `python -m benchmarks.limit` (x86 with AVX-512, GCC).

Compiles the kernel's inner loop alone, counts its instructions by kind, and times it on one core within the first-level
cache. An AVX-512 core executes two vector instructions per cycle, on ports 0 and 5; loads and stores have other ports.
So the bound, in cycles, is half the number of vector instructions.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAGS = (
    "-O3 -std=c++17 -ffp-contract=off -fno-math-errno -fno-trapping-math "
    "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl"
)
KINDS = {
    "32 x 32 to 64 bit products": r"vpmuludq",
    "xors (three inputs in one)": r"vpternlog|vpxor",
    "shifts and shuffles": r"vps[rl]l|vpsra|vpshuf|vshuf|vunpck|vmovshdup",
    "fused multiply-adds, products": r"vfn?m(add|sub)|vmul",
    "conversions, integer sums, masks": r"vcvt|vpadd|vpand|vptest|vblend",
    "square roots": r"vsqrt",
}
ELEMENTS = 128  # per turn of the loop


def main() -> None:
    compiler = shutil.which("g++")
    if compiler is None or shutil.which("objdump") is None:
        sys.exit("this needs g++ and objdump")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "limit"
        source = Path(__file__).with_suffix(".cpp")
        subprocess.run([compiler, *FLAGS.split(), f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
        done = subprocess.run([program], capture_output=True, text=True)
        if done.returncode:
            sys.exit("this CPU has no AVX-512")
        cycle, element = map(float, done.stdout.split())
        counts = count(program)
    bound = sum(counts.values()) / 2 / ELEMENTS
    print(f"one turn of the loop, {ELEMENTS} normals:")
    for kind, number in counts.items():
        print(f"  {number:4d} {kind}")
    print(
        f"  {sum(counts.values()):4d} on two ports: at least {bound:.2f} cycles an element, {bound * cycle:.3f} ns at "
        f"{1 / cycle:.2f} GHz\nmeasured on one core: {element / cycle:.2f} cycles, {element:.3f} ns an element: "
        f"{bound * cycle / element:.0%} of the bound's speed"
    )


def count(program: Path) -> Counter[str]:
    """The vector instructions in the longest loop of `make`, by kind."""
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", program], capture_output=True, text=True, check=True)
    body = re.search(r"<make>:\n(.*?)\n\n", text.stdout + "\n\n", re.S)
    assert body is not None
    lines = [line.split("\t") for line in body[1].splitlines()]
    addresses = {line[0].strip(" :"): i for i, line in enumerate(lines)}
    loops = [
        (i - addresses[match[1]], addresses[match[1]], i)
        for i, line in enumerate(lines)
        if (match := re.match(r"j\w+\s+([0-9a-f]+)", line[1])) and addresses.get(match[1], i) < i
    ]
    _, first, last = max(loops)
    counts: Counter[str] = Counter()
    for line in lines[first:last]:
        name = line[1].split()[0]
        # Moves and broadcasts from memory are loads. Every instruction on registers takes a port.
        for kind, pattern in KINDS.items():
            if re.match(pattern, name):
                counts[kind] += 1
    return counts


if __name__ == "__main__":
    main()
