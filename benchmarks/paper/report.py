"""The report of one of the paper's tasks: TASK.json, the page TASK.md and its pictures, as TASK-curves.png.

A cell is one method trained once, with one seed. A row summarises the cells of a method for one metric under one
condition: the mean over the seeds and its standard error. A number that is not finite is a failure: it is null in the
JSON and "failed" on the page, and the row has no mean. A mean of only the seeds that worked would mislead.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper import curves, page
from mmfast.errors import MmfastError
from mmfast.files import write_atomically

OURS = "mmfast"
ROOT = Path(__file__).resolve().parents[2]
CHANGED = " with changes"


@dataclass
class Metric:
    """One measured number of a cell. `condition` states what was given, `metric` what was measured."""

    condition: str
    metric: str
    value: float
    higher_is_better: bool

    def __post_init__(self) -> None:
        self.value = float(self.value)  # may be a tensor or a NumPy number


@dataclass
class Cell:
    """One method with one seed.

    images: the number seen in training; minutes: of "train" and "evaluate"; curve: a thinned list of dictionaries with
    "step", "images" and "loss"; threads: torch's; device: "cpu" or a GPU's name; trained_at and commit: the state of
    the code at training and at evaluation (`state`), None outside a checkout; samples: how many the evaluation was
    asked to draw; drawn: how many it drew.
    """

    method: str
    seed: int
    images: int
    minutes: dict[str, float]
    metrics: list[Metric]
    config: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)
    threads: int = 1
    device: str = "cpu"
    commit: str | None = None
    samples: int = 0
    drawn: int = 0
    trained_at: str | None = None
    torch: str = ""

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON: numbers that are not finite become null."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, cell: dict[str, Any]) -> Cell:
        """The inverse of `to_json`: a null value or loss becomes NaN."""
        try:
            metrics = [Metric(**{**m, "value": _number(m["value"])}) for m in cell["metrics"]]
            curve = [{**point, "loss": _number(point["loss"])} for point in cell.get("curve", [])]
            minutes = {part: _number(x) for part, x in cell["minutes"].items()}
            return cls(**{**cell, "metrics": metrics, "curve": curve, "minutes": minutes})
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise MmfastError(
                f"cell is not one of this version ({e}); delete its result.json to run it again"
            ) from None


@dataclass
class Row:
    """A method's metric over its seeds: `values` in the order of the seeds, `failed` the seeds without a number.

    stderr is the sample standard deviation over sqrt(n), None for n = 1; mean is NaN if a seed failed.
    """

    method: str
    condition: str
    metric: str
    mean: float
    stderr: float | None
    n_seeds: int
    values: list[float]
    higher_is_better: bool
    failed: list[int] = field(default_factory=list)


@dataclass
class Verdict:
    """A claim of the paper, whether it holds here, and the numbers that show it."""

    claim: str
    holds: bool
    evidence: str


@dataclass
class Budget:
    """The claims at one number of training images; page: another page that has them, as a link from this one."""

    images: int
    verdicts: list[Verdict]
    page: str = ""


@dataclass
class Section:
    """A separate comparison of some methods, with its own tables and claims.

    methods: those compared, in order; own: those of them that appear nowhere else on the page.
    """

    title: str
    text: str
    methods: list[str]
    own: list[str]
    verdicts: list[Verdict]


def kept_below(task: str, out: Path) -> list[Budget]:
    """The claims of the same task's reports below `out`, such as out/h100/TASK.json, made with other options."""
    found = []
    for file in sorted(out.glob(f"*/{task}.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        verdicts = [Verdict(**verdict) for verdict in report["verdicts"]]
        found.append(Budget(report["images"][OURS], verdicts, f"{file.parent.name}/{task}.md"))
    return found


def summarise(cells: Sequence[Cell]) -> list[Row]:
    """A row for each method, condition and metric: ours first, the others in the order given.

    Raises MmfastError for inconsistent cells: a method twice with one seed or with different numbers of images, a
    metric twice in a cell, or a metric that is better higher in one cell and lower in another.
    """
    better: dict[str, bool] = {}
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for method, group in _by_method(cells).items():
        for cell in group:
            for m in cell.metrics:
                if better.setdefault(m.metric, m.higher_is_better) != m.higher_is_better:
                    raise MmfastError(f"metric {m.metric!r} is better higher in one cell and lower in another")
                seeds = values.setdefault((method, m.condition, m.metric), {})
                if cell.seed in seeds:
                    raise MmfastError(f"{method}, seed {cell.seed}: {m.condition}, {m.metric} is there twice")
                seeds[cell.seed] = m.value
    return [_row(*key, seeds, better[key[2]]) for key, seeds in values.items()]


def _row(method: str, condition: str, metric: str, by_seed: dict[int, float], higher_is_better: bool) -> Row:
    values = list(by_seed.values())
    failed = [seed for seed, x in by_seed.items() if not math.isfinite(x)]
    mean = math.nan if failed else statistics.fmean(values)
    stderr = None if failed or len(values) == 1 else statistics.stdev(values) / math.sqrt(len(values))
    return Row(method, condition, metric, mean, stderr, len(values), values, higher_is_better, failed)


def _by_method(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """The cells of each method, sorted by seed; our method first."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.method, []).append(cell)
    for method, group in groups.items():
        group.sort(key=lambda cell: cell.seed)
        if len({cell.seed for cell in group}) < len(group):
            raise MmfastError(f"method {method!r} has two cells of one seed; each seed should be there once")
        if len({cell.images for cell in group}) > 1:
            raise MmfastError(f"method {method!r} has cells trained on different numbers of images; they should agree")
    return dict(sorted(groups.items(), key=lambda item: item[0] != OURS))


def write(
    task: str,
    title: str,
    question: str,
    cells: Sequence[Cell],
    reference_rows: Sequence[Row],
    claims: Sequence[Budget],
    notes: Sequence[str],
    pictures: Sequence[tuple[str, str]],
    out: Path,
    options: Sequence[str] = (),
    sections: Sequence[Section] = (),
) -> Path:
    """Write out/TASK.json, out/TASK-curves.png, out/TASK-errors.png and out/TASK.md, each atomically.

    Args:
        task: the stable name, as in `python -m benchmarks.paper TASK`.
        cells: those of all methods and seeds; at least one.
        reference_rows: the same metrics of something other than a method, for instance "real halves".
        claims: first those of the cells, then those of other budgets, for comparison.
        notes: remarks at the end of the page.
        pictures: (caption, file name in `out`).
        options: other options of the command, for the page to repeat it.
        sections: separate comparisons of some of the methods.

    Returns the page's path. The JSON is written first. Without matplotlib there is no picture, and a line is printed.
    """
    if not cells:
        raise MmfastError("cells is empty; a report needs at least one result, so run the task first")
    out.mkdir(parents=True, exist_ok=True)
    report = {**_report(task, cells, reference_rows, claims[0].verdicts, notes), "options": list(options)}
    report["sections"] = {section.title: [dataclasses.asdict(v) for v in section.verdicts] for section in sections}
    _write(out / f"{task}.json", json.dumps(_plain(report), indent=2, allow_nan=False) + "\n")
    groups = _by_method(cells)
    # Several methods may use one model; its curve is drawn once.
    drawn: dict[str, list[Any]] = {}
    for method, group in groups.items():
        found = [cell.curve for cell in group]
        if found not in drawn.values():
            drawn[method] = found
    rows, shown = summarise(cells), list(pictures)
    if curves.draw_errors(rows, out / f"{task}-errors.png"):
        shown.append((curves.ERRORS_CAPTION, f"{task}-errors.png"))
    if curves.draw(drawn, out / f"{task}-curves.png"):
        shown.append((curves.CAPTION, f"{task}-curves.png"))
    text = page.text(title, question, report, rows, reference_rows, claims, notes, shown, sections)
    _write(out / f"{task}.md", text)
    return out / f"{task}.md"


def _report(
    task: str, cells: Sequence[Cell], reference: Sequence[Row], verdicts: Sequence[Verdict], notes: Sequence[str]
) -> dict[str, Any]:
    groups = _by_method(cells)
    commit, dirty = current_commit()
    return {
        "task": task,
        "commit": commit,
        "dirty": dirty,
        "samples": max(cell.samples for cell in cells),
        "drawn": max(cell.drawn for cell in cells),
        "trained_at": sorted({cell.trained_at for cell in cells if cell.trained_at}),
        "evaluated_at": sorted({cell.commit for cell in cells if cell.commit}),
        "machine": _machine(cells),
        "images": {method: group[0].images for method, group in groups.items()},
        "seeds": sorted({cell.seed for cell in cells}),
        "configs": {method: group[0].config for method, group in groups.items()},
        "minutes": {
            method: {part: [c.minutes.get(part, math.nan) for c in group] for part in ("train", "evaluate")}
            for method, group in groups.items()
        },
        "rows": [dataclasses.asdict(row) for row in (*summarise(cells), *reference)],
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
        "notes": list(notes),
    }


def _machine(cells: Sequence[Cell]) -> dict[str, Any]:
    """What the times and the last bits of the numbers depend on; no CPU model and no host name."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": sorted({cell.threads for cell in cells}),
        "devices": sorted({cell.device for cell in cells}),
        "torch": ", ".join(sorted({cell.torch for cell in cells if cell.torch})) or torch.__version__,
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def current_commit() -> tuple[str | None, bool | None]:
    """HEAD, and whether anything except the results differs from it; (None, None) outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def state() -> str | None:
    """The commit of the code, marked if it has been changed since; None outside a git checkout."""
    commit, dirty = current_commit()
    return f"{commit}{CHANGED}" if commit and dirty else commit


def _write(file: Path, text: str) -> None:
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _number(x: float | None) -> float:
    return math.nan if x is None else float(x)


def _plain(x: Any) -> Any:
    """Convert for JSON: numbers that are not finite to None, NumPy's numbers to Python's, anything else to text."""
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if x is None or isinstance(x, (bool, str)):
        return x
    if isinstance(x, numbers.Integral):
        return int(x)
    if isinstance(x, numbers.Real):
        return float(x) if math.isfinite(x) else None
    return str(x)
