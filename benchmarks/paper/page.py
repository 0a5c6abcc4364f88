"""The page TASK.md of a report: a table for each condition, the claims, the times, and how to run it again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.paper.report import Budget, Row, Section, Verdict

# Up to this many conditions measured for one method alone get a table each; more share one.
FEW = 6


def three(x: float) -> str:
    """A number with three significant digits, without an exponent where possible: 0.0123, 12.0, 1230."""
    if not math.isfinite(x):
        return "failed"
    if x == 0:
        return "0"
    rounded = float(f"{x:.2e}")
    places = 2 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(places, 0)}f}" if -4 <= places <= 6 else f"{x:.2e}"


def text(
    title: str,
    question: str,
    report: dict[str, Any],
    rows: Sequence[Row],
    reference: Sequence[Row],
    claims: Sequence[Budget],
    notes: Sequence[str],
    pictures: Sequence[tuple[str, str]],
    sections: Sequence[Section] = (),
) -> str:
    """The page, from `report.write`'s dictionary and rows."""
    seeds, apart = report["seeds"], {method for section in sections for method in section.own}
    parts = [f"# {title}", question]
    usual = [row for row in rows if row.method not in apart]
    alone = _alone([*usual, *reference])
    for condition in _distinct(row.condition for row in (*usual, *reference) if row.condition not in alone):
        mine, beside = ([row for row in group if row.condition == condition] for group in (usual, reference))
        parts += [f"## {condition}", table(mine, beside, len(seeds))]
    parts += ["## Without a rival", conditions([r for r in usual if r.condition in alone], len(seeds))] if alone else []
    parts += [_how_to_read(seeds)]
    parts += [_failures(rows)] if any(row.failed for row in rows) else []
    parts += ["## Claims", _claims(claims[0].verdicts)] if claims[0].verdicts else []
    parts += [text for section in sections for text in _section(section, rows, len(seeds))]
    parts += ["## What more compute changes", _budgets(claims)] if len(claims) > 1 else []
    parts += [f"![{file}]({file})\n\n{caption}" for caption, file in pictures]
    parts += ["## Minutes", _minutes(report), "## Run it again", _again(report)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _alone(rows: Sequence[Row]) -> list[str]:
    """The conditions measured for only one method, if a table for each would hide the others."""
    methods = {row.condition: set[str]() for row in rows}
    for row in rows:
        methods[row.condition].add(row.method)
    found = [condition for condition, who in methods.items() if len(who) == 1]
    return found if len(found) > FEW else []


def conditions(rows: Sequence[Row], n_seeds: int) -> str:
    """A table of one method, with conditions as rows and metrics as columns."""
    metrics = {row.metric: row.higher_is_better for row in rows}
    lines = ["| condition | " + " | ".join(f"{_cell(m)} {'↑' if up else '↓'}" for m, up in metrics.items()) + " |"]
    lines.append("|---" * (1 + len(metrics)) + "|")
    for condition in _distinct(row.condition for row in rows):
        found = {row.metric: row for row in rows if row.condition == condition}
        numbers = [_value(found.get(m), None, n_seeds) for m in metrics]
        lines.append(f"| {_cell(condition)} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _section(section: Section, rows: Sequence[Row], n_seeds: int) -> list[str]:
    """The section's tables, for the conditions that its own methods were measured under, and its claims."""
    found = [row for method in section.methods for row in rows if row.method == method]
    measured = {(row.condition, row.metric) for row in found if row.method in section.own}
    parts = [f"## {section.title}", section.text]
    for condition in _distinct(row.condition for row in found):
        shown = [row for row in found if row.condition == condition and (condition, row.metric) in measured]
        if shown:
            parts += [f"### {section.title}: {condition}", table(shown, [], n_seeds)]
    return [*parts, *([_claims(section.verdicts)] if section.verdicts else [])]


def _claims(verdicts: Sequence[Verdict]) -> str:
    lines = [f"| {_cell(v.claim)} | {'yes' if v.holds else '**no**'} | {_cell(v.evidence)} |" for v in verdicts]
    return "\n".join(["| claim | holds | evidence |", "|---|---|---|", *lines])


def _budgets(claims: Sequence[Budget]) -> str:
    """The claims of the first budget, at each number of training images."""
    columns = sorted(claims, key=lambda budget: budget.images)
    found = [{v.claim: f"{'yes' if v.holds else 'no'}: {v.evidence}" for v in budget.verdicts} for budget in columns]
    heads = [f"{b.images:,} images seen" + f" ([page]({b.page}))" * bool(b.page) for b in columns]
    table = [["claim", *heads], ["---"] * (1 + len(heads))]
    table += [[_cell(v.claim), *(_cell(budget.get(v.claim, "-")) for budget in found)] for v in claims[0].verdicts]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def table(rows: Sequence[Row], reference: Sequence[Row], n_seeds: int) -> str:
    """A table of one condition, with methods as rows, the reference rows last, and metrics as columns."""
    metrics = {row.metric: row.higher_is_better for row in (*rows, *reference)}
    lines = ["| method | " + " | ".join(f"{_cell(m)} {'↑' if up else '↓'}" for m, up in metrics.items()) + " |"]
    lines.append("|---" * (1 + len(metrics)) + "|")
    winners = {metric: best([row for row in rows if row.metric == metric], n_seeds) for metric in metrics}
    nobody = dict.fromkeys(metrics)
    for group, shown, first, expected in ((rows, "{}", winners, n_seeds), (reference, "*{}*", nobody, None)):
        for method in _distinct(row.method for row in group):
            found = {row.metric: row for row in group if row.method == method}
            numbers = [_value(found.get(m), first[m], expected) for m in metrics]
            lines.append(f"| {shown.format(_cell(method))} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def best(rows: Sequence[Row], n_seeds: int = 0) -> str | None:
    """The method that is better than every other by more than the sum of the two standard errors, if any.

    A method with one seed has no standard error, so it cannot win, and none can win against it. A failed method is left
    out, and a method with fewer than `n_seeds` seeds cannot win.
    """
    rivals = [row for row in rows if not row.failed]
    if len(rivals) < 2:
        return None
    sign = 1 if rivals[0].higher_is_better else -1
    first, *others = sorted(rivals, key=lambda row: -sign * row.mean)
    if first.n_seeds < n_seeds:
        return None
    for other in others:
        if first.stderr is None or other.stderr is None:
            return None
        if not sign * (first.mean - other.mean) > first.stderr + other.stderr:
            return None
    return first.method


def _value(row: Row | None, winner: str | None, expected: int | None) -> str:
    if row is None:
        return "-"
    if row.failed:
        return "failed"
    shown = three(row.mean) if row.stderr is None else f"{three(row.mean)} ± {three(row.stderr)}"
    shown = f"**{shown}**" if row.method == winner else shown
    # Mark a method that lacks seeds; a reference may have any number of values.
    return shown if expected in (None, row.n_seeds) else f"{shown} (n = {row.n_seeds})"


def _how_to_read(seeds: Sequence[int]) -> str:
    arrows = "↑: higher is better, ↓: lower is better. "
    if len(seeds) == 1:
        return f"{arrows}One seed ({seeds[0]}), so there are no standard errors and nothing is bold."
    return (
        f"{arrows}Mean ± standard error over {len(seeds)} seeds ({', '.join(map(str, seeds))}). Bold: better than "
        "every other method by more than the sum of the two standard errors."
    )


def _failures(rows: Sequence[Row]) -> str:
    lines = [
        f"- {row.method}, {row.condition}, {row.metric}: seed {', '.join(map(str, row.failed))}"
        for row in rows
        if row.failed
    ]
    return "\n".join(["Failed (the value was not a finite number, so the row has no mean):", "", *lines])


def _minutes(report: dict[str, Any]) -> str:
    lines = ["| method | images | train, by seed | evaluate, by seed |", "|---|---|---|---|"]
    for method, parts in report["minutes"].items():
        shown = (", ".join("-" if math.isnan(x) else three(x) for x in parts[key]) for key in ("train", "evaluate"))
        lines.append(f"| {_cell(method)} | {report['images'][method]:,} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _again(report: dict[str, Any]) -> str:
    images = report["images"]
    machine, images = report["machine"], images.get("mmfast", max(images.values()))
    threads = ", ".join(map(str, machine["threads"]))
    gpus = ", ".join(name for name in machine["devices"] if name != "cpu")
    where = f"; trained and evaluated on one {gpus}" if gpus else ""
    drawn = f" {report['drawn']} samples a condition were drawn." if report["drawn"] else ""
    task = report["task"].replace("_", "-")  # any_to_any is a file's name
    command = f"python -m benchmarks.paper {task} --seeds {len(report['seeds'])} --images {images}"
    command += f" --samples {report['samples']}" if report["samples"] else ""
    command += "".join(f" {shlex.quote(word)}" for word in report["options"])
    if report["commit"] is None:
        commit = "Written outside a git checkout"
    else:
        commit = f"Written at commit `{report['commit'][:12]}`" + (
            " with uncommitted changes" if report["dirty"] else ""
        )
    if report["evaluated_at"] not in ([], [report["commit"]]):
        commit += f", from models evaluated at {_states(report['evaluated_at'])}"
    if report["trained_at"] not in ([], report["evaluated_at"]):
        commit += f" and trained at {_states(report['trained_at'])}"
    return (
        f"```\n{command}\n```\n\n{commit}, on {machine['cores']} cores ({machine['instructions']}, torch "
        f"{machine['torch']}, threads: {threads}){where}.{drawn} All numbers, every seed's value and the configs are "
        f"in [{report['task']}.json]({report['task']}.json)."
    )


def _states(states: Sequence[str]) -> str:
    return ", ".join(f"`{state[:12]}`{state[40:]}" for state in states)


def _distinct(names: Any) -> list[str]:
    return list(dict.fromkeys(names))


def _cell(text: str) -> str:
    """Escape text for a table cell."""
    return text.replace("|", "\\|").replace("\n", " ")
