"""What a config is read from: a preset or a file, and options put over it. Nothing here knows what an option means."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmfast import presets
from mmfast.errors import MmfastError, unknown
from mmfast.files import read_text
from mmfast.options import Origin, one_line
from mmfast.plain_yaml import load_value
from mmfast.trust import permit

# In bytes: the names of some hundred thousand classes.
LONGEST = 2**22


def read(source: str) -> str:
    """The text of a preset or of a YAML file. Raises MmfastError for another name, or a file that cannot be read."""
    if source in presets.names():
        return presets.text(source)
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        raise unknown("config", source, [*presets.names(), "or the path of a .yaml file"])
    try:
        return read_text(path, LONGEST)  # YAML takes a byte order mark
    except OSError as error:
        raise MmfastError(f"config {source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise MmfastError(f"config {source} is no text in UTF-8 ({error.reason}); save it as UTF-8") from None


def overridden(found: Any, source: str, overrides: Iterable[tuple[str, str]]) -> DictConfig:
    """What YAML holds, with overrides ("train.steps", "100") put over it. Raises MmfastError for what no config can."""
    try:
        raw = OmegaConf.create(found or {})
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise MmfastError(f"{source} holds what no config can: {one_line(error)}") from None
    if not isinstance(raw, DictConfig):
        raise MmfastError(f"{source} holds a {type(raw).__name__}; it should hold keys, as the presets do")
    for key, value in _kinds_first(overrides):
        _override(raw, key, value)
    return raw


def _kinds_first(overrides: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """With the kind of a part before its other options: it clears those of another kind, wherever it stands."""
    found: list[tuple[str, str]] = []
    for key, value in overrides:
        part, _, last = key.rpartition(".")
        others = [
            k for k, (name, _) in enumerate(found) if last == "kind" and name.startswith(f"{part}.") and name != key
        ]
        found.insert(others[0] if others else len(found), (key, value))
    return found


def folder_of(source: str) -> str:
    """What relative paths in a config are relative to: the folder that its file is in; of a preset the current one, "".

    A link to a file means what the file does.
    """
    return "" if source in presets.names() else os.path.dirname(os.path.realpath(source))


def origin_of(folder: str | None, overrides: Sequence[tuple[str, str]]) -> Origin:
    """Where the values come from that `overridden` puts together."""
    said = {name for key, value in overrides for name in _keys(key, load_value(value, f"--{key} {value}"))}
    return Origin(folder, dict(overrides), frozenset(said))


def _keys(key: str, value: Any) -> Iterator[str]:
    """The keys that an override gives a value."""
    if isinstance(value, dict):
        for name, x in value.items():
            yield from _keys(f"{key}.{name}", x)
    else:
        yield key


def _override(raw: DictConfig, key: str, value: str) -> None:
    if not all(key.split(".")):
        raise MmfastError(f"--{key} is no option's name; it should be words with dots between them, as --train.steps")
    new = load_value(value, f"--{key} {value}")
    for given in (new, value):
        permit(key, given)
    try:
        parent, _, last = key.rpartition(".")
        if last == "kind" and parent and new != OmegaConf.select(raw, key):
            key, new = parent, {"kind": new}
        # Another kind has other options: what was said of the old one does not carry over.
        merge = not (isinstance(new, dict) and (not new or "kind" in new))  # {} empties what the file says
        OmegaConf.update(raw, key, new, merge=merge, force_add=True)
    except (OmegaConfBaseException, TypeError, ValueError, LookupError, AttributeError) as error:
        raise MmfastError(f"--{key} {value}: {one_line(error)}") from None
