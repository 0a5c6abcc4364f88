"""The report on compiled GPU kernels: its frame, and one target of the CUDA kernels where there is nvcc."""

import json
import shutil
import sys
import types

import pytest

from benchmarks import gpu_static, static_cuda
from benchmarks.gpu_static_types import CannotCompileError, Row


def row(**changed):
    counts = dict(registers=40, spills=0, loads_128=3, stores_128=2, loads_narrow=5, stores_narrow=0)
    return Row(**{"backend": "toy", "kernel": "combine float32", "target": "sm_90", **counts,
                  "bytes_per_element": 20.0, "least_bytes_per_element": 20.0, **changed})  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
    """A source of kernels whose rows the test chooses."""
    module = types.ModuleType("toy_kernels")
    monkeypatch.setitem(sys.modules, "toy_kernels", module)
    monkeypatch.setattr(gpu_static, "SOURCES", {"toy": "toy_kernels"})
    return module


def test_good_kernels(toy, tmp_path, capsys):
    toy.rows = lambda targets: [row(target=t) for t in targets]
    assert gpu_static.main(["--targets", "sm_90,sm_80", "--json", str(tmp_path / "rows.json")]) == 0
    printed = capsys.readouterr().out
    assert "No GPU ran any of it" in printed and "H100" in printed and "3350" in printed
    saved = json.loads((tmp_path / "rows.json").read_text())
    assert [r["target"] for r in saved["rows"]] == ["sm_90", "sm_80"]
    # 64 * 3 * 64 * 64 elements of 20 bytes at 3350 GB/s
    assert saved["rows"][0]["microseconds"][0] == pytest.approx(4.695, rel=1e-3)


@pytest.mark.parametrize(
    "change, problem",
    [
        (dict(spills=8), "spills 8 bytes"),
        (dict(loads_128=0), "no 128-bit loads"),
        (dict(stores_128=0), "no 128-bit stores"),
    ],
)
def test_bad_kernels_fail(toy, capsys, change, problem):
    toy.rows = lambda targets: [row(), row(**change)]
    assert gpu_static.main(["--targets", "sm_90"]) == 1
    assert problem in capsys.readouterr().err
    assert row(stores_128=0, expects=("loads",)).problem == ""


def test_nothing_compiled_fails(toy, capsys):
    def rows(targets):
        raise CannotCompileError("there is no compiler")

    toy.rows = rows
    assert gpu_static.main([]) == 1
    assert "toy: not compiled, there is no compiler" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_masks_of_the_cuda_kernels(tmp_path):
    """The quickest source to compile; the whole report is `python -m benchmarks.gpu_static`."""
    try:
        found = static_cuda.kernel_rows("sm_90", *static_cuda.compile_source("masks", "sm_90", str(tmp_path)))
    except CannotCompileError as error:
        pytest.skip(str(error))
    kernels = {r.kernel for r in found}
    assert {"block_mask 4 bytes", "block_mask 2 bytes by element", "random_words int64"} <= kernels
    assert all(r.problem == "" and 8 < r.registers < 255 for r in found)
    assert all(r.loads_128 > 0 for r in found if r.kernel == "block_mask 4 bytes")
