"""The page about a run: its content as one HTML file that fetches nothing."""

from __future__ import annotations

import base64
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from mmfast.config import Config
from mmfast.generate import guidance_text
from mmfast.report.content import Content, Picture, Series, finite
from mmfast.report.elements import Markup, element, folded, join, table, terms
from mmfast.report.figures import BOUND, ERROR, Figure, explained
from mmfast.report.plot import curve, number, plot, running_mean
from mmfast.sizes import named
from mmfast.words import plural

GENERATOR = "mmfast report"
# Nothing is fetched and no script runs, whatever the run's files contain.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Stands for a number or a direction that does not exist.
NONE = "none"
# The share of a series that each value of its running mean covers.
SHARE = 1 / 50
# More classes than this are folded away.
MANY = 30

SERIES = {
    "loss": "Loss, of all modalities",
    "learning_rate": "Learning rate",
    "grad_norm": "Norm of the gradient, before it is clipped",
    "validation.loss": "Loss of held-out examples, by the averaged weights",
}
# What the prefixes of series' names mean.
PARTS = {
    "loss.": "Loss, part of ",
    "balance.": "Weight of the loss of ",
    "validation.loss.": "Loss of held-out examples, part of ",
}
# Series that are measured now and then: their values are shown and not averaged.
SELDOM = ("learning_rate", "validation.")
# How a modality's options are put into words, and which of them are sizes.
DETAILS = {
    "classes": "classes: {}",
    "channels": "channels: {}",
    "size": "{} pixels",
    "dim": "vectors of length {}",
    "cells": "{} cells",
    "of": "made from {}",
    "network": "features of {}",
}
SIZES = ("size", "cells")


