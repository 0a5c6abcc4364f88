"""The command line: `mmfast COMMAND`, one file a command."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import mmfast
from mmfast.cli import check, evaluate, info, init, presets, report, sample, sweep, train
from mmfast.cli.output import kept_going, let_go_of_stderr
from mmfast.cli.shared import overrides
from mmfast.errors import MmfastError
from mmfast.memory import keep_freed_memory
from mmfast.progress import silenced
from mmfast.ranks import joined
from mmfast.signals import STOPPED, answered, interrupt
from mmfast.trust import allow_code

# Each a module with `add`, which declares its options, and `run`, which returns the exit status.
COMMANDS = {
    "presets": presets,
    "check": check,
    "init": init,
    "train": train,
    "sample": sample,
    "eval": evaluate,
    "sweep": sweep,
    "report": report,
    "info": info,
}

# What the processes of torchrun do together.
TOGETHER = ("train", "sample", "eval")

EPILOG = """\
examples:
  mmfast presets                                   the presets, and what data they want
  mmfast check my/data                             what the data holds, and what is wrong with it
  mmfast init my/data --out my.yaml --minutes 30   a config for it that trains in that time
  mmfast train digits --out runs/digits            train the preset, or continue the run that is there
  mmfast sample runs/digits --given label=3 --n 64 images and masks of the digit 3
  mmfast eval runs/digits                          the figures of a run
  mmfast sweep runs/digits --given label --over guidance_scale=1,2,4    what guidance trades
  mmfast report runs/digits                        a page of a run: curves, samples, figures
  mmfast info                                      backends, devices, versions
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise MmfastError(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="mmfast",
        description="Multimodal, multitask diffusion: images with their masks, labels and embeddings, any from any.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"mmfast {mmfast.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for command in COMMANDS.values():
        command.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0, 2 after the one-line error of bad input, or 130 where a signal has stopped it."""
    with answered(interrupt), kept_going() as output:
        status = _main(argv)
    let_go_of_stderr()
    lost = None if output is None or isinstance(output.error, BrokenPipeError) else output.error
    if lost is not None and status == 0:
        print(f"mmfast: error: what was to be printed cannot be written: {lost.strerror}", file=sys.stderr)
        return 1
    return status


def _main(argv: Sequence[str] | None) -> int:
    command = ""
    try:
        if any("\0" in word for word in argv or ()):  # which no shell hands on, and no path may hold
            raise MmfastError("a word of the command holds a null character; leave it out")
        args, rest = parser().parse_known_args(argv)
        command = args.command
        if args.command not in ("train", "check") and rest:
            raise MmfastError(f"{rest[0]} is no option of `mmfast {args.command}`; see `mmfast {args.command} --help`")
        allow_code(*getattr(args, "allow_code", ()))
        if args.command not in ("info", "presets", "report"):
            keep_freed_memory()
        with silenced(getattr(args, "quiet", False)):
            if args.command not in TOGETHER:
                return COMMANDS[args.command].run(args, rest)
            with joined() as args.ranks:
                return COMMANDS[args.command].run(args, rest)
    except MmfastError as error:
        print(f"mmfast: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"mmfast: error: {MmfastError(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal has closed
            train = command == "train"
            then = "`mmfast train`, repeated, goes on where it stopped" if train else "no file is half written"
            print(f"mmfast: stopped; {then}", file=sys.stderr)
        return STOPPED


__all__ = ["main", "overrides", "parser"]
