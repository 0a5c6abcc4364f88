"""Builds csrc/cuda for the host, under the shim of cuda_shim/: _mmfast_cuda that runs without a GPU."""

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

import pytest
import torch

from mmfast.ops import around
from mmfast.ops.backends import cuda

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "tests" / "support" / "cuda_shim"
FLAGS = [
    "-std=c++17",
    "-O1",
    "-U_FORTIFY_SOURCE",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
]


def compiler():
    """The system's g++, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("g++")


def build():
    """The path of the extension, compiled unless a temporary folder has it from the very same sources."""
    import pybind11

    sources = sorted(p for d in (ROOT / "csrc", SHIM) for p in d.rglob("*") if p.suffix in {".h", ".cu", ".cpp"})
    state = [p.read_bytes() for p in sources] + [" ".join([*FLAGS, sys.version, pybind11.__version__]).encode()]
    digest = hashlib.sha256(b"\0".join(state)).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"mmfast_cuda_on_host_{digest}" / "_mmfast_cuda.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        include = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
        files = ["-include", str(SHIM / "cuda_shim.h"), str(SHIM / "shim.cpp"), "-o", str(part)]
        run = subprocess.run([compiler(), *FLAGS, *include, *files], capture_output=True, text=True)
        if run.returncode != 0:
            raise RuntimeError(f"the CUDA kernels do not compile for the host:\n{run.stderr[-4000:]}")
        part.replace(library)
    return library


def load():
    """The extension, and a function that makes the threads of a block run from the last to the first."""
    library = build()
    spec = importlib.util.spec_from_file_location("_mmfast_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, ctypes.CDLL(str(library)).run_threads_backwards


@pytest.fixture(scope="module")
def host():
    """cuda.py with the host's extension in place of the device's, and fresh memory full of NaN.

    Gives the extension, what turns the order of the threads, and the extension for a GPU, or None.
    """
    pytest.importorskip("pybind11", reason="pybind11's headers are needed to compile the CUDA kernels for the host")
    if compiler() is None:
        pytest.skip("there is no g++ to compile the CUDA kernels for the host")
    module, backwards = load()
    around.tell_extension(module)
    before, cuda._cuda = cuda._cuda, module
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory
    assert torch.ones(1).new_empty(3).isnan().all()
    yield module, backwards, before
    torch.use_deterministic_algorithms(False)
    cuda._cuda = before
