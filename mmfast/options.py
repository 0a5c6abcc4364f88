"""Options: how they are declared (as dataclass fields with help and bounds), read, checked and listed."""

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
from mmfast.plain_yaml import escaped, load_value, unescaped
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
    """A dataclass field with a help text and the values that it accepts (min <= value, value > above, value <= max).

    A number must be finite, unless max is infinity.
    choices: the valid values, or a registry of them by name, which may grow later. read: a function of the key and the
    config's value that returns the option's value or raises MmfastError, for what Python's types do not express. path:
    whether the text is the path of a file or a folder; if only some texts are, a function of the text and the path that
    it would be.
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
    """Where the values of a config come from: a file, and options of the command line that override it.

    folder: what the file's relative paths are relative to; "" is the current folder, and None leaves them as they are,
    for a run's config, which was resolved when the run began.
    texts: the command line's values by key, as typed. said: the keys that the command line sets, whose paths are
    relative to the current folder.
    """

    folder: str | None = ""
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    said: frozenset[str] = frozenset()

    @property
    def resolved(self) -> bool:
        """Whether it is a run's config, in which only options that are newer than the run are missing."""
        return self.folder is None

    def path(self, key: str, text: str) -> str | None:
        """The absolute path of an option's text; None to leave the text as it is."""
        folder = "" if key in self.said else self.folder
        return None if folder is None else absolute(key, folder, text)


def absolute(key: str, folder: str, text: str) -> str:
    """The absolute form, without `..`, of a path in a folder ("": the current one). Raises MmfastError naming key."""
    try:
        full = text if os.path.isabs(text) else os.path.join(os.path.abspath(folder), text)
        plain, real = os.path.normpath(full), os.path.realpath(full)
        return plain if os.path.realpath(plain) == real else real  # after a link, `..` leads elsewhere
    except (OSError, ValueError) as error:  # the current folder is gone, or a null byte
        raise MmfastError(
            f"{key} is {text!r}, which is not a path: {getattr(error, 'strerror', None) or error}"
        ) from None


def leads_to(path: str) -> str:
    """The real path, which is the same for all paths to one place."""
    try:
        return os.path.realpath(path) if path else ""
    except (OSError, ValueError):
        return path


_structured = functools.cache(OmegaConf.structured)  # takes milliseconds; `merge` copies it


def typed(section: type, part: DictConfig, prefix: str, origin: Origin) -> Any:
    """A dataclass with the options of a config's section, each of its type. Raises MmfastError naming the wrong key.

    Text options keep the command line's exact text; paths become absolute.
    """
    plain: Any = unescaped(OmegaConf.to_container(part))
    _check_sections(section(), plain, prefix)
    plain = _of_their_types(section(), plain, prefix, origin.texts)
    try:
        found: Any = unescaped(OmegaConf.to_object(OmegaConf.merge(_structured(section), escaped(plain))))
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


def _check_sections(usual: Any, plain: Mapping[str, Any], prefix: str) -> None:
    """Raise MmfastError where one value stands for an option that has keys of its own, such as a weight's kind."""
    for name, value in plain.items():
        inner = getattr(usual, str(name), None)
        if dataclasses.is_dataclass(inner) and not isinstance(value, dict):
            keys = ", ".join(field.name for field in dataclasses.fields(inner))
            raise MmfastError(f"{prefix}{name} is {value!r}; it should be a mapping with the keys {keys}")


def _check_option(section: type, key: str, prefix: str) -> None:
    """Raise MmfastError if a dataclass, or the nested one that the key leads to, has no such option."""
    names = [f.name for f in dataclasses.fields(section)]
    first, _, rest = re.sub(r"\[.*", "", key).partition(".")
    if first in names:
        inner = getattr(section(), first)
        if rest and dataclasses.is_dataclass(inner):
            _check_option(type(inner), rest, f"{prefix}{first}.")
    elif key:
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(names)}"
        raise MmfastError(f"{prefix}{key} is not an option; {hint} (`mmfast train --help` lists all)") from None


def paths(section: Any, prefix: str) -> Iterator[tuple[str, Any, str, Any]]:
    """The path options of a dataclass and of nested ones: key, owner, name, and which texts are paths."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from paths(value, f"{key}.")
        elif isinstance(value, str) and (is_path := field.metadata.get("path")):
            yield key, section, field.name, is_path


def _of_their_types(usual: Any, part: dict[str, Any], prefix: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """The section, with the values that OmegaConf would misread converted. usual: a dataclass of defaults."""
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
    """A single value as a list. said: its text on the command line, where commas separate several, as in 1,2,4."""
    if isinstance(value, (str, bool, int, float)):
        quoted = not said or said.strip()[0] in ("'", '"')
        return [value] if quoted else [x.strip() for x in said.split(",")]
    return value


def _text(key: str, value: Any) -> Any:
    """Texts as they are. Raises MmfastError for values that YAML read as something else, because their text is lost."""
    if isinstance(value, (list, dict)):
        for x in value if isinstance(value, list) else [*value, *value.values()]:
            _text(key, x)
    elif isinstance(value, (bool, float)):
        shown = str(value).lower() if isinstance(value, bool) else value
        raise MmfastError(f"{key} is {shown}, which YAML does not read as text; put it in quotes")
    return value


def _whole(key: str, value: Any) -> Any:
    """Convert texts such as 1e5, and floats without a fraction, to whole numbers."""
    if isinstance(value, float) or (isinstance(value, str) and not value.strip().lstrip("+-").isdecimal()):
        with contextlib.suppress(ValueError, OverflowError):
            if (number := float(value)) == int(number):
                return int(number)
    return value


def _truth(key: str, value: Any) -> Any:
    if isinstance(value, (int, float)) and value not in (0, 1):
        raise MmfastError(f"{key} is {value}; it should be true or false")
    return value


# Conversions and checks, by type, for values of other types that OmegaConf would accept.
_CONVERTED: dict[str, Callable[[str, Any], Any]] = {
    "str": _text,
    "list[str]": _text,
    "dict[str, str]": _text,
    "int": _whole,
    "bool": _truth,
}


# What an option of a type accepts, in words.
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list[int]": "a list of whole numbers, such as [1, 2]",
    "list[float]": "a list of numbers, such as [0.5, 1]",
    "list[str]": "a list of texts, such as [a, b]",
    "dict[str, float]": "a number for each name, such as {a: 0.2}",
}


def _of_another_type(usual: Any, part: dict[str, Any], path: str, prefix: str) -> str:
    """The error for a value of the wrong type at a path; "" if its type has no words."""
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
    """The first line of an error's message."""
    return str(error).strip().splitlines()[0]


def check(section: Any, prefix: str) -> None:
    """Raise MmfastError for the first option of a dataclass, or of nested ones, that is out of bounds."""
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
    """Lines for --help, one per option of a dataclass and of nested ones. but: nested ones to leave out."""
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
