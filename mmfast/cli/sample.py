"""mmfast sample."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmfast.cli.shared import add_allow_code, check_ending, new_file, slug, write
from mmfast.errors import MmfastError, unknown


def add(commands: Any) -> None:
    sample = commands.add_parser("sample", help="draw samples from a run", allow_abbrev=False)
    sample.add_argument("run", metavar="RUN", help="the folder of a run")
    sample.add_argument(
        "--given",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        action="extend",
        help="modalities that are given: label=3, image=file.png, mask=file.png, embedding=file.npy, or NAME=data for "
        "held-out examples of the run's data",
    )
    sample.add_argument("--n", type=int, default=16, help="how many samples [16]")
    sample.add_argument("--steps", type=int, help="network evaluations a sample [the config's]")
    sample.add_argument("--sampler", help="ddpm, ddim or dpmpp_2m [the config's]")
    sample.add_argument("--guidance_scale", type=float, help="guidance by what is given; 1 for none [the config's]")
    sample.add_argument(
        "--first",
        nargs="*",
        metavar="NAME",
        help="modalities drawn first, one after another, the rest given them; no name: all together [the config's]",
    )
    sample.add_argument(
        "--offset",
        nargs="*",
        metavar="NAME=SHARE",
        help="by how much of T a modality's time is ahead of the anchor's, mask=0.2, or behind it, mask=-0.2; no name: "
        "all at one time [the config's]",
    )
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise [0]")
    sample.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    sample.add_argument("--out", metavar="FILE.png", help="the picture [a new file in RUN/samples]")
    sample.add_argument("--npz", metavar="FILE.npz", help="also save the samples as arrays")
    add_allow_code(sample)
    sample.add_argument("--quiet", action="store_true", help="no progress bars")


def _given(pairs: Sequence[str], model: Any, config: Any, count: int) -> dict[str, torch.Tensor]:
    from mmfast.build import build_data
    from mmfast.evaluate import held_out

    given = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if name not in model.parts:
            raise unknown("--given's modality", name, model.parts)
        if not equals or not text:
            raise MmfastError(f"--given {pair} has no value; it should be {name}=VALUE")
        if text == "data":
            given[name] = held_out(build_data(config).test, count, model).data[name]
        else:
            given[name] = model.part(name).parse(text)[None]
    return given


def _share(pair: str) -> tuple[str, float]:
    name, _, text = pair.partition("=")
    try:
        return name, float(text)
    except ValueError:
        raise MmfastError(f"--offset {pair} has no number; it should be NAME=SHARE, as mask=0.2") from None


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    import numpy as np

    from mmfast.build import load_run
    from mmfast.generate import generate, title
    from mmfast.pictures import sample_grid

    if args.n < 1:
        raise MmfastError(f"--n is {args.n}; it should be at least 1")
    check_ending("--out", args.out, (".png", ".jpg", ".jpeg"))
    check_ending("--npz", args.npz, (".npz",))
    run, config, model = load_run(args.run, args.device)
    given = _given(args.given, model, config, args.n)
    names = ("steps", "sampler", "guidance_scale", "first")
    options: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.offset is not None:
        options["offset"] = dict(_share(pair) for pair in args.offset)
    options |= {"progress": not args.quiet, "seed": args.seed, "ranks": args.ranks}
    drawn = generate(model, config, args.n, given, **options)
    if not args.ranks.first:
        return 0
    what = " ".join(args.given)
    how = title(args.given, config.sample.first if args.first is None else args.first)
    picture = sample_grid({n: model.part(n) for n in drawn}, drawn, how, list(given))
    file = Path(args.out) if args.out else new_file(run.samples, f"sample-{slug(what) or 'joint'}-seed{args.seed}")
    write(file, lambda temporary: picture.save(temporary))
    print(file)
    if args.npz:
        arrays: dict[str, Any] = {name: x.cpu().numpy() for name, x in drawn.items()}
        npz = Path(args.npz)
        write(npz, lambda temporary: np.savez(temporary, **arrays))
        print(npz)
    return 0
