"""How an option is declared: a dataclass field with its help and its bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

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
) -> Any:
    """A dataclass field with a help text and the values that it takes (min <= value, value > above, value <= max).

    choices: the values, or a registry by name: what is added to that later is a choice too.
    """
    choices = choices if isinstance(choices, Mapping) else tuple(choices)
    metadata = {"help": help, "min": min, "above": above, "max": max, "choices": choices}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


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
