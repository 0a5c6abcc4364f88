"""Which backends there are, which can run here, and which one serves a call.

A backend is one module of this package with `name`, `devices`, `unavailable()`, `describe()` and a function for every
op of library.py (signatures: reference.py). Each loads on its own, so that none can break the others.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from types import ModuleType

from mmfast.errors import BackendError

# In the order of preference. The last one always runs.
MODULES = {
    "cpu": "mmfast.ops.cpu",
    "cuda": "mmfast.ops.cuda",
    "triton": "mmfast.ops.triton",
    "reference": "mmfast.ops.reference",
}

# Read once: a look at the environment costs as much as a small op.
_FORCED = os.environ.get("MMFAST_BACKEND")
_override: list[str] = []


@functools.cache
def load(name: str) -> tuple[ModuleType | None, str | None]:
    """The backend's module, and None or one line on why it cannot run."""
    module = importlib.import_module(MODULES[name])
    return module, module.unavailable()


@functools.cache
def automatic(device: str) -> ModuleType:
    """The first backend, in the order of preference, that serves this kind of device and can run."""
    reasons = []
    for name in MODULES:
        module, reason = load(name)
        if module is None or reason is not None:
            reasons.append(f"{name}: {reason}")
        elif device in module.devices:
            break
    assert module is not None  # the reference, which is last, always runs
    if module.name == "reference":
        warnings.warn(
            f"mmfast computes on {device} in plain torch, slowly: {'; '.join(reasons)}", RuntimeWarning, stacklevel=2
        )
    return module


@functools.cache
def forced(name: str, device: str) -> ModuleType:
    """The named backend; raises BackendError where it cannot serve this kind of device."""
    if name not in MODULES:
        known = ", ".join(MODULES)
        raise BackendError(f"MMFAST_BACKEND is {name!r}; it should be one of {known}, or unset")
    module, reason = load(name)
    if module is None or reason is not None:
        raise BackendError(f"backend {name!r} cannot run here: {reason}; `mmfast info` lists those that can")
    if device not in module.devices:
        serves = ", ".join(module.devices)
        raise BackendError(f"backend {name!r} is forced, but the tensors are on {device!r}; it serves {serves}")
    return module


def forced_by_user() -> bool:
    """Whether a backend is forced, so that nothing else may be taken."""
    return bool(_override or _FORCED)


def choose(device: str) -> ModuleType:
    """The backend for tensors on this kind of device ("cpu", "cuda")."""
    if _override:
        return forced(_override[-1], device)
    return forced(_FORCED, device) if _FORCED else automatic(device)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force a backend within a `with` block, as the environment variable MMFAST_BACKEND does for a process.

    Raises BackendError (a ValueError) if there is no such backend or it cannot run here.
    """
    module, reason = load(name) if name in MODULES else (None, "there is no such backend")
    if module is None or reason is not None:
        raise BackendError(f"backend {name!r} cannot run here: {reason}; `mmfast info` lists those that can")
    _override.append(name)
    try:
        yield
    finally:
        _override.pop()


def report() -> dict[str, dict[str, str | bool]]:
    """For each backend: whether it can run here, and what it is or why it cannot."""
    result: dict[str, dict[str, str | bool]] = {}
    for name in MODULES:
        module, reason = load(name)
        available = module is not None and reason is None
        detail = module.describe() if module is not None and available else str(reason)
        result[name] = {"available": available, "detail": detail}
    return result
