"""Options: how one is declared (a dataclass field with its help and its bounds), read, checked and listed."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmfast.errors import MmfastError, unknown

# The arithmetic of a network, in training and in sampling.
PRECISIONS = ("fp32", "bf16")


def option(
    default: Any,
    help: str,
    *,
    min: float | None = None,
    above: float | None = None,
    max: float | None = None,
    choices: Collection[Any] = (),
    read: Callable[[str, Any], Any] | None = None,
) -> Any:
    """A dataclass field with a help text and the values that it takes (min <= value, value > above, value <= max).

    choices: the values, or a registry by name: what is added to that later is a choice too. read: of the key and what
    stands in a config, the value; for what Python's types do not say. Raises MmfastError.
    """
    choices = choices if isinstance(choices, Mapping) else tuple(choices)
    metadata = {"help": help, "min": min, "above": above, "max": max, "choices": choices, "read": read}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def _structured(section: type, given: frozenset[str]) -> Any:
    """A dataclass as OmegaConf knows it, with the fields that are given alone: `merge` copies them, in milliseconds."""
    hints = typing.get_type_hints(section)
    fields = [(f.name, hints[f.name], copy.copy(f)) for f in dataclasses.fields(section) if f.name in given]
    return OmegaConf.structured(dataclasses.make_dataclass(section.__name__, fields))


def typed(section: type, part: DictConfig, prefix: str) -> Any:
    """A dataclass with the options of a config's part, each of its type. Raises MmfastError naming the key at fault."""
    try:
        of_these = _structured(section, frozenset(map(str, part)))
        found: Any = section(**vars(OmegaConf.to_object(OmegaConf.merge(of_these, part))))
    except TypeError as error:  # a list where keys belong, or the reverse: OmegaConf does not say which
        given, usual = dict(part.items()), section()
        wrong = {str(k): x for k, x in given.items() if OmegaConf.is_config(x)}
        key = next((k for k, x in wrong.items() if _is_list(x) != _is_list(getattr(usual, k, None))), None)
        if key is None:
            raise MmfastError(f"{prefix.rstrip('.') or 'config'}: {one_line(error)}") from None
        wanted = "a list" if _is_list(getattr(usual, key)) else "keys with values"
        raise MmfastError(f"{prefix}{key} is {wrong[key]}; it should hold {wanted}") from None
    except OmegaConfBaseException as error:
        key = f"{prefix}{getattr(error, 'full_key', None) or getattr(error, 'key', '')}"
        names = [f.name for f in dataclasses.fields(section)]
        last = key.removeprefix(prefix)
        if last and last.split(".")[0] not in names:
            near = difflib.get_close_matches(last, names, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(names)}"
            raise MmfastError(f"{prefix}{last} is no option; {hint} (`mmfast train --help` lists all)") from None
        raise MmfastError(f"{key}: {one_line(error)}") from None
    for field in dataclasses.fields(found):
        if read := field.metadata.get("read"):
            setattr(found, field.name, read(f"{prefix}{field.name}", getattr(found, field.name)))
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, ListConfig))


def one_line(error: Exception) -> str:
    """What it says first."""
    return str(error).strip().splitlines()[0]


def check(section: Any, prefix: str) -> None:
    """Raise MmfastError for the first option of a dataclass, or of those within it, that is out of its bounds."""
    for field in dataclasses.fields(section):
        value, bounds, key = getattr(section, field.name), field.metadata, f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check(value, f"{key}.")
            continue
        if bounds.get("choices") and value not in bounds["choices"]:
            raise unknown(key, value, bounds["choices"])
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                _check_number(key, number, bounds)


def _check_number(key: str, value: float, bounds: Any) -> None:
    low, above, high = bounds.get("min"), bounds.get("above"), bounds.get("max")
    if low is not None and not value >= low:
        raise MmfastError(f"{key} is {value}; it should be at least {low}")
    if above is not None and not value > above:
        raise MmfastError(f"{key} is {value}; it should be more than {above}")
    if high is not None and not value <= high:
        raise MmfastError(f"{key} is {value}; it should be at most {high}")


def listed(section: Any, prefix: str, but: Collection[str] = ()) -> list[str]:
    """A line for each option of a dataclass, and of the dataclasses within it but for some: for --help."""
    lines = []
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        if field.metadata.get("help"):
            choices = field.metadata["choices"]
            text = field.metadata["help"] + (f" ({', '.join(map(str, choices))})" if choices else "")
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            lines.append(f"  --{key:<36} {text} [{shown}]")
        elif dataclasses.is_dataclass(value) and field.name not in but:
            lines += listed(value, f"{key}.")
    return lines
