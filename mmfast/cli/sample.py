"""mmfast sample."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.cli.shared import (
    add_allow_code,
    add_overwrite,
    add_weights,
    check_file,
    make_folder,
    new_file,
    slug,
    write,
    write_picture,
)
from mmfast.errors import MmfastError


def add(commands: Any) -> None:
    sample = commands.add_parser(
        "sample",
        help="draw samples from a run",
        description="Draw samples from a run, either all modalities together or the rest given some of them, and save "
        "a picture of them.",
        allow_abbrev=False,
    )
    sample.add_argument("run", metavar="RUN", help="the folder of a run")
    sample.add_argument(
        "--given",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        action="extend",
        help="modalities that are given: label=3, image=file.png, mask=file.png, embedding=file.npy, caption='a text', "
        "row=COLUMN=NUMBER,COLUMN=NUMBER, NAME=data for held-out examples of the run's data; each of several values "
        "gets its own row: label=cats,dogs, or label=all, or caption='a text' caption='another'",
    )
    sample.add_argument(
        "--known",
        nargs="+",
        default=[],
        metavar="NAME=PART",
        action="extend",
        help="the known part of a given modality, the rest of which is drawn: image=white.png (white where known), "
        "embedding=0-31 (positions), row=COLUMN,COLUMN",
    )
    sample.add_argument("--n", type=int, help="number of samples [16], or per value if there are several [4]")
    sample.add_argument("--steps", type=int, help="steps of the sampler [the config's]")
    sample.add_argument(
        "--spacing", type=float, help="1 for evenly spaced steps, more for finer ones near t = 0 [the config's]"
    )
    sample.add_argument("--sampler", help="ddpm, ddim, heun, dpmpp_2m or dpmpp_3m [the config's]")
    sample.add_argument("--eta", type=float, help="noise added by ddim, dpmpp_2m and dpmpp_3m, 0 to 1 [the config's]")
    sample.add_argument(
        "--guidance_scale",
        nargs="+",
        metavar="SCALE",
        help="guidance scale: 1 for none; one per modality: label=2 mask=1.5 [the config's]",
    )
    sample.add_argument(
        "--first",
        nargs="*",
        metavar="NAME",
        help="modalities to draw first, one after another; the rest is drawn given them; without a name, all are drawn "
        "together [the config's]",
    )
    sample.add_argument(
        "--offset",
        nargs="*",
        metavar="NAME=SHARE",
        help="how far a modality's time leads the anchor's, as a share of T: mask=0.2 (mask=-0.2 lags); without a "
        "name, all have the same time [the config's]",
    )
    sample.add_argument(
        "--resample",
        type=int,
        help="how often each step is repeated if something is given in part; more repeats fit it better [the config's]",
    )
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise [0]")
    sample.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    sample.add_argument("--out", metavar="FILE.png", help="file for the picture [a new file in RUN/samples]")
    sample.add_argument("--save", metavar="DIR", help="also save each sample as files, in a new folder")
    sample.add_argument("--npz", metavar="FILE.npz", help="also save the samples as arrays")
    add_overwrite(sample)
    add_weights(sample)
    add_allow_code(sample)
    sample.add_argument("--quiet", action="store_true", help="no progress bars")


def _pairs(option: str, pairs: Sequence[str]) -> dict[str, list[str]]:
    """The values of each modality, in order."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not text:
            raise MmfastError(f"{option} {pair} has no value; it should be {name}=VALUE")
        found.setdefault(name, []).append(text)
    return found


def _given(pairs: Sequence[str]) -> dict[str, Any]:
    from mmfast.given import Several

    found = _pairs("--given", pairs)
    return {name: Several(tuple(texts)) if len(texts) > 1 else texts[0] for name, texts in found.items()}


def _known(pairs: Sequence[str]) -> dict[str, str]:
    found = _pairs("--known", pairs)
    for name, texts in found.items():
        if len(texts) > 1:
            raise MmfastError(f"--known has {name} twice; name all that is known at once, as in {name}=A,B")
    return {name: text for name, (text,) in found.items()}


def _numbers(option: str, pairs: Sequence[str], usual: str) -> dict[str, float]:
    """The number of each modality."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name in found:
            raise MmfastError(f"--{option} has {name} twice; give one number for it")
        try:
            found[name] = float(text)
        except ValueError:
            raise MmfastError(f"--{option} {pair} has no number; it should be {usual}") from None
    return found


def _guidance(words: Sequence[str]) -> float | dict[str, float]:
    """One number for all modalities, or one for each by name."""
    usual = "a number, or NAME=NUMBER, such as label=2"
    if len(words) == 1 and "=" not in words[0]:
        try:
            return float(words[0])
        except ValueError:
            raise MmfastError(f"--guidance_scale {words[0]} has no number; it should be {usual}") from None
    return _numbers("guidance_scale", words, usual)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast.files import check_free
    from mmfast.loaded import load
    from mmfast.saved import write_arrays

    if args.n is not None and args.n < 1:
        raise MmfastError(f"--n is {args.n}; it should be at least 1")
    check_file("--out", args.out, args.overwrite, ".png", ".jpg", ".jpeg")
    check_file("--npz", args.npz, args.overwrite, ".npz")
    if args.save:
        check_free("--save", Path(args.save))
    given = _given(args.given)
    names = ("steps", "spacing", "sampler", "eta", "first", "resample", "seed", "ranks")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    if args.offset is not None:
        options["offset"] = _numbers("offset", args.offset, "NAME=SHARE, such as mask=0.2")
    if args.guidance_scale is not None:
        options["guidance_scale"] = _guidance(args.guidance_scale)
    loaded = load(args.run, args.device, args.weights)
    known = _known(args.known)
    if not args.out and args.ranks.first:
        make_folder(loaded.run.samples)
    samples = loaded.sample(args.n, given=given, known=known, progress=not args.quiet, **options)
    if not args.ranks.first:
        return 0
    if args.save:  # first, because the other files may go into its folder
        print(samples.save(args.save))
    if args.npz:
        arrays: dict[str, Any] = {name: x.numpy() for name, x in samples.data.items()}
        npz = Path(args.npz)
        write(npz, lambda temporary: write_arrays(temporary, arrays))
        print(npz)
    stem = f"sample-{slug(' '.join(args.given)) or 'joint'}-seed{args.seed}"
    file = Path(args.out) if args.out else new_file(loaded.run.samples, stem)
    print(write_picture(file, samples.grid()))
    return 0
