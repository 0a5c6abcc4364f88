"""YAML without surprises: a config is data, and is read as written."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
for _tag, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def load_yaml(text: str, what: str) -> Any:
    """The data in a YAML text. Raises MmfastError, naming `what`, for invalid YAML, tags and aliases."""
    try:
        found = yaml.load(text, _Loader)
        filled_in = next((x for x in _strings(found) if "${" in x), None)
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
        return load_yaml(yaml.safe_dump(text), what)  # which checks for ${...}
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
