"""Options: how one is declared (a dataclass field with its help and its bounds), read, checked and listed."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmfast.errors import MmfastError, unknown
from mmfast.plain_yaml import load_value
from mmfast.trust import permit

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
    path: bool | Callable[[str, str], bool] = False,
) -> Any:
    """A dataclass field with a help text and the values that it takes (min <= value, value > above, value <= max).

    A number is finite, unless max is infinity.
    choices: the values, or a registry by name: what is added to that later is a choice too. read: of the key and what
    stands in a config, the value; for what Python's types do not say. Raises MmfastError. path: whether the text is the
    path of a file or a folder; or a function of the text, and of the path that it would be, where some are no paths.
    """
    choices = choices if isinstance(choices, Mapping) else tuple(choices)
    metadata = {"help": help, "min": min, "above": above, "max": max, "choices": choices, "read": read, "path": path}
    return _field(default, metadata)


def with_default(section: type, name: str, default: Any) -> Any:
    """The option `name` of a dataclass with another default, for a dataclass that inherits it."""
    return _field(default, next(f.metadata for f in dataclasses.fields(section) if f.name == name))


def _field(default: Any, metadata: Mapping[str, Any]) -> Any:
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the values of a config come from: a file, with options of the command line put over it.

    folder: what relative paths of the file are relative to; "" is the current folder, and with None they stay as they
    are. texts: by key, what the command line says of it as it stands there. said: the keys that have their value from
    there. Their paths are relative to the current folder.
    """

    folder: str | None = ""
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    said: frozenset[str] = frozenset()

    def path(self, key: str, text: str) -> str | None:
        """The absolute path that a text is, as the value of an option; None where it stays as it is."""
        folder = "" if key in self.said else self.folder
        return None if folder is None else absolute(key, folder, text)


def absolute(key: str, folder: str, text: str) -> str:
    """A path below a folder ("" is the current one) as an absolute one, without `..`. Raises MmfastError naming key."""
    try:
        full = text if os.path.isabs(text) else os.path.join(os.path.abspath(folder), text)
        plain, real = os.path.normpath(full), os.path.realpath(full)
        return plain if os.path.realpath(plain) == real else real  # after a link, `..` leads elsewhere than it reads
    except (OSError, ValueError) as error:  # a current folder that is gone; a null byte
        raise MmfastError(f"{key} is {text!r}, no path: {getattr(error, 'strerror', None) or error}") from None


def leads_to(path: str) -> str:
    """The same text for all paths to one place."""
    try:
        return os.path.realpath(path) if path else ""
    except (OSError, ValueError):
        return path


_structured = functools.cache(OmegaConf.structured)  # takes milliseconds; `merge` copies it


def typed(section: type, part: DictConfig, prefix: str, origin: Origin) -> Any:
    """A dataclass with the options of a config's part, each of its type. Raises MmfastError naming the key at fault.

    Of an option that is a text the value is what the command line says, as it stands there; paths are absolute.
    """
    plain: Any = OmegaConf.to_container(part)
    plain = _of_their_types(section(), plain, prefix, origin.texts)
    try:
        found: Any = OmegaConf.to_object(OmegaConf.merge(_structured(section), plain))
    except TypeError as error:  # a list where keys belong, or the reverse: OmegaConf does not say which
        usual = section()
        lists = {field.name for field in dataclasses.fields(usual) if isinstance(getattr(usual, field.name), list)}
        wrong = {str(k): x for k, x in plain.items() if isinstance(x, (dict, list))}
        key = next((k for k, x in wrong.items() if isinstance(x, list) != (k in lists)), None)
        if key is None:
            raise MmfastError(f"{prefix.rstrip('.') or 'config'}: {one_line(error)}") from None
        wanted = "a list" if key in lists else "keys with values"
        raise MmfastError(f"{prefix}{key} is {wrong[key]}; it should hold {wanted}") from None
    except OmegaConfBaseException as error:
        last = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "")
        _check_option(section, last, prefix)
        said = _of_another_type(section(), plain, last, prefix) or f"{prefix}{last}: {one_line(error)}"
        raise MmfastError(said) from None
    for field in dataclasses.fields(found):
        if read := field.metadata.get("read"):
            setattr(found, field.name, read(f"{prefix}{field.name}", getattr(found, field.name)))
    for key, owner, name, is_path in paths(found, prefix):
        text = getattr(owner, name)
        full = origin.path(key, text) if text else None
        if full is not None and (is_path is True or is_path(text, full)):
            setattr(owner, name, full)
            if key in origin.said:
                permit(key, full)
    return found


