"""The user's permission, without which no code that a config names is run, and no folder that it names is written to.

A config may come from anywhere. The user permits a value by giving it for an option, and for that option alone, which
is known by the last part of its key.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from mmfast.errors import MmfastError

# (option, value), or ("", name) for code that any option may name.
_allowed: set[tuple[str, str]] = set()


def allow_code(*names: str) -> None:
    """Let configs name this code of yours, each "module:function", in this process.

    On the command line, --allow-code does this, and so does giving the code as the value of the option itself.
    """
    for name in names:
        module, _, function = name.partition(":")
        if not module or not function:
            raise MmfastError(f"--allow-code is {name!r}; it should be module:function, as in the config")
        _allowed.add(("", name))


def permit(key: str, value: Any) -> None:
    """Permit what the user gave for an option, or for each of the options in a dict."""
    if isinstance(value, dict):
        for name, x in value.items():
            permit(f"{key}.{name}", x)
    elif isinstance(value, list):
        for x in value:
            permit(key, x)
    else:
        _allowed.add((_option(key), str(value)))


def permitted(key: str, value: str) -> bool:
    """Whether the user gave this value for an option of this name, in any section."""
    return (_option(key), value) in _allowed


def _option(key: str) -> str:
    return key.rpartition(".")[2]


def names_code(name: str) -> bool:
    """Whether it is module:function, and not the path of a file or a folder with a colon in its name."""
    return ":" in name and not os.path.isabs(name)


def check_code(key: str, name: str) -> None:
    """Raise MmfastError if a config's `key` names code, module:function, that the user has not permitted."""
    if names_code(name) and ("", name) not in _allowed and not permitted(key, name):
        raise MmfastError(
            f"{key} is {name!r}, code that a config names; if you trust it, add --allow-code {name} "
            f"(in Python: mmfast.trust.allow_code({name!r}))"
        )


def imported(key: str, name: str) -> Any:
    """Import what a config's `key` names, module:function. Raises MmfastError if it is not permitted or not found."""
    check_code(key, name)
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MmfastError(
            f"{key} is {name!r}, which cannot be imported: {reason}; it should be module:function, with a module that "
            "can be imported"
        ) from None


def source_digest(module: str) -> str:
    """A hash of a module's file, so that cached results of its code are not used after the code has changed.

    Empty for a module without a file. Imports the package of a module in a package that is not imported yet.
    """
    loaded = sys.modules.get(module)
    try:
        found = loaded.__spec__ if loaded is not None else importlib.util.find_spec(module)
        file = getattr(loaded, "__file__", None) or (found.origin if found is not None else None)
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except (ImportError, AttributeError, ValueError, OSError):
        return ""
