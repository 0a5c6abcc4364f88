"""The command line: `mmfast COMMAND`, one file per command."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import mmfast
from mmfast.cli import check, evaluate, info, init, presets, report, sample, sweep, train
from mmfast.cli.output import kept_going, let_go_of_stderr
from mmfast.cli.shared import overrides
from mmfast.errors import MmfastError, unknown
from mmfast.memory import keep_freed_memory
from mmfast.progress import silenced
from mmfast.ranks import joined
from mmfast.signals import STOPPED, answered, interrupt
from mmfast.trust import allow_code

# Each module has `add`, which declares the command's options, and `run`, which returns the exit status.
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

# The commands that torchrun's processes run together.
TOGETHER = ("train", "sample", "eval")

EPILOG = """\
examples:
  mmfast presets                                   list the presets and the data they need
  mmfast check my/data                             show what the data holds, and what is wrong with it
  mmfast init my/data --out my.yaml --minutes 30   write a config for it that trains in that time
  mmfast train digits --out runs/digits            train the preset, or resume the run in that folder
  mmfast sample runs/digits --given label=3 --n 64 draw 64 images and masks of the digit 3
  mmfast eval runs/digits                          measure the run on held-out data
  mmfast sweep runs/digits --given label --over guidance_scale=1,2,4    plot what guidance trades off
  mmfast report runs/digits                        write a page about the run: curves, samples, figures
  mmfast info                                      show backends, devices and versions
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors take one line, like all other errors."""

    def error(self, message: str) -> NoReturn:
        raise MmfastError(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="mmfast",
        description="Multimodal, multitask diffusion: images with masks, labels and embeddings, any given any other.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"mmfast {mmfast.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for command in COMMANDS.values():
        command.add(commands)
    return top


def _meant(word: str, command: str) -> str:
    """A hint at the option that a word may mean; "" if none is near."""
    commands = Parser().add_subparsers()
    COMMANDS[command].add(commands)
    known = re.findall(r"--[\w-]+", commands.choices[command].format_usage())
    if command == "sample" and "=" in word and not word.startswith("-"):
        return f" (did you mean --given {word}?)"
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Returns 0 for success, 1 if its output could not be written, 2 after the one-line error for bad input, and 130 if a
    signal stopped it.
    """
    with answered(interrupt), kept_going() as output:
        status = _main(argv)
    let_go_of_stderr()
    lost = None if output is None or isinstance(output.error, BrokenPipeError) else output.error
    if lost is not None and status == 0:
        print(f"mmfast: error: the output cannot be written: {lost.strerror}", file=sys.stderr)
        return 1
    return status


def _main(argv: Sequence[str] | None) -> int:
    command = ""
    try:
        if any("\0" in word for word in argv or ()):  # no shell passes one on, and no path may contain one
            raise MmfastError("an argument contains a null character; leave it out")
        word = next(iter(sys.argv[1:] if argv is None else argv), "-")
        if word not in COMMANDS and not word.startswith("-"):
            raise unknown("the command", word, COMMANDS)
        args, rest = parser().parse_known_args(argv)
        command = args.command
        if args.command not in ("train", "check") and rest:
            raise MmfastError(
                f"{rest[0]} is not an option of `mmfast {args.command}`{_meant(rest[0], args.command)}; see `mmfast "
                f"{args.command} --help`"
            )
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
            then = "repeat the `mmfast train` command to resume" if train else "no file is half written"
            print(f"mmfast: stopped; {then}", file=sys.stderr)
        return STOPPED


__all__ = ["main", "overrides", "parser"]
