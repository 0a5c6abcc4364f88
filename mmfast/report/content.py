"""The content of a run's folder, as data for its page. Missing or damaged files become notes and never errors."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfast.config import Config
from mmfast.errors import MmfastError
from mmfast.files import read_bytes
from mmfast.generate import title
from mmfast.image_files import picture_in, read_header
from mmfast.run import Run
from mmfast.stats_lines import stats_lines
from mmfast.words import plural

# How many of the newest pictures are shown in addition to the grids that training draws.
OTHERS = 4
# In bytes, of one picture in the page.
LARGEST = 8 * 2**20
# In bytes, of a file that is read for the page: enough for the stats of some millions of steps.
LONGEST = 2**30
# A number in a file beyond these is taken for damage.
MOST_STEPS, LARGEST_VALUE = 10**9, 1e100
SCATTER = re.compile(r"scatter-(?P<step>\d{1,9})-(?P<of>.+)\.png")
GRID = re.compile(r"step-(?P<step>\d{1,9})-(?P<direction>joint|given-(?P<given>.+))\.png")


@dataclass(frozen=True)
class Series:
    """One quantity of stats.jsonl: its values, all finite, at increasing steps."""

    name: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Picture:
    """A picture of the run, as the bytes of its file."""

    name: str
    caption: str
    format: str
    size: tuple[int, int]
    content: bytes


@dataclass
class Content:
    """Everything on the page. config is None if this version cannot read it; config_text is the file's text."""

    folder: Path
    config: Config | None = None
    config_text: str = ""
    steps: int = 0
    series: list[Series] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    grids: list[Picture] = field(default_factory=list)
    others: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(run: Run) -> Content:
    """Read the folder of a run. Never raises for missing or damaged files, which are listed in `notes`."""
    content = Content(run.folder)
    content.config_text = (_bytes(run.config_file, content) or b"").decode("utf-8-sig", "replace")
    try:
        content.config = run.config()
    except MmfastError as error:
        content.notes.append(f"This version of mmfast cannot read the config: {error}.")
    _stats(run, content)
    _progress(content)
    _metrics(run, content)
    _pictures(run, content)
    return content


def _bytes(file: Path, content: Content) -> bytes | None:
    """A file's content; None if it is missing or cannot be read. The latter is noted.

    A link out of the run's folder is noted and not followed: the page may be passed on, and a run from elsewhere could
    name any file.
    """
    notes, root = content.notes, os.path.realpath(content.folder)
    if os.path.commonpath((os.path.realpath(file), root)) != root:
        notes.append(f"{file.name} is a link out of the run's folder, and is left out of this page.")
        return None
    try:
        return read_bytes(file, LONGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"{file.name} cannot be read: {error.strerror}.")
        return None


def finite(value: Any) -> bool:
    """Whether a JSON value is a number that can be drawn."""
    return type(value) in (int, float) and abs(value) < LARGEST_VALUE  # NaN is not


def _stats(run: Run, content: Content) -> None:
    text = _bytes(run.stats_file, content) or b""
    written = sum(1 for line in text.split(b"\n") if line.strip())
    whole, lines = 0, dict[int, dict[str, Any]]()
    for step, line in stats_lines(text):
        if 0 < step <= MOST_STEPS:
            whole += 1
            lines.setdefault(step, json.loads(line))
    if written > whole:
        content.notes.append(
            f"stats.jsonl has {plural(written - whole, 'line')} that cannot be read: damaged, or half written."
        )
    steps = sorted(lines)
    missing = list(_missing(steps))
    if missing:
        shown = ", ".join(f"{a:,} to {b:,}" if a < b else f"{a:,}" for a, b in missing[:4])
        content.notes.append(f"stats.jsonl has no line for steps {shown}{', ...' if len(missing) > 4 else ''}.")
    odd, skipped = 0, {step for step in steps if lines[step].pop("skipped", None) is True}
    found: dict[str, Series] = {}
    for step in steps:
        for name, value in lines[step].items():
            if name in ("step", "images"):
                continue
            if not finite(value):
                odd += step not in skipped
                continue
            series = found.setdefault(name, Series(name, [], []))
            series.steps.append(step)
            series.values.append(float(value))
    if skipped:
        content.notes.append(
            f"Steps that training skipped because their gradient was too large or not finite: {len(skipped):,}, the "
            f"last of them step {max(skipped):,}."
        )
    if odd:
        content.notes.append(f"Values in stats.jsonl that are not finite numbers are left out: {odd:,}.")
    content.steps = steps[-1] if steps else 0
    content.series = list(found.values())


