"""mmfast report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.cli.shared import add_overwrite, check_file, write
from mmfast.errors import MmfastError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="write an HTML page about a run",
        description="Write a self-contained HTML page about a run: curves, samples, figures with their meanings, and "
        "the config. It also works for a run that is unfinished or damaged, and says so.",
        allow_abbrev=False,
    )
    command.add_argument("run", metavar="RUN", help="the folder of a run")
    command.add_argument("--out", metavar="FILE.html", help="the file to write [RUN/report.html]")
    add_overwrite(command)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast.cli.info import machine
    from mmfast.report import gather, page
    from mmfast.run import Run

    check_file("--out", args.out, args.overwrite, ".html", ".htm")
    opened = Run.open(args.run)
    out = Path(args.out) if args.out else opened.folder / "report.html"
    if not args.out:
        _check_place(out)
    facts = {name: ", ".join(x) if isinstance(x, list) else str(x) for name, x in machine().items()}
    text = page(gather(opened), facts | {"written": time.strftime("%Y-%m-%d %H:%M")})
    write(out, lambda temporary: temporary.write_bytes(text.encode("utf-8", "replace")))
    print(out)
    return 0


def _check_place(out: Path) -> None:
    """Raise MmfastError if a file that is not an earlier report has the name."""
    from mmfast.files import beginning
    from mmfast.report import GENERATOR

    try:
        there = beginning(out, 4096) if out.exists() else None
    except OSError as error:
        raise MmfastError(f"{out} cannot be written: {error.strerror}; choose another place") from None
    if there is not None and f'content="{GENERATOR}"'.encode() not in there:
        raise MmfastError(f"{out} already exists and is not a report of mmfast's; choose another --out, or remove it")
