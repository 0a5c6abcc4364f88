"""Compile csrc/cuda for the host with the shim of tests/support/cuda_shim: a _mmfast_cuda that runs without a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHIM = ROOT / "tests" / "support" / "cuda_shim"
FLAGS = [
    "-std=c++17",
    "-U_FORTIFY_SOURCE",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
]


def compiler() -> str | None:
    """The system's g++, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("g++")


def build(optimise: str = "-O1") -> Path:
    """The path of the extension, compiled unless a temporary folder already has it from the same sources."""
    import pybind11

    flags = [*FLAGS, optimise]
    sources = sorted(p for d in (ROOT / "csrc", SHIM) for p in d.rglob("*") if p.suffix in {".h", ".cu", ".cpp"})
    state = [p.read_bytes() for p in sources] + [" ".join([*flags, sys.version, pybind11.__version__]).encode()]
    digest = hashlib.sha256(b"\0".join(state)).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"mmfast_cuda_on_host_{digest}" / "_mmfast_cuda.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        include = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
        files = ["-include", str(SHIM / "cuda_shim.h"), str(SHIM / "shim.cpp"), "-o", str(part)]
        run = subprocess.run([str(compiler()), *flags, *include, *files], capture_output=True, text=True)
        if run.returncode != 0:
            raise RuntimeError(f"the CUDA kernels do not compile for the host:\n{run.stderr[-4000:]}")
        part.replace(library)
    return library


def load(optimise: str = "-O1") -> tuple[Any, ctypes.CDLL]:
    """The extension and its library: run_threads_backwards(1) reverses a block's threads, run_nothing(1) skips them."""
    library = build(optimise)
    # A name of its own: the extension for a GPU may be loaded too, and pybind11 allows each module name once.
    spec = importlib.util.spec_from_file_location("cuda_on_host._mmfast_cuda", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, ctypes.CDLL(str(library))
