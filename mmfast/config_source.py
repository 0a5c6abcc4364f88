"""Where configs come from: a preset or a file, and overrides. Nothing here depends on what an option means."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmfast import presets
from mmfast.errors import MmfastError, unknown
from mmfast.files import read_text
from mmfast.options import Origin, one_line
from mmfast.plain_yaml import escaped, load_value
from mmfast.trust import permit

# In bytes: enough for the names of some hundred thousand classes.
LONGEST = 2**22


# Overrides of a config: values by key, or pairs of a key and a text as on the command line.
Overrides: TypeAlias = Mapping[str, Any] | Iterable[tuple[str, str]]


def texts_of(overrides: Overrides) -> list[tuple[str, str]]:
    """Overrides as pairs of a key and a text. Raises MmfastError for anything else."""
    if isinstance(overrides, Mapping):
        overrides = [(key, value if isinstance(value, str) else _text(key, value)) for key, value in overrides.items()]
    pairs = list(overrides)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or [type(x) for x in pair] != [str, str]:
            raise MmfastError(
                f"overrides has {pair!r}; it should be a dict, as {{'train.steps': 100}}, or have pairs of texts, as "
                "('train.steps', '100')"
            )
    return [(key, value) for key, value in pairs]


def _text(key: str, value: Any) -> str:
    try:
        return json.dumps(os.fspath(value) if isinstance(value, os.PathLike) else value)
    except (TypeError, ValueError):
        raise MmfastError(
            f"overrides[{key!r}] is a {type(value).__name__}; it should be a number, a text, true, false, null, or a "
            "list or dict of these"
        ) from None


def read(source: str) -> str:
    """The text of a preset or of a YAML file. Raises MmfastError for any other name and for an unreadable file."""
    if source in presets.names():
        return presets.text(source)
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        raise unknown("config", source, [*presets.names(), "or the path of a .yaml file"])
    try:
        return read_text(path, LONGEST)  # YAML accepts a byte order mark
    except OSError as error:
        raise MmfastError(
            f"config {source} cannot be read: {error.strerror}; give the path of a YAML file, or a preset: "
            f"{', '.join(presets.names())}"
        ) from None
    except UnicodeDecodeError as error:
        raise MmfastError(f"config {source} is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def overridden(found: Any, source: str, overrides: Iterable[tuple[str, str]]) -> DictConfig:
    """Parsed YAML with overrides such as ("train.steps", "100") applied. Raises MmfastError if it is not a config."""
    try:
        raw = OmegaConf.create(escaped(found or {}))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise MmfastError(f"{source} cannot be a config: {one_line(error)}") from None
    if not isinstance(raw, DictConfig):
        raise MmfastError(f"{source} holds a {type(raw).__name__}; it should hold keys, as the presets do")
    for key, value in _kinds_first(overrides):
        _override(raw, key, value)
    return raw


def _kinds_first(overrides: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The overrides with each section's kind before its other options, because setting a kind clears them."""
    found: list[tuple[str, str]] = []
    for key, value in overrides:
        part, _, last = key.rpartition(".")
        others = [
            k for k, (name, _) in enumerate(found) if last == "kind" and name.startswith(f"{part}.") and name != key
        ]
        found.insert(others[0] if others else len(found), (key, value))
    return found


def folder_of(source: str) -> str:
    """The folder to which a config's relative paths are relative: its file's, or "", the current one, for a preset.

    For a link to a file, it is the folder of the file itself.
    """
    return "" if source in presets.names() else os.path.dirname(os.path.realpath(source))


def origin_of(folder: str | None, overrides: Sequence[tuple[str, str]]) -> Origin:
    """The origin of the values that `overridden` combines."""
    said = {name for key, value in overrides for name in _keys(key, load_value(value, f"--{key} {value}"))}
    return Origin(folder, dict(overrides), frozenset(said))


def _keys(key: str, value: Any) -> Iterator[str]:
    """The keys that an override sets."""
    if isinstance(value, dict):
        for name, x in value.items():
            yield from _keys(f"{key}.{name}", x)
    else:
        yield key


# Sections whose kinds have the same options, so that these carry over.
ALIKE = ("schedule",)


def _override(raw: DictConfig, key: str, value: str) -> None:
    if not all(key.split(".")):
        raise MmfastError(
            f"--{key} is not an option's name; it should be words separated by dots, such as --train.steps"
        )
    new = load_value(value, f"--{key} {value}")
    for given in (new, value):
        permit(key, given)
    try:
        parent, _, last = key.rpartition(".")
        if last == "kind" and parent and parent not in ALIKE and new != OmegaConf.select(raw, key):
            key, new = parent, {"kind": new}
        # Another kind has other options, so those of the old one do not carry over.
        merge = not (isinstance(new, dict) and (not new or "kind" in new))  # {} clears the file's values
        OmegaConf.update(raw, key, escaped(new), merge=merge, force_add=True)
    except (OmegaConfBaseException, TypeError, ValueError, LookupError, AttributeError) as error:
        raise MmfastError(f"--{key} {value}: {one_line(error)}") from None
