"""YAML without surprises: a config is data, and is read as written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import yaml

from mmfast.errors import MmfastError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, in which every scalar except null, true, false and decimal numbers is text.

    YAML 1.1, which PyYAML reads, turns 0123 into 83, no into False, 12:30 into 750 and 2024-01-01 into a date. Aliases
    are refused, because a few hundred bytes of them can expand to gigabytes. So are tags and duplicate keys.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not supported; write the value out", event.start_mark
            )
        if (tag := getattr(event, "tag", None)) is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.composer.ComposerError(
                None, None, f"tags ({shown}) are not supported; write the value alone", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (before := seen.setdefault(key.value, key)) is not key:
                line = before.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} appears twice, first in line {line}; remove one", key.start_mark
                )
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


# By tag: the pattern of its values, and the characters that they begin with. Floats are YAML 1.1's, with a dot and a
# signed exponent, except for numbers in base 60.
_PLAIN = {
    "null": (r"|~|null|Null|NULL", [*"~nN", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", [*"-+0123456789"]),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+0123456789."],
    ),
}


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes texts that the loader above would read as numbers, such as -.5.

    It escapes Unicode's line breaks, which would come back as spaces, and writes out whatever appears twice.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in _PLAIN.items():
    for _reader in (_Loader, _Dumper):
        _reader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)

_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if re.search("[\x85\u2028\u2029]", text) else None
    ),
)


def dump_yaml(data: Any, **style: Any) -> str:
    """YAML that `load_yaml` reads as the same data. style: options of yaml.dump."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, **style)


def load_yaml(text: str, what: str) -> Any:
    """The data in a YAML text. Raises MmfastError, naming `what`, for invalid YAML, tags and aliases.

    Also for an option with ${...}, which some expect to be expanded. In a list, as of class names, it is text.
    """
    try:
        found = yaml.load(text, _Loader)
        filled_in = next((x for x in _single(found) if "${" in x), None)
    except yaml.YAMLError as error:
        said = str(error).replace('"<unicode string>", ', "")
        raise MmfastError(f"{what} is not valid YAML: {' '.join(said.split())}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise MmfastError(f"{what} cannot be read as YAML: {error}") from None
    if filled_in is not None:
        raise MmfastError(f"{what} holds {filled_in!r}; ${{...}} is not expanded: write the value itself")
    return found


def load_value(text: str, what: str) -> Any:
    """One value from the command line: a YAML list, mapping or quoted text, else null, a number, true, false or the
    text as it is. Raises MmfastError as `load_yaml` does."""
    if text.strip()[:1] in ("[", "{", "'", '"'):
        return load_yaml(text, what)
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text.strip(), (True, False))
    if tag == "tag:yaml.org,2002:str":
        return load_yaml(dump_yaml(text), what)  # which checks for ${...}
    return load_yaml(text.strip(), what)


def _single(data: Any) -> Iterator[str]:
    """The texts that are keys or values of mappings, or stand alone."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for x in (*data, *data.values()):
            yield from _single(x)
    elif isinstance(data, list):
        for x in data:
            if not isinstance(x, str):
                yield from _single(x)


# Texts that mean something else to OmegaConf: an interpolation, and a missing value.
_SPECIAL = {"${": "$\0{", "???": "?\0??"}


def escaped(data: Any) -> Any:
    """The data, with the texts that OmegaConf would not take as they are in another form. `unescaped` undoes it."""
    return _each_text(data, _SPECIAL)


def unescaped(data: Any) -> Any:
    return _each_text(data, {form: text for text, form in _SPECIAL.items()})


def _each_text(data: Any, forms: Mapping[str, str]) -> Any:
    """The data with texts replaced in lists, mappings and dataclasses; in the latter in place."""
    if isinstance(data, str):
        for old, new in forms.items():
            data = data.replace(old, new)
        return data
    if isinstance(data, dict):
        return {_each_text(key, forms): _each_text(x, forms) for key, x in data.items()}
    if isinstance(data, list):
        return [_each_text(x, forms) for x in data]
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        for field in dataclasses.fields(data):
            setattr(data, field.name, _each_text(getattr(data, field.name), forms))
    return data
