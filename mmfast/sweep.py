"""The figures of a run's samples over ranges of the sampling options: what guidance, steps and samplers trade off."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfast.config import Config, from_plain
from mmfast.data import Data
from mmfast.distances import against, chosen_features, comparable, real_features
from mmfast.errors import MmfastError, unknown
from mmfast.generate import check_sample, generate
from mmfast.held_out import Shuffled, held_out
from mmfast.model import Model
from mmfast.sample import check_count
from mmfast.sample_options import takes_eta

# Options that do not affect a sweep's draws.
NOT_SWEPT = ("count", "batch_size", "resample")


@dataclass(frozen=True)
class Point:
    """options: those that were swept, by key and as written; figures: those of the samples drawn with them."""

    options: dict[str, str]
    figures: dict[str, float]


def configs(config: Config, over: Mapping[str, Sequence[str]]) -> list[tuple[dict[str, str], Config]]:
    """The config with every combination of the values; the last key's values change fastest.

    over: values by key of config.sample ("steps", "guidance_scale", "guidance_scale.label"), as texts that are read
    like a config's. Raises MmfastError naming the key, before anything is drawn.
    """
    plain, names = dataclasses.asdict(config), [f.name for f in dataclasses.fields(config.sample)]
    swept = [name for name in names if name not in NOT_SWEPT]
    for key, values in over.items():
        if key.partition(".")[0] not in swept:
            raise unknown("over's option", key, swept)
        if not values:
            raise MmfastError(f"over[{key!r}] has no value; it should have some, such as {key}=1,2")
        if "." in key and key.partition(".")[0] in over:
            raise MmfastError(f"over has {key!r} and {key.partition('.')[0]!r}; it should have one of the two")
    found = []
    for values in itertools.product(*over.values()):
        options = dict(zip(over, values, strict=True))
        whole = [key for key in options if "." in key and not isinstance(plain["sample"][key.split(".")[0]], Mapping)]
        emptied = [(f"sample.{key.split('.')[0]}", "{}") for key in whole]  # numbers by name replace a single one
        written = [(f"sample.{key}", value) for key, value in options.items()]
        made = from_plain(plain, "config", [*emptied, *written])
        if "steps" in over and made.sample.steps > config.schedule.T:
            raise MmfastError(
                f"over['steps'] has {made.sample.steps}; it should be at most {config.schedule.T}, the number of times"
            )
        if "eta" in over and made.sample.eta and not takes_eta(made.sample.sampler):
            raise MmfastError(
                f"over['eta'] has {options['eta']}, and {made.sample.sampler} takes none; sweep it with a sampler that "
                "does, such as sampler=ddim"
            )
        found.append((options, made))
    return found


def sweep(
    model: Model,
    config: Config,
    data: Data,
    over: Mapping[str, Sequence[str]],
    given: Sequence[str] = (),
    progress: bool = True,
    each: Callable[[list[Point]], object] = lambda points: None,
) -> list[Point]:
    """Draw config.evaluate.samples samples with every combination of options, from the same noise, and measure them.

    The figures: the Frechet distance, precision and recall of the images (`mmfast.distances`); NAME.agreement for each
    modality for which the data set has a judge: how well what it reads off the images agrees with what was given or
    drawn with them; and the network evaluations per sample, including those for guidance.

    given: names; their values are those of held-out examples. each: called after each point with the points so far.
    Raises MmfastError naming the argument.
    """
    for name in given:
        if name not in model.parts:
            raise unknown("given", name, model.parts)
    if model.anchor_name in given:
        raise MmfastError(f"given has {model.anchor_name}, the anchor; the figures are those of drawn images")
    chosen = configs(config, over)
    for _, made in chosen:
        check_sample(model, made)
    if "clamp" in over and not model.anchor.bounded:
        raise MmfastError(f"over has clamp, but {model.anchor_name} has no bounds, so it changes nothing; leave it out")
    if not model.told and any(key.startswith("guidance_scale") for key in over):
        raise MmfastError("over has guidance_scale, but told is false, so it changes nothing; leave it out")
    first = {name for _, made in chosen for name in made.sample.first}
    for key in over:
        name = key.partition(".")[2]
        guides = {*given, *first}
        if key.startswith("guidance_scale") and (name not in guides if name else not guides):
            which = f"{name} is not" if name else "nothing is"
            raise MmfastError(f"over has {key}, but {which} given, so it changes nothing; give it, or leave it out")
    count = check_count(model, config.evaluate.samples, "evaluate.samples")
    features = chosen_features(config.evaluate)
    measured = comparable(model, features)
    judges = {name: judge for name, judge in data.judges().items() if name in model.parts}
    real = real_features(data, model.anchor_name, measured)
    truth = held_out(Shuffled(data.test), count, model, given).data if given else {}
    known = {name: truth[name] for name in given}
    points: list[Point] = []
    for number, (options, settings) in enumerate(chosen):
        text = f"{number + 1}/{len(chosen)} " + " ".join(f"{key}={value}" for key, value in options.items())
        # What is given may set its own steps, but here the swept ones count.
        how: dict[str, Any] = {"steps": settings.sample.steps} if "steps" in options else {}
        with _counted(model) as asked:
            drawn = generate(model, settings, count, known, progress=progress and text, **how)
        drawn = {name: x.cpu() for name, x in drawn.items()}
        batches = -(-count // settings.sample.batch_size)
        image, figures = drawn[model.anchor_name], {"evaluations": len(asked) / batches}
        figures |= against(real, image, measured, features.name)
        for name, judge in judges.items():
            figures[f"{name}.agreement"] = model.part(name).score(judge(image), drawn[name])
        points.append(Point(options, figures))
        each(points)
    return points


@contextlib.contextmanager
def _counted(model: Model) -> Iterator[list[None]]:
    """A list that grows by one whenever the network is evaluated."""
    asked: list[None] = []
    handle = model.register_forward_hook(lambda *_: asked.append(None))
    try:
        yield asked
    finally:
        handle.remove()


def text(points: Sequence[Point]) -> str:
    """The points as JSON."""
    return json.dumps([{"options": p.options, **p.figures} for p in points], indent=2) + "\n"


def table(points: Sequence[Point]) -> str:
    """The points as lines of text, with a column for each option and figure."""
    rows = [[*points[0].options, *points[0].figures]]
    rows += [[*p.options.values(), *(f"{x:.4g}" for x in p.figures.values())] for p in points]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def axes(points: Sequence[Point], x: str | None = None, y: str | None = None) -> tuple[str, str]:
    """The figures that a picture shows: x and y if given, else the Frechet distance against the cost if that varies,
    else agreement (precision if nothing is judged) against recall.

    Raises MmfastError for a name that is not a figure.
    """
    figures = points[0].figures
    for option, name in (("x", x), ("y", y)):
        if name is not None and name not in figures:
            raise unknown(option, name, figures)

    def first(*endings: str) -> str:
        return next((name for end in endings for name in figures if end in name), next(iter(figures)))

    costs = len({p.figures["evaluations"] for p in points}) > 1
    usual = ("evaluations", first("frechet")) if costs else (first("recall"), first("agreement", "precision"))
    return x or usual[0], y or usual[1]


def picture(points: Sequence[Point], file: Path, x: str, y: str, title: str = "") -> None:
    """Plot one figure against another as a PNG, with a line for each combination of the other options.

    The option with the most values varies along a line, and its values label the points.
    Raises MmfastError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MmfastError("the picture of a sweep needs matplotlib; pip install 'mmfast[plots]'") from None
    values = {key: list(dict.fromkeys(p.options[key] for p in points)) for key in points[0].options}
    along = max(values, key=lambda key: len(values[key]))
    lines: dict[str, list[Point]] = {}
    for point in points:
        name = ", ".join(f"{key} {value}" for key, value in point.options.items() if key != along)
        lines.setdefault(name, []).append(point)
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    plot = figure.add_subplot()
    for name, of_line in lines.items():
        places = [(p.figures[x], p.figures[y]) for p in of_line]
        plot.plot(*zip(*places, strict=True), marker="o", markersize=4, linewidth=1.5, label=name)
        if x != "evaluations":
            for point, place in zip(of_line, places, strict=True):
                plot.annotate(point.options[along], place, (4, 4), textcoords="offset points", fontsize=8)
    if x == "evaluations":
        plot.set_xscale("log")
        shown: list[float] = []
        for tick in sorted({p.figures[x] for p in points}):
            if not shown or tick / shown[-1] > 1.2:  # so that the next one has room
                shown.append(tick)
        plot.set_xticks(shown, [f"{tick:g}" for tick in shown])
        plot.set_xticks([], minor=True)
    plot.set_xlabel("network evaluations per sample" if x == "evaluations" else x)
    plot.set_ylabel(y)
    plot.set_title(title, fontsize=10)
    plot.grid(alpha=0.3)
    if len(lines) > 1:
        plot.legend(fontsize=8)
    figure.savefig(file, format="png")


def options_of(pairs: Iterable[str]) -> dict[str, list[str]]:
    """KEY=V1,V2,... as a dict. Raises MmfastError for a pair that has no value, and for a key that comes twice."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        values = re.split(r",(?![^\[{]*[\]}])", text)  # not at commas within a list or a dict
        if not all(values):
            raise MmfastError(
                f"--over {pair} has no values; it should be KEY=VALUE,VALUE, such as guidance_scale=1,2,4"
            )
        if key in found:
            raise MmfastError(f"--over has {key} twice; give all its values at once, as in {key}={text},...")
        found[key] = values
    return found