def page(content: Content, machine: Mapping[str, str]) -> str:
    """The whole page. machine: facts about this machine, by name."""
    name = content.folder.resolve().name
    sections = [
        ("trained", "What was trained", _trained(content.config)),
        ("samples", "Samples", _samples(content)),
        ("figures", "Figures", _figures(content)),
        ("curves", "Training", _curves(content.series)),
        ("classes", "Classes", _classes(content.config)),
        ("commands", "What to do with it", _commands(content)),
        ("config", "Config", folded("config.yaml", element("pre", element("code", content.config_text)))),
        ("machine", "Machine", _machine(machine)),
    ]
    shown = [section for section in sections if section[2]]
    links = [element("li", element("a", head, href=f"#{anchor}")) for anchor, head, _ in shown]
    body = element(
        "main",
        element("h1", f"Run {name}"),
        _progress(content),
        _notes(content.notes),
        element("nav", element("ul", *links), aria_label="Sections"),
        *(
            element("section", element("h2", head, id=anchor), inside, aria_labelledby=anchor)
            for anchor, head, inside in shown
        ),
    )
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=GENERATOR),
        element("title", f"Run {name}: mmfast"),
        element("style", Markup(style)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _value(x: float | None) -> Markup:
    """A number rounded for reading, with all its digits in the markup."""
    return Markup(NONE) if x is None else element("data", number(x), value=repr(x))


def _progress(content: Content) -> Markup:
    if content.config is None:
        return element("p", f"Recorded: {plural(content.steps, 'step')}.")
    wanted = content.config.train.steps
    said = f"{content.steps:,} of {plural(wanted, 'step')}"
    bar = element("progress", said, max=wanted, value=min(content.steps, wanted), aria_label="Steps of training")
    return element("p", bar, f" {said}")


def _notes(notes: Sequence[str]) -> Markup:
    if not notes:
        return Markup()
    return element("aside", element("ul", *(element("li", note) for note in notes)), aria_label="Notes")


def _options(section: Any, but: Sequence[str] = ()) -> str:
    """A config section's options in one line, its kind first, without those that are empty, off or 0."""
    plain = {
        k: v for k, v in dataclasses.asdict(section).items() if k not in but and v not in (None, "", [], {}, False)
    }
    kind = plain.pop("kind", None)
    return ", ".join([*([str(kind)] if kind else []), *(f"{k} {v}" for k, v in plain.items())])


def _trained(config: Config | None) -> Markup:
    if config is None:
        return Markup()
    parts = []
    for name, spec in config.modalities.items():
        found: dict[str, Any] = {key: x for key in DETAILS if (x := getattr(spec, key, ""))}
        said = [spec.kind, *(DETAILS[key].format(named(x) if key in SIZES else x) for key, x in found.items())]
        if name == config.anchor:
            said.append("the anchor, diffused itself")
        parts.append(element("li", element("b", name), f": {', '.join(said)}"))
    train, sample = config.train, config.sample
    rate = f"learning rate {train.learning_rate:g}, {train.decay} after {plural(train.warmup, 'step')} of warm-up"
    times, steps, drawn_in = (plural(n, "step") for n in (config.schedule.T, train.steps, sample.steps))
    examples = plural(train.batch_size, "example")
    turns = f", {', then '.join(sample.first)} first" if sample.first else ""
    return terms(
        [
            ("Modalities", element("ul", *parts)),
            ("Data", _options(config.data)),
            ("Network", _options(config.backbone)),
            (
                "Process",
                f"{config.schedule.kind} schedule of {times}, predicting {config.loss.target}",
            ),
            (
                "Training",
                f"{steps} of {examples} ({train.steps * train.batch_size:,} in all), "
                f"{rate}, average of the weights with decay {train.ema_decay:g}, {train.precision}, seed {config.seed}",
            ),
            (
                "Sampling",
                f"{sample.sampler}, {drawn_in}, guidance {guidance_text(sample.guidance_scale)}{turns}",
            ),
        ]
    )


def _samples(content: Content) -> Markup:
    pictures = [_picture(picture) for picture in content.grids]
    if content.others:
        pictures.append(element("h3", "Drawn with mmfast sample"))
        pictures += [_picture(picture) for picture in content.others]
    return join(*pictures) if pictures else element("p", "No pictures yet.")


def _picture(picture: Picture) -> Markup:
    text = base64.b64encode(picture.content).decode("ascii")
    caption = picture.caption[:1].upper() + picture.caption[1:]
    width, height = picture.size
    image = element(
        "img",
        src=f"data:image/{picture.format.lower()};base64,{text}",
        alt=f"Grid of samples. {caption}.",
        width=width,
        height=height,
    )
    return element("figure", element("figcaption", caption), image, class_="picture")


def _figures(content: Content) -> Markup:
    metrics = content.metrics
    if not metrics:
        return element("p", "No figures yet: they are written when training ends, or printed by mmfast eval.")

    # The columns between value and meaning; a group shows those that any of its figures fills.
    between = {
        "Real against real": lambda figure: _value(metrics.get(figure.reference)),
        "Direction": lambda figure: figure.better or NONE,
    }
    parts: list[Markup] = []
    for group, figures in explained(metrics, _other_anchor(content.config), _latents(content.config)).items():
        columns = {head: cells for head, of in between.items() if set(cells := [of(x) for x in figures]) != {NONE}}
        names, values = [x.name for x in figures], [_value(metrics[x.name]) for x in figures]
        rows = zip(names, values, *columns.values(), [x.meaning for x in figures], strict=True)
        listed = table(["Figure", "Value", *columns, "Meaning"], rows)
        if group == ERROR:
            parts += [element("h3", group), _error(metrics, figures), folded("The numbers", listed)]
        elif group == BOUND:
            parts += [element("h3", group), folded(plural(len(figures), "figure"), listed)]
        else:
            parts += [element("h3", group), listed]
    return join(*parts)


def _latents(config: Config | None) -> bool:
    """Whether the anchor is an image that is diffused as an autoencoder's latents."""
    spec = None if config is None else getattr(config.modalities[config.anchor], "autoencoder", None)
    return spec is not None and bool(spec.network)


def _other_anchor(config: Config | None) -> str:
    """The name of the anchor; "" if it is an image."""
    return "" if config is None or hasattr(config.modalities[config.anchor], "levels") else config.anchor


def _error(metrics: Mapping[str, float], figures: Sequence[Figure]) -> Markup:
    """Plot the prediction error against t. The times were chosen evenly in log SNR and are spaced evenly."""
    found = {int(figure.name.partition(".")[2]): metrics[figure.name] for figure in figures}
    points = sorted((t, x) for t, x in found.items() if finite(x))
    if not points:
        return Markup()
    times, errors = zip(*points, strict=True)
    worst = max(points, key=lambda point: point[1])
    about = (
        f"{ERROR} at {plural(len(points), 'timestep')} from {times[0]} to {times[-1]}: "
        f"{number(errors[0])} at the first, {number(errors[-1])} at the last, "
        f"the largest {number(worst[1])} at {worst[0]}."
    )
    label = "t, evenly spaced in log SNR; more noise to the right"
    # Label only some of many times, so that the labels do not overlap.
    every = 1 + len(times) // 11
    marks = [(float(k), str(t)) for k, t in enumerate(times) if (len(times) - 1 - k) % every == 0]
    places = [float(k) for k in range(len(times))]
    return element("div", plot("Mean squared error", about, curve(places, errors), label, marks, True), class_="plots")


def _curves(series: Sequence[Series]) -> Markup:
    if not series:
        return element("p", "No steps are recorded.")
    heads = ["loss", "loss.", "balance.", "validation.loss", "validation."]
    names = [
        s.name for head in heads for s in series if s.name == head or (head[-1] == "." and s.name.startswith(head))
    ]
    order = {name: k for k, name in enumerate(dict.fromkeys(names))}
    plots, rows = [], []
    for one in sorted(series, key=lambda s: order.get(s.name, len(order))):
        begins = next((x for x in PARTS if one.name.startswith(x)), "")
        name = SERIES.get(one.name) or PARTS.get(begins, "") + one.name.removeprefix(begins)
        window = 1 if one.name.startswith(SELDOM) else max(1, int(len(one.values) * SHARE))
        mean = float(running_mean(np.asarray(one.values), window)[-1])
        about = (
            f"{name}, from step {one.steps[0]:,} to {one.steps[-1]:,}: {number(one.values[0])} at first, "
            f"{number(mean)} as the mean of the last {window:,}."
        )
        plots.append(plot(name, about, curve(one.steps, one.values, window), "step"))
        rows.append([one.name, *map(_value, (one.values[0], one.values[-1], mean)), f"{window:,}"])
    heads = ["Quantity", "First", "Last", "Mean at the end", "Steps in that mean"]
    text = "The line is a running mean; the band behind it spans all values."
    return join(element("p", text), element("div", *plots, class_="plots"), folded("The numbers", table(heads, rows)))


def _classes(config: Config | None) -> Markup:
    parts = []
    for name, spec in config.modalities.items() if config else ():
        count = getattr(spec, "classes", 0)
        names = getattr(spec, "names", [])
        if names:
            listed = element("ol", *(element("li", called) for called in names), start=0, class_="classes")
            inside = folded(plural(len(names), "class"), listed) if len(names) > MANY else listed
            parts.append(join(element("h3", name), inside))
        elif count:
            background = ", 0 the background" if spec.kind == "mask" else ""
            said = f"{plural(count, 'class')}, numbered 0 to {count - 1:,}{background}; the config gives them no names."
            parts.append(join(element("h3", name), element("p", said)))
    return join(*parts)


def _commands(content: Content) -> Markup:
    run = shlex.quote(str(content.folder))
    file = shlex.quote(str(content.folder / "config.yaml"))
    found = [
        ("Resume it, or train it longer with more --train.steps", f"mmfast train {file} --out {run}"),
        ("Draw samples", f"mmfast sample {run} --n 64"),
    ]
    for name, spec in content.config.modalities.items() if content.config else ():
        if spec.kind == "label":
            given = shlex.quote(f"{name}={spec.names[0] if spec.names else 0}")
            found.append((f"Draw samples of one {name}", f"mmfast sample {run} --given {given}"))
        elif content.config and len(content.config.modalities) > 1:
            found.append(
                (f"Draw the rest given {name} of held-out examples", f"mmfast sample {run} --given {name}=data")
            )
    found += [
        ("Measure the figures again", f"mmfast eval {run}"),
        ("Write this page again", f"mmfast report {run}"),
    ]
    return terms([(said, element("pre", element("code", command))) for said, command in found])


def _machine(machine: Mapping[str, str]) -> Markup:
    said = "The machine that wrote this page. A run does not record which one trained it."
    return join(element("p", said), terms(machine.items()))
