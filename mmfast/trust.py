"""Code that a config names is run on the user's own word alone: a config may come from anywhere."""

from __future__ import annotations

import importlib
from typing import Any

from mmfast.errors import MmfastError

_allowed: set[str] = set()


def allow_code(*names: str) -> None:
    """Let configs name this code of yours, each "module:function", in this process.

    The command line does so with --allow-code, and with every value of an option that names some.
    """
    for name in names:
        module, _, function = name.partition(":")
        if not module or not function:
            raise MmfastError(f"--allow-code is {name!r}; it should be module:function, as the config has it")
    _allowed.update(names)


def allow_named_in(value: Any) -> None:
    """Let configs name the code in a value that the user gave."""
    if isinstance(value, str) and all(value.partition(":")):
        _allowed.add(value)
    for x in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        allow_named_in(x)


def check_code(key: str, name: str) -> None:
    """Raise MmfastError where a config's `key` names code, module:function, that the user has not."""
    if ":" in name and name not in _allowed:
        raise MmfastError(
            f"{key} is {name!r}, code that a config names; where you trust it, add --allow-code {name} "
            f"(in Python: mmfast.trust.allow_code({name!r}))"
        )


def imported(key: str, name: str) -> Any:
    """What a config's `key` names, module:function. Raises MmfastError where the user has not, or it is not there."""
    check_code(key, name)
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MmfastError(f"{key} is {name!r}, which cannot be had: {reason}; it should be module:function") from None
