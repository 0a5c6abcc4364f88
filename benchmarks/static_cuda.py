"""The CUDA C++ kernels of csrc/cuda, compiled by nvcc for gpu_static.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu_static_types import CannotCompileError, Row

SOURCES = ["elementwise", "sums", "masks"]
FOLDER = Path(__file__).resolve().parent.parent / "csrc" / "cuda"

# The element types as mangled in a kernel's name; t, j and m are the masks' unsigned integers.
TYPES = {
    "f": ("float32", 4), "d": ("float64", 8), "NS_4bf16E": ("bfloat16", 2), "NS_3f16E": ("float16", 2),
    "t": ("2 bytes", 2), "j": ("4 bytes", 4), "m": ("8 bytes", 8),
}  # fmt: skip
NAME = re.compile(
    r"_ZN6mmfast4cuda\d+(combine|step|squared_error|dots|random_words|block_mask)I(f|d|NS_4bf16E|NS_3f16E|t|j|m|)Lb([01])E"
    r"(?:Lb([01])E)?"
)

ITEM = 8192  # elements per partial sum, as in task.h
# By kernel: the typical case; how many tensors of the output's size it reads and writes in total; the doubles that each
# item's partial sums write and read again, the only bytes above the minimum; and what a thread moves as whole vectors.
CASES: dict[str, tuple[str, float, int, tuple[str, ...]]] = {
    "combine": ("q_sample, 2 modalities: reads z0 and 2 encodings, writes z_t and eps", 5, 0, ("loads", "stores")),
    "step": ("2 modalities, clamped: reads z_t, eps and 2 encodings, writes z_s", 5, 0, ("loads", "stores")),
    "squared_error": ("loss and gradient: reads a prediction, makes its noise again", 2, 1, ("loads", "stores")),
    "dots": ("backward of q_sample, 2 modalities: reads the gradient and 3 terms", 4, 4, ("loads",)),
    "block_mask": ("3 channels, nothing hidden (what is hidden is not read)", 7 / 3, 0, ("loads", "stores")),
    "random_words": ("an element is a word of 8 bytes", 1, 0, ("stores",)),
}


def tool(name: str) -> str:
    """The path of a CUDA binary tool: on PATH, next to nvcc, or Triton's copy."""
    nvcc, triton = shutil.which("nvcc"), find_spec("triton")
    places = [Path(nvcc).resolve().parent] if nvcc else []
    places += [Path(p) / "backends" / "nvidia" / "bin" for p in (triton and triton.submodule_search_locations) or []]
    found = shutil.which(name) or next((str(p / name) for p in places if (p / name).exists()), None)
    if found is None:
        raise CannotCompileError(f"there is no {name}")
    return found


def compile_source(source: str, target: str, folder: str) -> tuple[str, str]:
    """The assembler's report on a source's kernels, and their machine code."""
    cubin = str(Path(folder) / f"{source}.{target}.cubin")
    command = [tool("nvcc"), "-std=c++17", "-O3", f"-arch={target}", "-cubin", "-Xptxas", "-v", "-o", cubin]
    compiled = subprocess.run([*command, str(FOLDER / f"{source}.cu")], capture_output=True, text=True)
    if compiled.returncode != 0:
        raise CannotCompileError(f"{source}.cu does not compile for {target}: {compiled.stderr.strip()[-300:]}")
    code = subprocess.run([tool("nvdisasm"), "-c", cubin], capture_output=True, text=True)
    if code.returncode != 0:
        raise CannotCompileError(f"nvdisasm cannot read {target}: {code.stderr.strip()[-300:]}")
    return compiled.stderr, code.stdout


def widths(code: str, instruction: str) -> tuple[int, int]:
    """How many instructions of this kind have 128 bits or more, and how many have fewer."""
    found = re.findall(rf"\b{instruction}\.[\w.]+", code)
    wide = sum(".128" in x or ".256" in x for x in found)
    return wide, len(found) - wide


def kernel_rows(target: str, report: str, code: str) -> list[Row]:
    """The rows of one source: from ptxas's report, and each function's section of the code."""
    sections = dict(re.findall(r"^\.text\.(\S+):\n(.*?)(?=^\.text\.|\Z)", code, re.M | re.S))
    found = []
    pattern = r"entry function '(\S+)' for.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    for symbol, stores, loads, registers in re.findall(pattern, report, re.S):
        name = NAME.match(symbol)
        if name is None:
            continue
        kernel, kind, whole, each = name.groups()
        type_name, size = TYPES[kind] if kind else ("int64", 8)
        note, tensors, doubles, expects = CASES[kernel]
        loads_128, loads_narrow = widths(sections[symbol], "LDG")
        stores_128, stores_narrow = widths(sections[symbol], "STG")
        found.append(
            Row(
                backend="cuda",
                kernel=f"{kernel} {type_name}"
                + (", rows of each term" if each == "1" else "")
                + (" by element" if whole == "0" else ""),
                target=target,
                registers=int(registers),
                spills=int(stores) + int(loads),
                loads_128=loads_128,
                stores_128=stores_128,
                loads_narrow=loads_narrow,
                stores_narrow=stores_narrow,
                bytes_per_element=tensors * size + 16 * doubles / ITEM,
                least_bytes_per_element=tensors * size,
                note=note,
                expects=expects if whole == "1" else (),
            )
        )
    return found


def rows(targets: Sequence[str]) -> list[Row]:
    """Every kernel for every target, such as "sm_90"; takes about twenty seconds per target."""
    with tempfile.TemporaryDirectory() as folder:
        found = [
            row
            for target in targets
            for source in SOURCES
            for row in kernel_rows(target, *compile_source(source, target, folder))
        ]
    return sorted(found, key=lambda r: (list(CASES).index(r.kernel.split()[0]), "by element" in r.kernel, r.kernel))
