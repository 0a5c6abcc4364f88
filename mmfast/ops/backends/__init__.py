"""Which backends there are, which can run here, and which one serves a call.

A backend is one module with `name`, `devices`, `max_terms`, `unavailable()`, `describe()` and the functions of
reference.py, with its signatures: combine, step, squared_error, block_mask, random_words, and the sums of a backward
pass: scale, dots, row_sums. Each loads on its own, so that none can break the others; `register` adds another.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch

from mmfast.errors import BackendError
from mmfast.ops import around, extensions, reference

# In the order of preference. The last one always runs.
MODULES = {
    "cpu": "mmfast.ops.backends.cpu",
    "cuda": "mmfast.ops.backends.cuda",
    "triton": "mmfast.ops.backends.triton",
    "reference": "mmfast.ops.reference",
}

# Read once: a look at the environment costs as much as a small op.
_FORCED = os.environ.get("MMFAST_BACKEND")
_override: list[str] = []
_ADDED: list[str] = []  # backends of users


def register(name: str, module: str) -> None:
    """Add a backend of one's own, preferred to all others: its name, and its module's."""
    MODULES.update({name: module, **{known: MODULES.pop(known) for known in list(MODULES) if known != name}})
    for cached in (load, automatic, forced, has_kernel):
        cached.cache_clear()
    _ADDED.append(name)
    LOOKING.update(_looking())  # an extension would not ask it


@functools.cache
def load(name: str) -> tuple[ModuleType, str | None]:
    """The backend's module, and None or one line on why it cannot run."""
    module = importlib.import_module(MODULES[name])
    return module, module.unavailable()


@functools.cache
def automatic(device: str) -> ModuleType:
    """The first backend, in the order of preference, that serves this kind of device and can run."""
    reasons = []
    for name in MODULES:
        module, reason = load(name)
        if reason is not None:
            reasons.append(f"{name}: {reason}")
        elif device in module.devices:
            break
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
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot run here: {reason}; `mmfast info` lists those that can")
    if device not in module.devices and module is not reference:  # which serves any, as in `automatic`
        serves = ", ".join(module.devices)
        raise BackendError(f"backend {name!r} is forced, but the tensors are on {device!r}; it serves {serves}")
    return module


@functools.cache
def has_kernel(device: torch.device) -> bool:
    """Whether a backend but the reference serves this device."""
    found = [load(name) for name in MODULES if name != "reference"]
    return any(reason is None and device.type in module.devices for module, reason in found)


def forced_by_user() -> bool:
    """Whether a backend is forced, so that nothing else may be taken."""
    return bool(_override or _FORCED)


def choose(device: str) -> ModuleType:
    """The backend for tensors on this kind of device ("cpu", "cuda")."""
    if _override:
        return forced(_override[-1], device)
    return forced(_FORCED, device) if _FORCED else automatic(device)


def serving(device: str, terms: int) -> ModuleType:
    """The backend for a call of so many terms: kernels have room for some number of them, the reference for any."""
    backend = choose(device)
    return backend if terms <= backend.max_terms else reference


def for_terms(backend: ModuleType, terms: Sequence[Any]) -> ModuleType:
    """The backend, or the reference where the terms are too many for it."""
    return backend if len(terms) <= backend.max_terms else reference


# --- extensions that look at a call themselves --------------------------------------------------------------

# What such an extension says of a call whose tensors are not on its device (csrc/torch_state.h).
ELSEWHERE = 3


def looking(modules: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
    """By op, the functions of extensions that take what nobody has checked."""
    ops = ("combine", "step", "squared_error", "scale", "block_mask")
    return {name: tuple(getattr(module, f"look_{name}") for module in modules) for name in ops}


def _looking() -> dict[str, tuple[Any, ...]]:
    """Those of the extensions that can look for themselves; none where a backend is forced."""
    names = [] if forced_by_user() or _ADDED else ["_mmfast_cpu", "_mmfast_cuda"]
    found = {name: extensions.load(name)[0] for name in names if around.can_look(name)}
    return looking([module for module in found.values() if module is not None])


LOOKING = _looking()

if os.environ.get("MMFAST_ISA"):
    load("cpu")  # it sets the instruction set, also of calls that its extension serves by itself


def look(name: str, *args: Any) -> Any:
    """What the extension of the tensors' device makes of arguments that nobody has checked: a tuple, or a number."""
    for function in LOOKING[name]:
        found = function(*args)
        if type(found) is tuple:
            return found
    return None


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force a backend within a `with` block, as the environment variable MMFAST_BACKEND does for a process.

    Raises BackendError (a ValueError) if there is no such backend or it cannot run here.
    """
    if name not in MODULES:
        raise BackendError(f"backend {name!r} cannot run here: there is no such backend; `mmfast info` lists all")
    _, reason = load(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot run here: {reason}; `mmfast info` lists those that can")
    _override.append(name)
    LOOKING.update(_looking())
    try:
        yield
    finally:
        _override.pop()
        LOOKING.update(_looking())


def report() -> dict[str, dict[str, str | bool]]:
    """For each backend: whether it can run here, and what it is or why it cannot."""
    result: dict[str, dict[str, str | bool]] = {}
    for name in MODULES:
        module, reason = load(name)
        result[name] = {"available": reason is None, "detail": module.describe() if reason is None else str(reason)}
    return result
