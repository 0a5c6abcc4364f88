"""Load the compiled kernels `_mmfast_cpu` and `_mmfast_cuda`, each independently and once, or say why one is missing.

They are installed next to the package, not inside it, so that a checkout on Python's path never hides them.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

# The interface version shared with the extensions (csrc/interface.h). Increment it when a call between them changes.
INTERFACE = 11


@functools.cache
def load(name: str) -> tuple[Any, str]:
    """The extension module and "", or None and one line on why it cannot be used."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return None, f"the extension {name} is not built ({error}); `pip install .` builds it"
    found = getattr(module, "interface", None)
    if found != INTERFACE:
        return None, (
            f"the extension {module.__file__} has interface {found}, and this mmfast needs {INTERFACE}; "
            "`pip install .` builds it anew"
        )
    return module, ""
