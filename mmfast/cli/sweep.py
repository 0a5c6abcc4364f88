"""mmfast sweep."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.cli.shared import add_allow_code, make_folder, measure_by, slug, write
from mmfast.errors import MmfastError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "sweep",
        help="measure sampling options and plot what they trade off",
        description="Draw samples of a run with every combination of some sampling options, measure them, and plot the "
        "figures: quality against steps for several samplers, or agreement against recall as guidance grows.",
        allow_abbrev=False,
    )
    command.add_argument("run", metavar="RUN", help="the folder of a run")
    command.add_argument(
        "--over",
        nargs="+",
        required=True,
        action="extend",
        metavar="KEY=V,V",
        help="sampling options and their values: guidance_scale=1,1.5,2,4, guidance_scale.label=1,2 for one "
        "modality, steps=5,10,20,50, spacing=1,2, sampler=ddim,dpmpp_2m",
    )
    command.add_argument(
        "--given", nargs="+", default=[], metavar="NAME", help="modalities to give, taken from held-out examples"
    )
    command.add_argument("--samples", type=int, help="samples per point [the config's]")
    command.add_argument("--features", help="features for distances, as in `mmfast eval` [the config's]")
    command.add_argument("--x", metavar="FIGURE", help="figure on the horizontal axis [evaluations, or recall]")
    command.add_argument(
        "--y",
        metavar="FIGURE",
        help="figure on the vertical axis [the Frechet distance; or agreement, or precision if nothing is judged]",
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    command.add_argument("--out", metavar="DIR", help="a new folder for sweep.json and sweep.png [one in RUN/sweeps]")
    add_allow_code(command)
    command.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast import sweep
    from mmfast.build import build_data, load_run
    from mmfast.files import check_free

    over = sweep.options_of(args.over)
    opened, config, model = load_run(args.run, args.device)
    config.evaluate.samples = config.evaluate.samples or 1000
    if args.samples is not None:
        if args.samples < 2:
            raise MmfastError(f"--samples is {args.samples}; it should be at least 2")
        config.evaluate.samples = args.samples
    measure_by(args, config.evaluate)
    stem = slug(" ".join([*(f"given-{name}" for name in args.given), *over]))
    parent, folders = opened.folder / "sweeps", []
    if args.out:
        check_free("--out", Path(args.out))
    else:
        make_folder(parent)

    def save(points: list[sweep.Point]) -> None:
        if len(points) == 1:
            sweep.axes(points, args.x, args.y)  # reports a misspelt figure now and not at the end
            folders.append(_made(Path(args.out)) if args.out else _new_folder(parent, stem))
        write(folders[0] / "sweep.json", lambda temporary: temporary.write_text(sweep.text(points)))

    points = sweep.sweep(model, config, build_data(config), over, args.given, not args.quiet, save)
    (folder,) = folders
    print(sweep.table(points))
    print(folder / "sweep.json")
    file = folder / "sweep.png"
    title = f"given {', '.join(args.given)}" if args.given else "generated together"
    x, y = sweep.axes(points, args.x, args.y)
    try:
        write(
            file,
            lambda temporary: sweep.picture(points, temporary, x, y, f"{title}, {config.evaluate.samples} samples"),
        )
    except MmfastError as error:
        print(f"no picture: {error}")
    else:
        print(file)
    return 0


def _made(folder: Path) -> Path:
    """The folder that the user names, made now. Raises MmfastError if another process has filled it meanwhile."""
    from mmfast.files import check_free

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmfastError(f"{folder} cannot be made: {error.strerror}; choose another place") from None
    check_free("--out", folder)
    return folder


def _new_folder(parent: Path, stem: str) -> Path:
    """A new folder with the first name that is free, even if other processes make some at the same time."""
    names = (parent / f"{stem}{f'-{k}' if k else ''}" for k in itertools.count())
    while True:
        folder = next(names)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise MmfastError(f"{folder} cannot be made: {error.strerror}; choose another place with --out") from None
        return folder
