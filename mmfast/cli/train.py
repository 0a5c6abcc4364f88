"""mmfast train."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from mmfast import presets
from mmfast.cli.describe import describe
from mmfast.cli.shared import add_allow_code, load_config, overrides
from mmfast.errors import MmfastError


def add(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a preset or a config, or continue a run",
        description="Train a preset or a config into the folder RUN. The same command continues a run that stopped.",
        allow_abbrev=False,
        add_help=False,
    )
    help = "show this help and every option of the config, with the values of PRESET or CONFIG if one is given"
    train.add_argument("-h", "--help", action="store_true", help=help)
    train.add_argument("config", metavar="PRESET|CONFIG.yaml", nargs="?", help="a preset or a YAML file")
    train.add_argument("--out", metavar="RUN", help="the run's folder: a new one, or that of a run to continue")
    train.add_argument(
        "--from",
        dest="start",
        metavar="RUN",
        help="start from the weights of this run; what it lacks starts with fresh ones, and it is not changed",
    )
    add_allow_code(train)
    train.add_argument("--allow-changed-data", action="store_true", help="continue a run even if its data has changed")
    train.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast import config as configs
    from mmfast.build import with_found
    from mmfast.config_source import LONGEST
    from mmfast.evaluate import table
    from mmfast.files import read_text
    from mmfast.survey import brief
    from mmfast.training import train

    if args.help:
        config = None if args.config is None else configs.load(args.config, overrides(rest))
        print("usage: mmfast train PRESET|CONFIG.yaml --out RUN [--key value ...] [--quiet]\n")
        print("Train into the folder RUN. Repeat the command to resume a run that stopped.")
        print("--from RUN starts from the weights of another run, as far as both have the same parts.")
        print("--allow-code module:function allows the config to run this function of yours.")
        print("--allow-changed-data continues a run even if its data has changed. --quiet hides the progress bars.")
        print(f"presets: {', '.join(presets.names())} (`mmfast presets` describes them)\n")
        whose = "their defaults" if config is None else f"their values in {args.config}"
        print(f"options of the config, with {whose}:\n\n{describe(config)}")
        return 0
    if args.config is None:
        raise MmfastError(f"no config given; name a YAML file or a preset: {', '.join(presets.names())}")
    if args.out is None:
        raise MmfastError("no --out RUN given; it should be the run's folder, a new one or one to resume")
    known = [args.config in presets.names(), args.config.endswith((".yaml", ".yml"))]
    if not any(known) and any(word in presets.names() or word.endswith((".yaml", ".yml")) for word in rest):
        raise MmfastError("the config comes first: mmfast train PRESET|CONFIG.yaml --out RUN [--key value ...]")
    config = load_config(args.config, rest)
    with args.ranks.in_turn(machines=False):
        if not args.quiet and args.ranks.first:
            print("\n".join(brief(with_found(config))), flush=True)
    run = train(config, args.out, quiet=args.quiet, allow_changed_data=args.allow_changed_data, start=args.start)
    if not args.ranks.first:
        return 0
    metrics = run.folder / "metrics.json"
    if metrics.exists():
        try:
            print(table(json.loads(read_text(metrics, LONGEST)), str(metrics)))
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            advice = "remove it, and this command makes it again"
            raise MmfastError(f"{metrics} cannot be read: {reason}; {advice}") from None
    print(f"pictures: {run.samples}/*.png   weights: {run.folder}/ema.safetensors")
    return 0
