"""The presets: configs as YAML files in this folder, each of which begins with two comments of one line.

# What it trains.
# Data: where its data comes from.
"""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

from mmfast.errors import unknown


class About(NamedTuple):
    """What a preset trains and where its data comes from, one line each."""

    what: str
    data: str


def names() -> list[str]:
    """The names of the presets, sorted."""
    return sorted(file.name[:-5] for file in resources.files(__name__).iterdir() if file.name.endswith(".yaml"))


def text(name: str) -> str:
    """The YAML text of a preset. Raises MmfastError for an unknown name."""
    if name not in names():
        raise unknown("preset", name, names())
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def about(name: str) -> About:
    """The first two comments of a preset."""
    what, data = text(name).splitlines()[:2]
    return About(what.removeprefix("# "), data.removeprefix("# Data: "))
