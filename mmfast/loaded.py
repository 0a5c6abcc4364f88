"""A trained run, loaded once and then sampled, in Python and on the command line."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfast.build import build_data, load_run
from mmfast.config import Config
from mmfast.data import Data
from mmfast.errors import MmfastError, notice, unknown
from mmfast.export import EXPORTS
from mmfast.generate import generate, how_drawn, how_text, kept_as_given, title
from mmfast.given import Several, check_aligned, known_part, taken
from mmfast.held_out import Shuffled, true_values, with_count
from mmfast.modalities import Modality
from mmfast.model import Model
from mmfast.ranks import ALONE, Ranks
from mmfast.run import Run
from mmfast.sample import check_count
from mmfast.sample_options import plain_numbers
from mmfast.samples import Samples, whole
from mmfast.words import plural

# The options of `Loaded.sample` whose defaults are the config's: their types, also in words.
OPTIONS: dict[str, tuple[Any, str]] = {
    "steps": (int, "a whole number"),
    "spacing": ((int, float), "a number"),
    "sampler": (str, "a name"),
    "eta": ((int, float), "a number"),
    "guidance_scale": ((int, float, Mapping), "a number, or a dict of numbers"),
    "first": ((str, Sequence), "a modality's name, or a list of them"),
    "offset": (Mapping, "a dict of shares"),
    "resample": (int, "a whole number"),
    "batch_size": (int, "a whole number"),
    "precision": (str, "a name"),
    "heads": (str, "a name"),
    "progress": ((bool, str), "True, False or a text"),
}
# The default numbers of samples: in all, and for each of several values.
COUNT, EACH = 16, 4


@dataclass
class Loaded:
    """A run's folder, its config and its averaged model."""

    run: Run
    config: Config
    model: Model

    def __repr__(self) -> str:
        return f"Loaded({self.run.folder}: {', '.join(self.model.parts)})"

    @functools.cached_property
    def data(self) -> Data:
        """The run's data set, opened on first use."""
        return build_data(self.config)

    def sample(
        self,
        n: int | None = None,
        *,
        given: Mapping[str, Any] | None = None,
        known: Mapping[str, Any] | None = None,
        seed: int = 0,
        ranks: Ranks = ALONE,
        **more: Any,
    ) -> Samples:
        """Draw samples, as `mmfast sample` does: `sample(label="cats", n=8, guidance_scale=2)`.

        Give a modality by its name, as an argument or in `given`. Its value is a text as on the command line ("cats",
        "3", "file.png", "data" for held-out examples), a number, a path, a PIL picture, an array or a tensor [...]; a
        list of n, or a tensor [n, ...], has one value per sample. A uint8 array is a picture, [H, W] or [H, W, 3]; any
        other array is x as the model represents it. Each of several values in a text ("cats,dogs"; "all" for every
        class) is drawn n times, with the same noise as the others, and has its own row in the grid.

        known: the known part of a modality that is given in part, around which the rest is drawn
        (`mmfast.sample.sample`). For a picture, another one that is white there, or a bool array [H, W]; for numbers, a
        text of positions, "0-31,40"; for a table's row, the columns' names. A row that is given by some of its columns,
        as a dict or as "radius=14,texture=20", needs no entry.

        n: the number of samples; None for the length of a given list, else 16, or 4 for each of several values. more:
        also the options named in OPTIONS, which replace the config's (`mmfast.generate.generate`).

        Raises MmfastError naming the argument.
        """
        for option, pairs in (("given", given), ("known", known)):
            if not isinstance(pairs or {}, Mapping):
                raise MmfastError(f"{option} is a {type(pairs).__name__}; it should be a dict from modality to value")
        for name in more:
            if name not in OPTIONS and name not in self.model.parts:
                raise unknown("sample's argument", name, [*self.model.parts, *OPTIONS, "n", "seed", "given", "known"])
        more = {name: value for name, value in more.items() if value is not None}
        options = {name: _option(name, value) for name, value in more.items() if name in OPTIONS}
        parts = {name: value for name, value in more.items() if name not in OPTIONS}
        values = {name: value for name, value in {**(given or {}), **parts}.items() if value is not None}
        n, seed = None if n is None else whole("n", n, 1), whole("seed", seed, 0)
        check_aligned({name: self.model.part(name) for name in self.model.parts}, values, known or {})
        partly = self._in_part(values, known or {})
        rows = self._rows({name: partly[name][0] if name in partly else value for name, value in values.items()})
        inside = {name: there for name, (_, there) in partly.items() if not bool(there.all())}
        if not {*self.model.parts} - ({*values} - {*inside}):
            raise MmfastError(f"{', '.join(self.model.parts)} are all given, so nothing is left to draw; leave one out")
        first = options.get("first", self.config.sample.first)
        scale = options.get("guidance_scale", 1)
        if scale != 1 and not isinstance(scale, Mapping) and not first and not {*values} - {*inside}:
            raise MmfastError("guidance_scale is set, but nothing is given to guide by; leave it out")
        again = options.get("resample", 1)
        if again > 1 and not inside:
            raise MmfastError(f"resample is {again}, but nothing is given in part; leave it out")
        n, several = _how_many(rows, n)
        check_count(self.model, n * several, "n")
        of_data = [name for name, value in values.items() if name not in rows]
        real = self._real(n, of_data)
        rows |= {name: [real[name]] for name in of_data}
        these = {
            name: torch.cat([x.expand(n, *x.shape[1:]) for x in (found if len(found) > 1 else found * several)])
            for name, found in rows.items()
        }
        ids = torch.arange(n).repeat(several)
        how: dict[str, Any] = {"known": inside, **options}
        drawn = generate(self.model, self.config, len(ids), these, sample_ids=ids, seed=seed, ranks=ranks, **how)
        drawn |= kept_as_given(self.model, drawn, these)
        known_whole = [name for name in these if name not in inside]
        how = {"seed": seed, **how_drawn(self.model, self.config, known_whole, options, inside)}
        what = [f"{name}={value}" if isinstance(value, (str, int, Several)) else name for name, value in values.items()]
        what = [f"{text} in part" if text.partition("=")[0] in inside else text for text in what]
        return Samples(
            {name: x.cpu() for name, x in drawn.items()},
            {name: self.model.part(name) for name in drawn},
            self.model.anchor_name,
            tuple(these),
            how,
            f"{title(what, [first] if isinstance(first, str) else first)}; {how_text(how)}",
            ids.tolist(),
            n if several > 1 else None,
            {name: torch.cat([x] * several) for name, x in true_values(self.model, real, known_whole).items()},
            {name: these[name] for name in inside},
        )

    def export(self, kind: str, folder: str | os.PathLike[str] | None = None, **options: Any) -> Path:
        """Export the model for another library into a new folder, by default RUN/KIND. Returns the folder.

        kind: "diffusers", a pipeline of the anchor's generation that `DiffusionPipeline.from_pretrained` loads
        (`mmfast.export.to_diffusers`, which takes the options). Raises MmfastError if there is no counterpart.
        """
        if kind not in EXPORTS:
            raise unknown("export's kind", kind, EXPORTS)
        return EXPORTS[kind](self.model, self.config, self.run.folder / kind if folder is None else folder, **options)

    def _real(self, n: int, names: Sequence[str]) -> Mapping[str, Tensor]:
        """The values of n held-out examples, at least those of the modalities named; {} if none are."""
        if not names:
            return {}
        found = with_count(Shuffled(self.data.test), n, self.model, names)
        if found.different < n:
            examples = plural(found.different, "held-out example")
            notice(f"{names[0]}=data: there are {examples} for {n:,} samples, so they repeat")
        return found.batch.data

    def _in_part(self, values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, tuple[Any, Tensor]]:
        """The values that say which of their parts are known, by name, each with that part, bool [...]."""
        found: dict[str, tuple[Any, Tensor]] = {}
        for name, value in values.items():
            part = self.model.part(name) if name in self.model.parts else None
            partial = part.in_part(value) if part is not None else None
            if partial is not None:
                found[name] = partial
            if (
                isinstance(value, Several)
                and part is not None
                and any(part.in_part(x) is not None for x in value.texts)
            ):
                raise MmfastError(f"{name} is given in part, and more than once; name all that is known of it at once")
        for name, value in known.items():
            if name not in values:
                if name in self.model.parts:
                    raise MmfastError(f"known has {name}, which is not given; give its value, too")
                raise unknown("known's modality", name, values)
            if name in self.model.parts:
                there = known_part(self.model.part(name), value, f"known {name}")
                if not bool(there.any()):
                    hint = " (a picture should be white there)" if there.dim() > 1 else ""
                    raise MmfastError(f"known {name} marks no part of it{hint}; mark what to keep, or leave {name} out")
                if name in found and bool((there & ~found[name][1]).any()):
                    raise MmfastError(
                        f"known {name} has a part whose value is not given; give it, or leave it out there"
                    )
                found[name] = (found[name][0] if name in found else values[name], there)
        return found

    def _rows(self, values: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        """By name, x for each of several values, [1, ...] or with one row per sample. Leaves out held-out data."""
        rows = {}
        for name, value in values.items():
            if name not in self.model.parts:
                raise unknown("given's modality", name, self.model.parts)
            part = self.model.part(name)
            if _is_data(part, value):
                continue
            if isinstance(value, Several) and any(_is_data(part, text) for text in value.texts):
                raise MmfastError(f"{name}=data is given with other values of {name}; give it alone")
            given = (value,) if isinstance(value, str) else value.texts if isinstance(value, Several) else ()
            texts = [x for text in given for x in part.values(text)]
            rows[name] = [taken(part, text, name) for text in texts] or [taken(part, value, name)]
        return rows


def load(folder: str | os.PathLike[str], device: str = "auto", weights: str = "last") -> Loaded:
    """Load a run to sample from. Raises MmfastError if the folder holds no run, or if there is no such device.

    weights: "last", or "best" for the best on held-out examples.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise MmfastError(f"load's folder is a {type(folder).__name__}; it should be the path of a run's folder")
    return Loaded(*load_run(Path(folder), device, "device", weights))


def _is_data(part: Modality, value: Any) -> bool:
    """Whether a value stands for held-out examples: "data", unless a class has that name."""
    return isinstance(value, str) and value == "data" and value not in getattr(part.spec, "names", ())


def _how_many(rows: Mapping[str, list[Tensor]], n: int | None) -> tuple[int, int]:
    """How many samples of each of several values, and how many values. Raises MmfastError if they do not match."""
    values = {name: len(found) for name, found in rows.items() if len(found) > 1}
    if len({*values.values()}) > 1:
        found = " and ".join(f"{count} of {name}" for name, count in values.items())
        raise MmfastError(f"{found} are given; there should be one of each, or the same number of all")
    several = max(values.values(), default=1)
    sizes = {name: len(x) for name, found in rows.items() for x in found if len(x) != 1}
    n = n or max(sizes.values(), default=COUNT if several == 1 else EACH)
    for name, size in sizes.items():
        if size != n:
            raise MmfastError(f"{name} has {size} values; it should have one, or {n}, as many as there are samples")
    return n, several


def _option(name: str, value: Any) -> Any:
    """An option's value. Raises MmfastError if it is not of the option's type."""
    types, words = OPTIONS[name]
    value = plain_numbers(value)
    if not isinstance(value, types) or (isinstance(value, bool) and name != "progress"):
        raise MmfastError(f"{name} is {value!r}; it should be {words}")
    return value
