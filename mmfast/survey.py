"""A survey of a data set as training will read it: its contents, its oddities, and why training would stop."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from mmfast import data as data_sets
from mmfast.build import build_data, build_model, pick_device, stored, with_found
from mmfast.candidates import two_palettes
from mmfast.config import Config
from mmfast.data import Batch, Data, Examples
from mmfast.data.labelled import with_few_labels
from mmfast.errors import MmfastError
from mmfast.image_files import read_header
from mmfast.model import Model
from mmfast.oddities import ODDITIES, PICTURES
from mmfast.pictures import sample_grid
from mmfast.progress import Bar, on_terminal
from mmfast.training.try_out import check_batch, rehearse
from mmfast.words import plural

AT_ONCE, SHOWN = 64, 16
UNREADABLE_AT_MOST = 10  # lines with reasons, at the start of training
HEADERS_AT_MOST = 2000  # examples whose pictures are opened at the start of training
SELDOM = 0.25  # a modality that a smaller share of the examples has is worth a note


@dataclass
class Seen:
    """What the examples hold of one modality."""

    there: int = 0
    missing: int = 0
    # The number of a label's examples, or a mask's pixels, by class; empty for what has no classes.
    classes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)


@dataclass
class Survey:
    """A data set as a config reads it. If `wrong` has lines, training would stop, with the first of them or another.

    odd: files by modality and by what is odd and how it is handled. left_out: unused files by reason. unreadable: why
    examples cannot be read, one line each, if training does not stop for it. notes: other remarks, one line each.
    sheet: some examples as the model will see them.
    """

    config: Config
    train: int = 0
    test: int = 0
    parameters: int = 0
    seen: dict[str, Seen] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    odd: dict[tuple[str, str], list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    sheet: PILImage.Image | None = None


def survey(config: Config, quiet: bool = True) -> Survey:
    """Read every example of a config's data once, as training does, and do all that it does before its first step.

    quiet: no progress bar. Errors are not raised but become lines of `wrong`.
    """
    found = Survey(config)
    specs, listing, data, opened = stored(config), None, None, False
    look = getattr(data_sets.kind(config.data.kind), "look", None)
    try:
        found.config = config = with_found(config)
        model = build_model(config)
        found.parameters = sum(p.numel() for p in model.parameters())
        if look is not None:
            listing = look(config.data, specs, config.anchor)
            found.wrong += listing.problems
        if not found.wrong:
            data, opened = build_data(config), True
            once = {n: dataclasses.replace(spec, labelled_share=None) for n, spec in config.modalities.items()}
            if once != config.modalities:  # to count each example once
                data = build_data(dataclasses.replace(config, modalities=once))
    except MmfastError as error:
        found.wrong.append(str(error))
    if listing is not None:
        found.left_out, found.notes = listing.left_out, list(listing.notes)
        for name, spec in specs.items():
            paths, anchors = listing.paths.get(name, {}), listing.paths[config.anchor]
            found.seen[name] = _headers(found, name, spec, paths, anchors)
            if spec.kind == "mask" and not spec.colours:
                differ = two_palettes([path for stem, path in paths.items() if stem in anchors])
                found.wrong += [differ] if differ else []
        if data is None and len(listing.paths[config.anchor]) > 1:
            data = listing.data()  # to find everything that is wrong with the files, not only the first thing
    if data is not None:
        skips = _skips(config) and (opened or listing is not None)
        reading, lines = (_as_they_are(config, listing), found.unreadable) if skips else (data, found.wrong)
        _read(found, reading.train, model, lines, quiet)
        trained = {name: seen.classes.copy() for name, seen in found.seen.items()}
        _read(found, reading.test, model, lines, quiet)
        found.train, found.test = len(data.train), len(data.test)
        found.notes += [*_empty_classes(found, trained), *_seldom(found)]
        found.sheet = _sheet(found, data.train, model)
        try:
            if opened:
                rehearse(config, data)
        except MmfastError as error:
            found.wrong.append(str(error))
    found.wrong = list(dict.fromkeys(found.wrong))
    return found


def _seldom(found: Survey) -> list[str]:
    """A line for each modality that few of the examples have and that no option shows more often."""
    lines = []
    for name, seen in found.seen.items():
        share = seen.there / max(1, seen.there + seen.missing)
        if 0 < share < SELDOM and found.config.modalities[name].labelled_share is None:
            lines.append(
                f"{name}: {100 * share:.2g} per cent of the examples have one, and training sees it just as rarely; "
                f"modalities.{name}.labelled_share: 0.5 would show it more often"
            )
    return lines


def brief(config: Config) -> list[str]:
    """Lines about what training is about to work on. Examples in files are counted by the files' names."""
    lines, listing = [], None
    look = getattr(data_sets.kind(config.data.kind), "look", None)
    if look is not None:
        listing = look(config.data, stored(config), config.anchor)
        anchors = listing.paths[config.anchor]
        there = {**listing.paths, **listing.texts}
        counts = {n: sum(stem in anchors for stem in x) for n, x in there.items() if x}
        parts = [f"{name} {n:,}" for name, n in counts.items() if name != config.anchor]
        held_out = f", {len(listing.split()['test']):,} of them held out" if len(anchors) > 1 else ""
        lines.append("; ".join([plural(len(anchors), "example") + held_out, *([", ".join(parts)] if parts else [])]))
        left_out = sum(map(len, listing.left_out.values()))
        if left_out:
            files = "file is" if left_out == 1 else "files are"
            lines.append(f"{left_out:,} {files} not used; `mmfast check` tells more")
        lines += _odd(config, listing)
    model = build_model(config)
    if _skips(config) and not (listing is not None and listing.problems):
        lines += _unreadable(_as_they_are(config, listing), model)
    parameters = sum(p.numel() for p in model.parameters())
    return [*lines, f"{parameters:,} parameters, on {pick_device(config.train.device, 'train.device')}"]


