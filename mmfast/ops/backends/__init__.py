"""The list of backends, which of them can run here, and which one serves a call.

A backend is a module with `name`, `devices`, `max_terms`, `unavailable()`, `describe()` and these functions, with the
signatures of reference.py: combine, step, squared_error, block_mask, random_words, and for backward passes scale, dots,
row_sums. Each loads independently, so that none can break the others; `register` adds another.
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

# In order of preference. The last one always runs.
MODULES = {
    "cpu": "mmfast.ops.backends.cpu",
    "cuda": "mmfast.ops.backends.cuda",
    "triton": "mmfast.ops.backends.triton",
    "reference": "mmfast.ops.reference",
}

# Read once, since reading the environment costs as much as a small op.
_FORCED = os.environ.get("MMFAST_BACKEND")
_override: list[str] = []
_ADDED: list[str] = []  # user-defined backends


def register(name: str, module: str) -> None:
    """Add a custom backend, preferred to all others. module: the name of its module."""
    MODULES.update({name: module, **{known: MODULES.pop(known) for known in list(MODULES) if known != name}})
    for cached in (load, automatic, forced, has_kernel):
        cached.cache_clear()
    _ADDED.append(name)
    LOOKING.update(_looking())  # an extension that serves calls by itself would bypass it


@functools.cache
def load(name: str) -> tuple[ModuleType, str | None]:
    """The backend's module, and one line on why it cannot run (None if it can)."""
    module = importlib.import_module(MODULES[name])
    return module, module.unavailable()


@functools.cache
def automatic(device: str) -> ModuleType:
    """The first backend, in order of preference, that serves this kind of device and can run."""
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
    """The named backend. Raises BackendError if it cannot serve this kind of device."""
    if name not in MODULES:
        known = ", ".join(MODULES)
        raise BackendError(f"MMFAST_BACKEND is {name!r}; it should be one of {known}, or unset")
    module, reason = load(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot run here: {reason}; `mmfast info` lists those that can")
    if device not in module.devices and module is not reference:  # the reference serves any device, as in `automatic`
        serves = ", ".join(module.devices)
        raise BackendError(f"backend {name!r} is forced, but the tensors are on {device!r}; it serves {serves}")
    return module


@functools.cache
def has_kernel(device: torch.device) -> bool:
    """Whether a backend other than the reference serves this device."""
    found = [load(name) for name in MODULES if name != "reference"]
    return any(reason is None and device.type in module.devices for module, reason in found)


def forced_by_user() -> bool:
    """Whether a backend is forced, so that no other may be used."""
    return bool(_override or _FORCED)


def choose(device: str) -> ModuleType:
    """The backend for tensors on this kind of device ("cpu", "cuda")."""
    if _override:
        return forced(_override[-1], device)
    return forced(_FORCED, device) if _FORCED else automatic(device)


def serving(device: str, terms: int) -> ModuleType:
    """The backend for a call with this many terms: kernels have a maximum, and the reference has none."""
    backend = choose(device)
    return backend if terms <= backend.max_terms else reference


def for_terms(backend: ModuleType, terms: Sequence[Any]) -> ModuleType:
    """The backend, or the reference if it cannot take this many terms."""
    return backend if len(terms) <= backend.max_terms else reference


# --- extensions that inspect a call themselves --------------------------------------------------------------

# What such an extension returns if the tensors are not on its device (csrc/torch_state.h).
ELSEWHERE = 3


def looking(modules: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
    """For each op, the functions of the extensions that take unchecked arguments."""
    ops = ("combine", "step", "squared_error", "scale", "block_mask")
    return {name: tuple(getattr(module, f"look_{name}") for module in modules) for name in ops}


def _looking() -> dict[str, tuple[Any, ...]]:
    """`looking` of the extensions that can inspect a call themselves; none if a backend is forced or added."""
    names = [] if forced_by_user() or _ADDED else ["_mmfast_cpu", "_mmfast_cuda"]
    found = {name: extensions.load(name)[0] for name in names if around.can_look(name)}
    return looking([module for module in found.values() if module is not None])


LOOKING = _looking()

if os.environ.get("MMFAST_ISA"):
    load("cpu")  # sets the instruction set, also for calls that the extension serves by itself


def look(name: str, *args: Any) -> Any:
    """Run the op in the extension for the tensors' device, on unchecked arguments: a tuple of results, or None."""
    for function in LOOKING[name]:
        found = function(*args)
        if type(found) is tuple:
            return found
    return None


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force a backend inside a `with` block, as the environment variable MMFAST_BACKEND does for a process.

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
    """For each backend, whether it can run here ("available"), and a description or the reason why not ("detail")."""
    result: dict[str, dict[str, str | bool]] = {}
    for name in MODULES:
        module, reason = load(name)
        result[name] = {"available": reason is None, "detail": module.describe() if reason is None else str(reason)}
    return result