def _check_option(section: type, key: str, prefix: str) -> None:
    """Raise MmfastError where a dataclass, or the one within it that the key leads to, has no such option."""
    names = [f.name for f in dataclasses.fields(section)]
    first, _, rest = re.sub(r"\[.*", "", key).partition(".")
    if first in names:
        inner = getattr(section(), first)
        if rest and dataclasses.is_dataclass(inner):
            _check_option(type(inner), rest, f"{prefix}{first}.")
    elif key:
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(names)}"
        raise MmfastError(f"{prefix}{key} is no option; {hint} (`mmfast train --help` lists all)") from None


def paths(section: Any, prefix: str) -> Iterator[tuple[str, Any, str, Any]]:
    """The options of a dataclass, and of those within it, that are paths: key, owner, name, and which texts are."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from paths(value, f"{key}.")
        elif isinstance(value, str) and (is_path := field.metadata.get("path")):
            yield key, section, field.name, is_path


def _of_their_types(usual: Any, part: dict[str, Any], prefix: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """The part, with what OmegaConf would take for another value than was meant; `usual`: a dataclass of defaults."""
    for field in dataclasses.fields(usual):
        key, default = f"{prefix}{field.name}", getattr(usual, field.name)
        convert = _CONVERTED.get(_type_of(field))
        if field.name not in part:
            continue
        if isinstance(default, list):
            part[field.name] = _listed(part[field.name], texts.get(key, ""))
        if dataclasses.is_dataclass(default) and isinstance(part[field.name], dict):
            part[field.name] = _of_their_types(default, part[field.name], f"{key}.", texts)
        elif convert is not None:
            value, said = part[field.name], texts.get(key, "")
            if field.type == "str" and key in texts and said[:1] not in ("'", '"') and load_value(said, key) == value:
                value = said
            part[field.name] = convert(key, value)
    return part


def _type_of(field: Any) -> str:
    return str(field.type).removesuffix(" | None")


def _listed(value: Any, said: str) -> Any:
    """One value as the list of it; said: on the command line, where commas part several, as in 1,2,4."""
    if isinstance(value, (str, bool, int, float)):
        quoted = not said or said.strip()[0] in ("'", '"')
        return [value] if quoted else [x.strip() for x in said.split(",")]
    return value


def _text(key: str, value: Any) -> Any:
    """Texts as they are. Raises MmfastError for what YAML has read as something else, and cannot be given back."""
    if isinstance(value, (list, dict)):
        for x in value if isinstance(value, list) else [*value, *value.values()]:
            _text(key, x)
    elif isinstance(value, (bool, float)):
        shown = str(value).lower() if isinstance(value, bool) else value
        raise MmfastError(f"{key} is {shown}, which YAML reads as no text; put it in quotes, as it should be")
    return value


def _whole(key: str, value: Any) -> Any:
    """1e5, as text or as a number with nothing after the point, as the whole number that it is."""
    if isinstance(value, float) or (isinstance(value, str) and not value.strip().lstrip("+-").isdecimal()):
        with contextlib.suppress(ValueError, OverflowError):
            if (number := float(value)) == int(number):
                return int(number)
    return value


def _truth(key: str, value: Any) -> Any:
    if isinstance(value, (int, float)) and value not in (0, 1):
        raise MmfastError(f"{key} is {value}; it should be true or false")
    return value


# What OmegaConf would take, or make, of values that are not of an option's type.
_CONVERTED: dict[str, Callable[[str, Any], Any]] = {
    "str": _text,
    "list[str]": _text,
    "dict[str, str]": _text,
    "int": _whole,
    "bool": _truth,
}


# What an option of a type takes, in words.
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list[int]": "a list of whole numbers, as [1, 2]",
    "list[float]": "a list of numbers, as [0.5, 1]",
    "list[str]": "a list of texts, as [a, b]",
    "dict[str, float]": "a number for each name, as {a: 0.2}",
}


def _of_another_type(usual: Any, part: dict[str, Any], path: str, prefix: str) -> str:
    """What an error says of the value at a path, if its option is of a type that has words."""
    name, _, rest = path.partition(".")
    name = name.partition("[")[0]
    field = next((f for f in dataclasses.fields(usual) if f.name == name and name in part), None)
    if field is None:
        return ""
    if dataclasses.is_dataclass(within := getattr(usual, name)) and isinstance(part[name], dict):
        return _of_another_type(within, part[name], rest, f"{prefix}{name}.")
    wanted = _WANTED.get(_type_of(field))
    return f"{prefix}{name} is {part[name]!r}; it should be {wanted}" if wanted else ""


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
    if math.isnan(value):
        raise MmfastError(f"{key} is NaN; it should be a number")
    if math.isinf(value) and high != math.inf:
        raise MmfastError(f"{key} is {value}; it should be a finite number")
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
