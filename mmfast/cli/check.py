"""mmfast check."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfast import presets
from mmfast.cli.shared import (
    add_allow_code,
    add_overwrite,
    check_file,
    load_config,
    new_file,
    overrides,
    slug,
    write_picture,
)
from mmfast.errors import MmfastError
from mmfast.sizes import named
from mmfast.words import plural

if TYPE_CHECKING:
    from mmfast.config import Config
    from mmfast.survey import Seen, Survey

WRONG_AT_MOST = 20


def add(commands: Any) -> None:
    command = commands.add_parser(
        "check",
        help="check data before training on it",
        description="Read all the data of a folder or a config as training will, and print a one-page report. The exit "
        "status is 2 if training would stop. The config's options can be set (--key value).",
        allow_abbrev=False,
    )
    command.add_argument("data", metavar="DIR|CONFIG.yaml|PRESET", help="a folder of data, or a config")
    command.add_argument(
        "--sheet", metavar="FILE.png", help="file for the contact sheet [a new file in the current folder]"
    )
    add_overwrite(command)
    add_allow_code(command)
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from mmfast.build import check_beside_data
    from mmfast.survey import survey

    check_file("--sheet", args.sheet, args.overwrite, ".png", ".jpg", ".jpeg")
    config, notes = _config(args.data, rest)
    file = Path(args.sheet) if args.sheet else new_file(Path(), f"check-{slug(Path(args.data).stem) or 'data'}")
    nowhere = ""
    try:
        check_beside_data(config, "--sheet", file)
    except MmfastError as error:
        if args.sheet:
            raise
        nowhere = str(error)
    found = survey(config, quiet=args.quiet)
    found.notes[:0] = notes
    lines = page(found, args.data)
    if nowhere:
        lines += ["", f"no contact sheet: {nowhere}"]
    elif found.sheet is not None:
        try:
            lines += ["", f"contact sheet: {write_picture(file, found.sheet)}"]
        except MmfastError as error:  # the report matters more
            if args.sheet:
                print("\n".join(lines))
                raise
            lines += ["", f"no contact sheet: {error}"]
    print("\n".join(lines))
    return 2 if found.wrong else 0


def _config(data: str, rest: Sequence[str]) -> tuple[Config, list[str]]:
    """The config that `data` names, or one guessed for a folder, and notes on what the guess leaves out."""
    from mmfast import config as configs
    from mmfast.guess import DRAFT, guess, most_pixels
    from mmfast.plain_yaml import load_value

    if data.endswith(".csv"):
        from mmfast.tabular import options as of_table

        raw, notes = of_table(Path(data), data)
        return configs.from_plain(raw, data, overrides(rest)), [f"{line}; left out" for line in notes]
    is_config = data in presets.names() or Path(data).suffix in (".yaml", ".yml")
    if not is_config and not Path(data).is_dir():
        raise MmfastError(
            f"{data!r} is not a folder; it should be a folder, a .yaml or .csv file, or one of "
            f"{', '.join(presets.names())}"
        )
    if is_config:
        return load_config(data, rest), []
    options = overrides(rest)
    outside = load_value(dict(options).get("data.outside", "false"), "--data.outside")
    guessed = guess(data, most_pixels(), outside=outside is True)
    raw = {"anchor": guessed.anchor, "data": guessed.data(), "modalities": guessed.modalities, **DRAFT}
    notes = [*(f"{line}; left out" for line in guessed.notes), *guessed.remarks]
    return configs.from_plain(raw, data, options), notes


def page(found: Survey, name: str) -> list[str]:
    """The survey as lines of text."""
    total, lines = found.train + found.test, []
    if total:
        share = f"{100 * found.test / total:.0f} per cent"
        lines.append(f"{name}: {plural(total, 'example')}, {found.test:,} ({share}) of them held out; read as")
    width = max([len(x) for x in found.config.modalities] + [0])
    for part, spec in found.config.modalities.items():
        seen = found.seen.get(part)
        for k, text in enumerate(_modality(spec, seen, part == found.config.anchor)):
            lines.append(f"  {part if k == 0 else '':<{width}}  {text}")
    lines += ["", "unusual files, and how they are handled"] if found.odd else []
    lines += [f"  {part}: {len(x):,} {what} ({_names(x)})" for (part, what), x in found.odd.items()]
    lines += ["", "left out"] if found.left_out else []
    lines += [f"  {len(paths):,} {what}: {_names(paths)}" for what, paths in found.left_out.items()]
    if found.unreadable:
        count = plural(len(found.unreadable), "example")
        lines += ["", f"cannot be read: {count}, left out by data.on_error: skip"]
        lines += _some(found.unreadable)
    lines += ["", "note", *(f"  {line}" for line in found.notes)] if found.notes else []
    if found.wrong:
        lines += ["", "wrong: training would stop", *_some(found.wrong)]
    else:
        lines += ["", "nothing is wrong: this can be trained on"]
    return lines


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - WRONG_AT_MOST
    return [*(f"  {line}" for line in lines[:WRONG_AT_MOST]), *([f"  and {more:,} more"] if more > 0 else [])]


def _modality(spec: Any, seen: Seen | None, anchor: bool) -> list[str]:
    what = spec.kind
    if spec.kind == "image":
        what += f", {'grey' if spec.channels == 1 else 'colour'}"
    if hasattr(spec, "size"):
        what += f", {named(spec.size)}"
    if hasattr(spec, "classes"):
        what += f", {plural(spec.classes, 'class')}"
    if hasattr(spec, "dim"):
        what += f", {plural(spec.dim, 'number')}"
    if seen is None:
        return [f"{what}: made from the rest" if not anchor else what]
    if not seen.there + seen.missing:
        return [f"{what}: not read"]
    examples = plural(seen.there + seen.missing, "example")
    lines = [f"{what}: {seen.there:,} of {examples}{' (the anchor)' if anchor else ''}"]
    if seen.formats:
        lines.append(
            f"files: {_counts(seen.formats)}; {_counts(Counter({f'{w} x {h}': n for (w, h), n in seen.sizes.items()}))}"
        )
    if seen.classes and spec.kind == "label":
        lines.append(f"classes: {_counts(seen.classes, 12)}")
    elif seen.classes:
        total = max(1, sum(seen.classes.values()))
        shares = [f"{name} {100 * n / total:.1f}" for name, n in list(seen.classes.items())[:12]]
        more = len(seen.classes) - 12
        lines.append(f"classes, per cent of the pixels: {', '.join(shares)}{f' and {more} more' if more > 0 else ''}")
    return lines


def _counts(counts: Counter[str], most: int = 4) -> str:
    """The most common names with their counts."""
    shown = ", ".join(f"{name} {n:,}" for name, n in counts.most_common(most))
    more = len(counts) - most
    return shown + (f" and {more:,} more" if more > 0 else "")


def _names(paths: list[Path], most: int = 2) -> str:
    return ", ".join(map(str, paths[:most])) + (", ..." if len(paths) > most else "")
