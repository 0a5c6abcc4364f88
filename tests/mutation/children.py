"""Copies of the checkout, and pytest run in them by processes forked from this one, which has torch imported."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What takes long to import, and knows nothing of the package.
HEAVY = (
    "torch", "torch._dynamo", "torch.optim", "torch.utils.data", "torch.utils.tensorboard", "numpy", "scipy.special",
    "scipy.stats", "sklearn.datasets", "sklearn.linear_model", "PIL.Image", "omegaconf", "safetensors.torch", "yaml",
    "hypothesis", "hypothesis.strategies", "pytest", "tqdm", "lpips", "diffusers.schedulers",
)  # fmt: skip
OPTIONS = ["-x", "-q", "-o", "addopts=", "-m", "not slow", "-p", "no:cacheprovider", "--strict-markers"]


def copy_checkout(to: Path) -> None:
    """The files that git knows or would add, without those it ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def preload() -> None:
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.freeze()  # pytest collects garbage twice: not what all children share


class Child:
    """`work()` in a process of its own, in a copy of the checkout; its exit status, or None where it took too long."""

    def __init__(self, tree: Path, work: Callable[[], int], seconds: float, compiles: bool = False) -> None:
        self.until = time.monotonic() + 120 + 10 * seconds
        self.pid = os.fork()
        if not self.pid:
            try:
                os.setsid()
                _enter(tree, tree / ".log", int(20 + 3 * seconds), compiles)
                status = int(work())
            except BaseException:
                traceback.print_exc()
                status = 3
            os._exit(status)

    def wait(self) -> int | None:
        while (ended := self.ended()) is None:
            time.sleep(0.02)
        return ended[0]

    def kill(self) -> None:
        """End it, and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def ended(self) -> tuple[int | None] | None:
        """None while it runs; then its status in a tuple, with all processes that it started gone."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and time.monotonic() < self.until:
            return None
        self.kill()
        if not pid:
            os.waitpid(self.pid, 0)
            return (None,)
        code = os.waitstatus_to_exitcode(status)
        return (None if code in (-signal.SIGXCPU, -signal.SIGKILL) else code,)


def compiled(tree: Path, tests: list[str]) -> None:
    """Leave the compiled files of the package and of these tests in the copy."""

    def collect() -> int:
        import pytest

        return pytest.main([*tests, *OPTIONS, "--collect-only"])

    if Child(tree, collect, 600, compiles=True).wait():
        print((tree / ".log").read_text())
        raise SystemExit("the tests cannot be collected as they are")


def _enter(tree: Path, log: Path, cpu: int, compiles: bool) -> None:
    """Nothing of the checkout is seen from here on. An endless loop ends by its CPU time: the machine may be busy."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(tree)
    for name in [name for name in sys.modules if name.split(".")[0] in ("mmfast", "tests")]:
        del sys.modules[name]
    sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, tree))]
    sys.meta_path.insert(0, importlib.machinery.PathFinder)  # before an editable install's finder
    # Two mutants of a second and of one size would be one to the cache of compiled files.
    sys.dont_write_bytecode = not compiles
    os.environ |= {"PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("COLUMNS", "PYTEST_ADDOPTS"):
        os.environ.pop(name, None)
