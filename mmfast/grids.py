"""Sample grids of a run in every direction: pictures in its folder, and on a board if there is one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image as PILImage
from torch import Tensor

from mmfast.config import Config
from mmfast.data import Data
from mmfast.files import write_atomically
from mmfast.generate import generate, how_drawn, how_text, kept_as_given, title
from mmfast.held_out import Shuffled, by_modality, true_values
from mmfast.model import Model
from mmfast.pictures import sample_grid
from mmfast.ranks import ALONE, Ranks
from mmfast.run import Run


class Board(Protocol):
    """A place that shows pictures in addition to their files, such as TensorBoard."""

    def picture(self, name: str, picture: PILImage.Image, step: int) -> None: ...


@dataclass(frozen=True)
class Gallery:
    """Where the pictures of one step of a run go: files in RUN/samples, and a board if there is one."""

    run: Run
    step: int
    board: Board | None = None

    def file(self, name: str, kind: str = "step") -> Path:
        return self.run.samples / f"{kind}-{self.step:07d}-{name}.png"

    def hang(self, picture: PILImage.Image, name: str, kind: str = "step") -> None:
        file = self.file(name, kind)
        self.run.guard(lambda: write_atomically(file, lambda temporary: picture.save(temporary)))
        if self.board is not None:
            self.board.picture(name if kind == "step" else f"{kind}-{name}", picture, self.step)


# Held-out examples for the grid of each direction, by the modality that is given: each modality [count, ...] by name.
Examples = Mapping[str, Mapping[str, Tensor]]


def examples_for(model: Model, config: Config, data: Data) -> Examples:
    """The held-out examples that the grids of a run give. A modality that none has is left out."""
    found = by_modality(Shuffled(data.test), config.sample.count, model)
    return {name: of.batch.data for name, of in found.items()}


def directions(model: Model, examples: Examples) -> list[str]:
    """What each grid of a run gives, "" for nothing."""
    return ["", *(name for name in model.parts if name in examples and len(model.parts) > 1)]


def sample_run(
    gallery: Gallery,
    model: Model,
    config: Config,
    examples: Examples,
    *,
    quiet: bool = False,
    again: bool = True,
    ranks: Ranks = ALONE,
) -> None:
    """Write sample grids in every direction as RUN/samples/step-*.png: joint, and given each modality in turn.

    examples: from `examples_for`; a direction without any is left out. again: redraw those whose files exist.
    ranks: all draw, the first writes.
    """
    count, step = config.sample.count, gallery.step
    for given in directions(model, examples):
        name = f"given-{given}" if given else "joint"
        if ranks.told(gallery.file(name).exists()) and not again:
            continue
        what = {given: examples[given][given]} if given else {}
        text = f"samples given {given}, step {step:,}" if given else f"samples, step {step:,}"
        drawn = generate(model, config, count, what, progress=False if quiet else text, ranks=ranks)
        drawn |= kept_as_given(model, drawn, what)
        real = examples.get(given or model.anchor_name, {})
        ranks.on_first(functools.partial(_hang, gallery, model, config, name, what, drawn, real))


def _hang(
    gallery: Gallery,
    model: Model,
    config: Config,
    name: str,
    what: Mapping[str, Tensor],
    drawn: Mapping[str, Tensor],
    real: Mapping[str, Tensor],
) -> None:
    """Write the pictures of one direction. what: the given modalities; real: the examples that they come from."""
    parts = {name: model.part(name) for name in model.parts}
    for part, x in drawn.items():
        shown = part in real and part not in what  # not what is given, against itself
        overview = parts[part].overview(x.cpu(), real[part]) if shown else None
        if overview is not None:
            gallery.hang(overview, f"{name}-{part}", "scatter")
    # Last, because this file shows that all pictures of its direction are written.
    how = how_text({"seed": config.seed, **how_drawn(model, config, what, {})})
    text = f"{title(what, config.sample.first)}; step {gallery.step:,}; {how}"
    truth = true_values(model, real, [*what]) if what else {}
    gallery.hang(sample_grid(parts, drawn, text, [*what], beside={"true": truth}), name)