def _odd(config: Config, listing: Any) -> list[str]:
    """Lines about odd pictures: among all examples, or among an evenly spaced selection if there are many."""
    found, anchors = Survey(config), listing.paths[config.anchor]
    some = {stem: anchors[stem] for stem in sorted(anchors)[:: max(1, -(-len(anchors) // HEADERS_AT_MOST))]}
    for name, spec in stored(config).items():
        _headers(found, name, spec, listing.paths.get(name, {}), some)
    of = f" (of {len(some):,} looked at)" if len(some) < len(anchors) else ""
    return [f"{name}: {len(paths):,} {what}{of}" for (name, what), paths in found.odd.items()]


def _skips(config: Config) -> bool:
    return getattr(config.data, "on_error", "stop") == "skip"


def _as_they_are(config: Config, listing: Any) -> Data:
    """The examples, without replacements for those that cannot be read."""
    if listing is not None:
        found: Data = listing.data("stop")
    else:
        options = dataclasses.replace(config.data, on_error="stop")
        found = data_sets.kind(config.data.kind).open(options, stored(config), config.anchor)
    few = {"labelled_only": False, "labelled_share": None}  # which would read, and count once
    return with_few_labels(found, {name: dataclasses.replace(x, **few) for name, x in stored(config).items()})


def _unreadable(data: Data, model: Model) -> list[str]:
    """Lines about the examples that are left out, for which all are read."""
    reasons: list[str] = []
    with _bar(len(data.train) + len(data.test)) as bar:
        for part in (data.train, data.test):
            for batch in _batches(part, model, reasons):
                bar.update(len(batch))
    count = f"{len(reasons):,} of the examples cannot be read, and others take their places (data.on_error: skip)"
    more = len(reasons) - UNREADABLE_AT_MOST
    return [count, *reasons[:UNREADABLE_AT_MOST], *([f"and {more:,} more"] if more > 0 else [])] if reasons else []


def _headers(found: Survey, name: str, spec: Any, paths: Mapping[str, Path], anchors: Mapping[str, Path]) -> Seen:
    """The sizes, formats and oddities of the pictures that belong to an example."""
    seen = Seen()
    for path in (path for stem, path in paths.items() if stem in anchors and spec.kind in PICTURES):
        try:
            header = read_header(path)
        except MmfastError:  # reading will report it, if that fails too
            continue
        seen.sizes[header.size] += 1
        seen.formats[f"{header.format} {header.mode}"] += 1
        for oddity in ODDITIES:
            if spec.kind in oddity.kinds and oddity.holds(header, path, spec):
                found.odd.setdefault((name, oddity.what), []).append(path)
    return seen


def _read(found: Survey, examples: Examples, model: Model, wrong: list[str], quiet: bool) -> None:
    with _bar(len(examples), quiet) as bar:
        for batch in _batches(examples, model, wrong):
            bar.update(len(batch))
            for name, x in batch.data.items():
                seen = found.seen.setdefault(name, Seen())
                there = batch.present.get(name, torch.ones(len(batch), dtype=torch.bool))
                seen.there, seen.missing = seen.there + int(there.sum()), seen.missing + int((~there).sum())
                tally = model.part(name).tally(x[there]) if name in model.parts else None
                for k, count in enumerate([] if tally is None else tally.tolist()):
                    seen.classes[model.part(name).class_name(k)] += count


def _bar(examples: int, quiet: bool = False) -> Bar:
    """A bar on a terminal only: elsewhere its lines would say no more than the page that follows."""
    return Bar(examples, "reading", "example", quiet=quiet or not on_terminal())


def _batches(examples: Examples, model: Model, wrong: list[str]) -> Iterator[Batch]:
    """Every readable example, in order; each other one adds a line to `wrong`."""
    for start in range(0, len(examples), AT_ONCE):
        yield from _readable(examples, model, range(start, min(start + AT_ONCE, len(examples))), wrong)


def _readable(examples: Examples, model: Model, rows: range, wrong: list[str]) -> Iterator[Batch]:
    """The rows as one batch, or by halves if one of them cannot be read."""
    try:
        batch = examples.__getitems__(rows)
        check_batch(model, batch)
    except MmfastError as error:
        if len(rows) == 1:
            wrong.append(str(error))
            return
        half = len(rows) // 2
        yield from _readable(examples, model, rows[:half], wrong)
        yield from _readable(examples, model, rows[half:], wrong)
        return
    yield batch


def _empty_classes(found: Survey, trained: Mapping[str, Counter[str]]) -> list[str]:
    """A line for each modality with classes that no example has, or none to train on. trained: the latters' counts."""
    lines = []
    for name, seen in found.seen.items():
        empty = [k for k, count in seen.classes.items() if not count]
        held_out = [k for k, count in seen.classes.items() if count and not trained.get(name, Counter())[k]]
        of = f"of {plural(len(seen.classes), 'class')}"
        if empty and seen.there:
            lines.append(f"{name}: no example has {_some(empty)}, {of}")
        if held_out:
            lines.append(f"{name}: only held-out examples have {_some(held_out)}, {of}; training never sees them")
    return lines


def _some(things: list[str], most: int = 8) -> str:
    return ", ".join(things[:most]) + (f" and {len(things) - most} more" if len(things) > most else "")


def _sheet(found: Survey, examples: Examples, model: Model) -> PILImage.Image | None:
    """A picture of examples spread over the training set, as the model will see them."""
    count = min(SHOWN, len(examples))
    batches = list(_batches(Chosen(examples, [k * len(examples) // count for k in range(count)]), model, []))
    if not batches:
        return None
    batch = join(batches)
    batch = model.complete(batch, found.config.seed, torch.arange(len(batch)))
    parts = {name: model.part(name) for name in batch.data if name in model.parts}
    data = {name: batch.data[name] for name in parts}
    title = f"{len(batch)} of {plural(len(examples), 'example')}, as the model will see them"
    return sample_grid(parts, data, title, present=batch.present)


@dataclass
class Chosen:
    """A selection of the examples."""

    examples: Examples
    rows: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Any) -> Batch:
        return self.examples.__getitems__([self.rows[i] for i in indices])


def join(batches: list[Batch]) -> Batch:
    """The batches as one, in order."""
    data = {name: torch.cat([batch.data[name] for batch in batches]) for name in batches[0].data}
    partial = {name for batch in batches for name in batch.present}
    every = [{n: b.present.get(n, torch.ones(len(b), dtype=torch.bool)) for n in partial} for b in batches]
    return Batch(data, {name: torch.cat([present[name] for present in every]) for name in partial})
