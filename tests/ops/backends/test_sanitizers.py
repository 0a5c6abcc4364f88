"""The C++ tests of the kernels (csrc/tests), under the address and undefined-behaviour sanitizers."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
COMPILER = next(filter(None, map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])), None)
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def why_not(folder, compiler):
    """One line on why the tests cannot be built here, or None where they can."""
    if not (ROOT / "csrc" / "tests").is_dir():
        return "the C++ tests are not beside the Python ones"
    if shutil.which("cmake") is None or compiler is None or importlib.util.find_spec("pybind11") is None:
        return "needs cmake, a C++ compiler and pybind11"
    source = folder / "probe.cpp"
    source.write_text("int main() {}\n")
    built = subprocess.run([compiler, *FLAGS, source, "-o", folder / "probe"], capture_output=True)
    if built.returncode or subprocess.run([folder / "probe"], capture_output=True).returncode:
        return "the compiler has no sanitizers that run here"
    return None


def build_and_run(folder, *options, compiler=COMPILER):
    """What the programme of the C++ tests prints, having passed."""
    reason = why_not(folder, compiler)
    if reason:
        pytest.skip(reason)
    pybind11 = Path(importlib.util.find_spec("pybind11").origin).parent / "share" / "cmake" / "pybind11"
    configure = [
        "cmake", "-S", ROOT, "-B", folder / "build", "-DMMFAST_SANITIZE=ON", "-DMMFAST_CUDA=OFF",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}", *options,
    ]  # fmt: skip
    build = ["cmake", "--build", folder / "build", "--target", "kernel_tests", "--parallel", "2"]
    for command in (configure, build, [folder / "build" / "csrc" / "tests" / "kernel_tests"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    return done.stdout


@pytest.mark.slow
def test_the_baseline_passes_under_the_sanitizers(tmp_path):
    """The kernels for any CPU, which share all but the vectors with the others: a third of the time."""
    assert "baseline" in build_and_run(tmp_path, "-DMMFAST_X86=OFF", "-DMMFAST_NEON=OFF").splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [COMPILER, shutil.which("clang++")], ids=["the usual compiler", "clang"])
def test_every_instruction_set_passes_under_the_sanitizers(tmp_path, compiler):
    """Every instruction set that this machine has, in the same bits."""
    assert "baseline" in build_and_run(tmp_path, compiler=compiler).splitlines()[0]


def test_new_memory_is_poisoned():
    """conftest.py's `poison` holds in every test: an output that no kernel wrote is NaN."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert (
            torch.empty(1000, dtype=dtype).isnan().all() and torch.empty_like(torch.ones(9, dtype=dtype)).isnan().all()
        )
