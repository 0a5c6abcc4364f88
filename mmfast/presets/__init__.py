"""The presets: a config each, as a YAML file in this folder, which begins with two comments.

# What it trains, in a line.
# Data: where its data comes from, in a line.
"""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

from mmfast.errors import unknown


class About(NamedTuple):
    """What a preset trains and where its data comes from, a line each."""

    what: str
    data: str


def names() -> list[str]:
    """The names of the presets, sorted."""
    return sorted(file.name[:-5] for file in resources.files(__name__).iterdir() if file.name.endswith(".yaml"))


def text(name: str) -> str:
    """A preset as it is written. Raises MmfastError for a name that is none."""
    if name not in names():
        raise unknown("preset", name, names())
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def about(name: str) -> About:
    """The first two comments of a preset."""
    what, data = text(name).splitlines()[:2]
    return About(what.removeprefix("# "), data.removeprefix("# Data: "))