def _missing(steps: list[int]) -> Iterator[tuple[int, int]]:
    """The ranges of steps, both ends included, that are missing before or between the given ones."""
    for before, step in zip([0, *steps], steps, strict=False):
        if step > before + 1:
            yield before + 1, step - 1


def _progress(content: Content) -> None:
    if content.config is None:
        return
    wanted = content.config.train.steps
    if not content.steps and not any(note.startswith("stats.jsonl cannot be read") for note in content.notes):
        content.notes.append("No step of training is recorded yet.")
    elif content.steps < wanted:
        content.notes.append(
            f"The run is not finished: step {content.steps:,} of {wanted:,} is the last one recorded. It is still "
            "training, or was stopped; the command below resumes it."
        )


def _metrics(run: Run, content: Content) -> None:
    text = _bytes(run.metrics_file, content)
    if text is None:
        none = content.config is not None and not content.config.evaluate.samples
        why = "its config has evaluate.samples 0" if none else "they are written when training ends"
        content.notes.append(f"There are no figures yet (metrics.json): {why}.")
        return
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        content.notes.append(
            f"metrics.json cannot be read: {reason}. Remove it, and the command that resumes the run writes it again."
        )
        return
    for name, value in found.items():
        if type(value) is float or finite(value):
            content.metrics[name] = float(value)
            if not math.isfinite(value):
                content.notes.append(f"{name} in metrics.json is {value}.")
        else:
            content.notes.append(f"{name} in metrics.json is not a number and is left out.")


def _pictures(run: Run, content: Content) -> None:
    """Collect the newest readable grid of every direction, and the newest pictures drawn by hand."""
    try:
        files = [file for file in run.samples.iterdir() if file.suffix == ".png" and not file.name.startswith(".")]
        newest = sorted(files, key=lambda file: (-file.stat().st_mtime, file.name))
    except OSError:
        files = newest = []
    directions: dict[str, list[tuple[int, Path]]] = {}
    for file in files:
        if found := GRID.fullmatch(file.name):
            directions.setdefault(found["given"] or "", []).append((int(found["step"]), file))
    known = list(content.config.modalities) if content.config else []
    first = content.config.sample.first if content.config else []
    for given in sorted(directions, key=lambda name: (name != "", known.index(name) if name in known else len(known))):
        how = title([given] if given else [], first)
        drawn = sorted(directions[given], reverse=True)
        grids = _whole(((file, f"{how}; step {step:,}") for step, file in drawn), 1, content)
        content.grids += grids
    scatters: dict[str, list[tuple[int, Path]]] = {}
    for file in files:
        if found := SCATTER.fullmatch(file.name):
            scatters.setdefault(found["of"], []).append((int(found["step"]), file))
    for of in sorted(scatters):
        drawn = sorted(scatters[of], reverse=True)
        how = f"{of.replace('-', ' ')}: the drawn rows in red, real ones in grey"
        content.grids += _whole(((file, f"{how}; step {step:,}") for step, file in drawn), 1, content)
    others = ((file, file.stem) for file in newest if not (GRID.fullmatch(file.name) or SCATTER.fullmatch(file.name)))
    content.others = _whole(others, OTHERS, content)
    if not content.grids:
        content.notes.append("There are no sample grids yet (samples/step-*.png).")


def _whole(files: Iterable[tuple[Path, str]], count: int, content: Content) -> list[Picture]:
    """The first `count` readable pictures among files with captions; each unreadable one is noted."""
    found: list[Picture] = []
    for file, caption in files:
        if len(found) == count:
            break
        data = _bytes(file, content)
        if data is None:
            continue
        if len(data) > LARGEST:
            content.notes.append(f"samples/{file.name} has {len(data) / 2**20:.0f} MB and is left out of this page.")
            continue
        try:
            picture, header = picture_in(data, str(file)), read_header(file)
        except MmfastError as error:
            content.notes.append(f"{error}.")
            continue
        found.append(Picture(file.name, caption, header.format, picture.size, data))
    return found
