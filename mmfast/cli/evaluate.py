"""mmfast eval."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.cli.shared import add_allow_code, add_overwrite, add_weights, check_file, measure_by, write
from mmfast.errors import MmfastError


def add(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="evaluate a run",
        description="Compare samples of a run with held-out data, and print the figures. The run is not changed.",
        allow_abbrev=False,
    )
    evaluate.add_argument("run", metavar="RUN", help="the folder of a run")
    evaluate.add_argument("--samples", type=int, help="samples per direction [the config's]")
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    evaluate.add_argument(
        "--features",
        help="features for distances: pixels, efficientnet-lite0, vgg16, vgg16@64 or module:function [the config's]",
    )
    evaluate.add_argument("--features-weights", metavar="FILE", help="weights of that network [the package's]")
    evaluate.add_argument(
        "--lpips", choices=("alex", "vgg"), help="also measure LPIPS of restored images [the config's]"
    )
    evaluate.add_argument("--lpips-weights", metavar="FILE", help="weights of that network [the package's]")
    evaluate.add_argument("--all", action="store_true", help="also print the figures of the bound and by timestep")
    evaluate.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    add_overwrite(evaluate)
    add_weights(evaluate)
    add_allow_code(evaluate)
    evaluate.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast.build import build_data, load_run
    from mmfast.evaluate import evaluate, table

    check_file("--json", args.json, args.overwrite)
    _, config, model = load_run(args.run, args.device, weights=args.weights)
    if args.samples is not None:
        if args.samples < 2:
            raise MmfastError(f"--samples is {args.samples}; it should be at least 2")
        config.evaluate.samples = args.samples
    config.evaluate.samples = config.evaluate.samples or 1000
    measure_by(args, config.evaluate)
    if args.lpips_weights is not None and not config.evaluate.lpips:
        raise MmfastError("--lpips-weights is given without --lpips; add --lpips, the network that they belong to")
    with args.ranks.in_turn():
        data = build_data(config)
    metrics = evaluate(model, config, data, quiet=args.quiet or not args.ranks.first, ranks=args.ranks)
    if not args.ranks.first:
        return 0
    print(table(metrics, None if args.all else "--all"))
    if args.json:
        write(Path(args.json), lambda temporary: temporary.write_text(json.dumps(metrics, indent=2) + "\n"))
    return 0
