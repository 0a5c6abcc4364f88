"""mmfast init."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfast.cli.shared import add_overwrite, check_file, write
from mmfast.errors import MmfastError
from mmfast.sizes import Size, height_width, read
from mmfast.words import plural

if TYPE_CHECKING:
    from mmfast.config import Config


def add(commands: Any) -> None:
    command = commands.add_parser(
        "init",
        help="write a config for a folder of data, or for a table",
        description="Write a config for a folder of images with masks, labels, captions or embeddings, or for a table. "
        "Kinds, classes and sizes come from the files, options from measurements, and the network and the steps fit "
        "the time on this machine.",
        allow_abbrev=False,
    )
    command.add_argument("data", metavar="DIR|FILE.csv", help="a folder of data, or a table")
    command.add_argument("--out", metavar="FILE.yaml", default="my.yaml", help="the config to write [my.yaml]")
    command.add_argument(
        "--minutes", type=float, default=30, help="minutes for training and evaluation of a folder [30]"
    )
    command.add_argument(
        "--size",
        metavar="SIDE|HEIGHTxWIDTH",
        help="image size in pixels [near the pictures' size and shape, with no more pixels than 32 x 32, or 64 x 64 "
        "on a GPU]",
    )
    command.add_argument("--outside", action="store_true", help="follow links that lead out of DIR (data.outside)")
    add_overwrite(command)
    command.add_argument("--quiet", action="store_true", help="do not print the timings")


def _size(text: str | None) -> Size | None:
    """Read 32 or 24x40 as a size. Raises MmfastError for any other text, and for sizes below 1."""
    if text is None:
        return None
    size = read("--size", text.split("x") if "x" in text else text)
    if min(height_width(size)) < 1:
        raise MmfastError(f"--size is {text}; it should be at least 1")
    return size


def _run_of(config: Config, name: str) -> str:
    """A folder for the run that is not among the data's pictures."""
    from mmfast.build import check_beside_data

    for folder in ("runs", os.path.join(os.pardir, "runs")):
        try:
            check_beside_data(config, "--out", Path(folder, name))
        except MmfastError:
            continue
        return os.path.join(folder, name)
    return "RUN"


def _of_table(file: Path, out: Path) -> int:
    """Write a config for a .csv file. Its steps are the preset's, about a minute, so they are not fitted to a time."""
    from mmfast import config as configs
    from mmfast.propose import text_of
    from mmfast.tabular import options

    inside = file.resolve().is_relative_to(out.parent.resolve())
    source = str(file.resolve().relative_to(out.parent.resolve()) if inside else file.resolve())
    plain, notes = options(file, source)
    head = [f"# Written by `mmfast init {file}`.", "# The means and scales of the columns come from the data."]
    text = text_of(plain, head)
    config = configs.from_plain(plain, "init")
    write(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    for note in notes:
        print(f"left out: {note}")
    print(f"{out}: {', '.join(plain['modalities'])}, {plural(config.train.steps, 'step')}")
    name = shlex.quote(str(out))
    print(f"next: mmfast check {name} && mmfast train {name} --out {shlex.quote(os.path.join('runs', out.stem))}")
    return 0


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast.guess import guess, most_pixels
    from mmfast.propose import FOR_NARROWER, propose, step_time, usual_batch

    check_file("--out", args.out, args.overwrite, ".yaml", ".yml")
    out = Path(args.out)
    if not args.minutes > 0:
        raise MmfastError(f"--minutes is {args.minutes:g}; it should be more than 0")
    if args.data.endswith(".csv"):
        for option, given in (("--size", args.size is not None), ("--outside", args.outside)):
            if given:
                raise MmfastError(f"{option} is for folders of pictures, and {args.data} is a table; leave it out")
        return _of_table(Path(args.data), out)
    try:
        args.data.encode()
    except UnicodeEncodeError:
        raise MmfastError(f"DIR is {args.data!r}, which is not UTF-8, as a config is; rename the folder") from None
    guessed = guess(Path(args.data).resolve(), most_pixels(), _size(args.size), args.outside)

    def timer(config: Config) -> float:
        try:
            step = step_time(config)
        except MmfastError as error:
            raise MmfastError(f"{error} (`mmfast check {args.data}` lists all that is wrong)") from None
        if not args.quiet:
            width = getattr(config.backbone, "channels", getattr(config.backbone, "width", 0))
            print(
                f"timed: {plural(width, 'channel')}, {config.train.precision}: {step:.3g} s per step", file=sys.stderr
            )
        return step

    size = f" --size {args.size}" if args.size is not None else ""
    outside = " --outside" if args.outside else ""
    command = f" {args.data} --minutes {args.minutes:g}{size}{outside}".replace("\n", " ")
    proposal = propose(guessed, args.minutes, timer, usual_batch(), command, out.parent)
    config = proposal.config
    write(out, lambda temporary: temporary.write_text(proposal.text, encoding="utf-8"))
    for note in guessed.notes:
        print(f"left out: {note}")
    for remark in guessed.remarks:
        print(f"note: {remark}")
    examples, steps = plural(guessed.examples, "example"), plural(config.train.steps, "step")
    print(f"{out}: {', '.join(guessed.modalities)} of {examples}, {steps}")
    training = plural(round(proposal.training), "minute")
    seen = config.train.steps * config.train.batch_size
    if seen < FOR_NARROWER:
        print(
            f"few: {seen:,} images are trained on, and recognisable pictures take about {FOR_NARROWER:,}; --minutes "
            f"{math.ceil(args.minutes * FOR_NARROWER / seen)} would do"
        )
    print(f"about {training} of training, {proposal.total:.0f} with the figures at the end")
    file = shlex.quote(str(out))
    print(f"next: mmfast check {file} && mmfast train {file} --out {shlex.quote(_run_of(config, out.stem))}")
    return 0
