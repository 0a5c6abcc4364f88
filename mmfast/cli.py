"""The command line: mmfast train | sample | eval | info."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import mmfast
from mmfast.errors import MmfastError, line_of, unknown
from mmfast.memory import keep_freed_memory
from mmfast.ranks import joined

EPILOG = """\
examples:
  mmfast train digits --out runs/digits            train the preset, or go on with the run that is there
  mmfast sample runs/digits --given label=3 --n 64 images and masks of the digit 3
  mmfast eval runs/digits                          the figures of a run
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
    commands = top.add_subparsers(dest="command", required=True, metavar="train | sample | eval | info")

    train = commands.add_parser(
        "train",
        help="train a preset or a config, or go on with a run",
        description="Train CONFIG into the folder OUT. The same command again goes on where the run stopped.",
        epilog="options of the config (--key value), with their defaults before the preset's own:\n\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    train.add_argument("-h", "--help", action="store_true", help="show this help and every option of the config")
    train.add_argument("config", metavar="PRESET|CONFIG.yaml", nargs="?", help="a preset or a YAML file")
    train.add_argument("--out", metavar="RUN", help="the run's folder, new or to go on with")
    train.add_argument("--quiet", action="store_true", help="no progress bars")

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
    sample.add_argument("--quiet", action="store_true", help="no progress bars")

    evaluate = commands.add_parser("eval", help="the figures of a run", allow_abbrev=False)
    evaluate.add_argument("run", metavar="RUN", help="the folder of a run")
    evaluate.add_argument("--samples", type=int, help="samples a direction [the config's]")
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    evaluate.add_argument(
        "--features",
        help="pixels, efficientnet-lite0, vgg16 (vgg16@64: at 64 x 64 pixels) or module:function [the config's]",
    )
    evaluate.add_argument("--features-weights", metavar="FILE", help="that network's weights [the package's]")
    evaluate.add_argument("--lpips", choices=("alex", "vgg"), help="also LPIPS of restored images [the config's]")
    evaluate.add_argument("--lpips-weights", metavar="FILE", help="that network's weights [the package's]")
    evaluate.add_argument("--json", metavar="FILE", help="also write them to a file")
    evaluate.add_argument("--quiet", action="store_true", help="no progress bars")

    info = commands.add_parser("info", help="backends, devices, versions")
    info.add_argument("--json", action="store_true", help="as JSON")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0, or 2 after printing the one-line error of bad input."""
    try:
        args, rest = parser().parse_known_args(argv)
        if args.command != "train" and rest:
            raise MmfastError(f"{rest[0]} is no option of `mmfast {args.command}`; see `mmfast {args.command} --help`")
        if args.command not in TOGETHER:
            return COMMANDS[args.command](args, rest)
        keep_freed_memory()
        with joined() as args.ranks:
            return COMMANDS[args.command](args, rest)
    except MmfastError as error:
        print(f"mmfast: error: {line_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal has closed
            print("mmfast: stopped; `mmfast train`, repeated, goes on where it stopped", file=sys.stderr)
        return 130


def overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """--key value and --key=value, in order."""
    pairs, i = [], 0
    while i < len(rest):
        word = rest[i]
        if not word.startswith("--") or len(word) < 3:
            raise MmfastError(f"{word!r} is out of place; options of the config are --key value, as --train.steps 100")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if i + 1 >= len(rest) or rest[i + 1].startswith("--"):
                raise MmfastError(f"--{key} has no value; it should be --{key} VALUE")
            value, i = rest[i + 1], i + 1
        pairs.append((key, value))
        i += 1
    return pairs


def _train(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast import config as configs
    from mmfast.evaluate import table
    from mmfast.training import train

    if args.help:
        print("usage: mmfast train PRESET|CONFIG.yaml --out RUN [--key value ...] [--quiet]\n")
        print("Train into the folder RUN; the same command again goes on where the run stopped.")
        print(f"presets: {', '.join(configs.presets())}\n\n{configs.describe()}")
        return 0
    if args.config is None:
        raise MmfastError(f"no config given; name a YAML file or a preset: {', '.join(configs.presets())}")
    if args.out is None:
        raise MmfastError("no --out RUN given; it should be the run's folder, new or to go on with")
    config = configs.load(args.config, overrides(rest))
    run = train(config, args.out, quiet=args.quiet)
    if not args.ranks.first:
        return 0
    metrics = run.folder / "metrics.json"
    if metrics.exists():
        try:
            print(table(json.loads(metrics.read_text(encoding="utf-8"))))
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            advice = "remove it, and this command makes it again"
            raise MmfastError(f"{metrics} cannot be read: {reason}; {advice}") from None
    print(f"pictures: {run.samples}/*.png   weights: {run.folder}/ema.safetensors")
    return 0


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


def _sample(args: argparse.Namespace, rest: Sequence[str]) -> int:
    import numpy as np

    from mmfast.build import load_run
    from mmfast.generate import generate, title
    from mmfast.pictures import sample_grid

    if args.n < 1:
        raise MmfastError(f"--n is {args.n}; it should be at least 1")
    _check_ending("--out", args.out, (".png", ".jpg", ".jpeg"))
    _check_ending("--npz", args.npz, (".npz",))
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
    file = Path(args.out) if args.out else _new_file(run.samples, f"sample-{_slug(what) or 'joint'}-seed{args.seed}")
    _write(file, lambda temporary: picture.save(temporary))
    print(file)
    if args.npz:
        arrays: dict[str, Any] = {name: x.cpu().numpy() for name, x in drawn.items()}
        npz = Path(args.npz)
        _write(npz, lambda temporary: np.savez(temporary, **arrays))
        print(npz)
    return 0


def _check_ending(option: str, name: str | None, endings: tuple[str, ...]) -> None:
    if name is not None and Path(name).suffix.lower() not in endings:
        raise MmfastError(f"{option} is {name}; it should end in {' or '.join(endings)}")


def _write(file: Path, write: Any) -> None:
    from mmfast.files import write_atomically

    try:
        write_atomically(file, write)
    except OSError as error:
        raise MmfastError(f"{file} cannot be written: {error.strerror}; choose another place") from None


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "=-" else "-" for c in text)[:60]


def _new_file(folder: Path, stem: str) -> Path:
    """A name in the folder that is still free: samples are never overwritten."""
    names = (folder / f"{stem}{f'-{k}' if k else ''}.png" for k in range(1_000_000))
    return next(name for name in names if not name.exists())


def _eval(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast.build import build_data, load_run
    from mmfast.evaluate import evaluate, table

    _, config, model = load_run(args.run, args.device)
    if args.samples is not None:
        if args.samples < 2:
            raise MmfastError(f"--samples is {args.samples}; it should be at least 2")
        config.evaluate.samples = args.samples
    config.evaluate.samples = config.evaluate.samples or 1000
    for name in ("features", "features_weights", "lpips", "lpips_weights"):
        if getattr(args, name) is not None:
            setattr(config.evaluate, name, getattr(args, name))
    with args.ranks.in_turn():
        data = build_data(config)
    metrics = evaluate(model, config, data, quiet=args.quiet or not args.ranks.first, ranks=args.ranks)
    if not args.ranks.first:
        return 0
    print(table(metrics))
    if args.json:
        _write(Path(args.json), lambda temporary: temporary.write_text(json.dumps(metrics, indent=2) + "\n"))
    return 0


def _info(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast.ops import backends

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says it all
        serves = {device: _serves(device) for device in ("cpu", "cuda")}
    found: dict[str, Any] = {
        "mmfast": mmfast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "backends": backends.report(),
        "serves": serves,
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        if name not in ("backends", "serves"):
            print(f"{name:<9} {', '.join(value) if isinstance(value, list) else value}")
    print("backends")
    for name, backend in found["backends"].items():
        print(f"  {name:<10} {'yes' if backend['available'] else 'no ':<4} {backend['detail']}")
    print("in use    " + ", ".join(f"{device} tensors: {name}" for device, name in found["serves"].items()))
    return 0


def _serves(device: str) -> str:
    from mmfast.ops import backends

    try:
        return backends.choose(device).name
    except MmfastError as error:
        return f"none ({error})"


COMMANDS = {"train": _train, "sample": _sample, "eval": _eval, "info": _info}
# What the processes of torchrun do together.
TOGETHER = ("train", "sample", "eval")
