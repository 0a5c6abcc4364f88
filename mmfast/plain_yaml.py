"""YAML without its surprises: a config is data, read as it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import yaml

from mmfast.errors import MmfastError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, in which only null, true, false and decimal numbers are anything but text.

    YAML 1.1, which PyYAML reads, makes 83 of 0123, False of no, 750 of 12:30 and a date of 2024-01-01. Aliases are
    refused: a few hundred bytes of them can stand for gigabytes. So are tags, and a key that stands twice in one place.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not read here; write the value out", mark
            )
        tag = getattr(self.peek_event(), "tag", None)
        if tag is not None:
            raise yaml.composer.ComposerError(
                None, None, f"tags ({tag}) are not read here; write the value alone", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (before := seen.setdefault(key.value, key)) is not key:
                line = before.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice, first in line {line}; remove one", key.start_mark
                )
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


# By tag, and by the characters that such a value begins with. Floats are YAML 1.1's, with a dot and a signed exponent,
# but for numbers to the base 60.
_PLAIN = {
    "null": (r"|~|null|Null|NULL", [*"~nN", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", [*"-+0123456789"]),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+0123456789."],
    ),
}
for _tag, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def load_yaml(text: str, what: str) -> Any:
    """The data in a YAML text. Raises MmfastError, naming `what` it is, for what is no YAML or has tags or aliases."""
    try:
        found = yaml.load(text, _Loader)
        filled_in = next((x for x in _strings(found) if "${" in x), None)
    except yaml.YAMLError as error:
        said = str(error).replace('"<unicode string>", ', "")
        raise MmfastError(f"{what} is no valid YAML: {' '.join(said.split())}") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise MmfastError(f"{what} is no YAML that can be read: {error}") from None
    if filled_in is not None:
        raise MmfastError(f"{what} holds {filled_in!r}; nothing is filled in for ${{...}} here: write the value itself")
    return found


def load_value(text: str, what: str) -> Any:
    """One value of the command line: a YAML list, mapping or quoted text, else null, a number, true, false or the text
    as it is. Raises MmfastError as `load_yaml` does."""
    if text.strip()[:1] in ("[", "{", "'", '"'):
        return load_yaml(text, what)
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text.strip(), (True, False))
    if tag == "tag:yaml.org,2002:str":
        return load_yaml(yaml.safe_dump(text), what)  # for the check of ${...}
    return load_yaml(text.strip(), what)


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for pair in data.items():
            yield from _strings(list(pair))
    elif isinstance(data, list):
        for x in data:
            yield from _strings(x)
