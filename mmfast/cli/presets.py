"""mmfast presets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmfast import presets


def add(commands: Any) -> None:
    command = commands.add_parser(
        "presets",
        help="list the presets, or print one to copy",
        description="List the presets, what they train and their data. With a name, print the YAML of that preset.",
        allow_abbrev=False,
    )
    command.add_argument("name", metavar="NAME", nargs="?", help="the preset to print")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    print(listing() if args.name is None else presets.text(args.name).rstrip("\n"))
    return 0


def listing() -> str:
    """Two lines per preset: its name and what it trains, then its data."""
    names = presets.names()
    width = max(map(len, names))
    abouts = [(name, presets.about(name)) for name in names]
    return "\n".join(f"{name:<{width}}  {x.what}\n{'':<{width}}  data: {x.data}" for name, x in abouts)
