"""Start a run from another run's weights: what both have is kept, and what is new is initialised afresh.

A new modality has its own encoder, head and embeddings, which are fresh. The weights of its input channels are zero, so
at first, where it is not given, the other modalities are predicted as before. The same goes for a modality whose
encoder, weight W or layout has changed, because its channels mean something else. A head that now reads other features
is fresh. Hidden parts are an exception: they are seen in the image's own pixels and change the scale in which the image
is seen (`Model.fades_image`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfast import backbones
from mmfast.build import build_model
from mmfast.config import Config
from mmfast.errors import MmfastError
from mmfast.files import read_text, write_text
from mmfast.modalities.heads import Pyramid
from mmfast.model import Model
from mmfast.run import START, Run
from mmfast.sizes import plain

# Options of a backbone on which no weight depends.
FREE = ("dropout",)


@dataclass(frozen=True)
class Kept:
    """The modalities whose weights were kept, what is fresh, and the modalities of the run that were left out."""

    folder: Path
    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    scaled: bool = False  # whether the image is newly, or no longer, scaled by its time
    step: int | None = None  # at which the run had these weights

    def __str__(self) -> str:
        found = f"weights of {self.folder}: kept the backbone and {', '.join(self.kept)}"
        found += f"; fresh: {', '.join(self.fresh) or 'nothing'}"
        found += f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return found + ("; the image is seen at another scale, so predictions differ at first" * self.scaled)


def take_weights(model: Model, config: Config, folder: str | Path) -> Kept:
    """Fill a model of this config with the averaged weights of the run in `folder`, which is not changed.

    Raises MmfastError, before anything is changed, if there is no run, or if a part that both have differs.
    """
    run = Run.open(folder)
    theirs = run.config()
    _check(config, theirs, run.folder)
    old = build_model(theirs)
    step = run.load_weights(old).get("step")
    both = tuple(name for name in model.parts if name in old.parts)
    had, state = old.state_dict(), model.state_dict()
    prefixes = (
        "backbone.",
        "norm.",
        "out.",
        *(f"{of}.{n}." for n in both for of in ("parts", "time_of", "tell_decoder")),
    )
    inputs, found = _inputs(theirs, old), {}
    heads = tuple(name for name in both if old.part(name).reads != model.part(name).reads)
    new_heads = tuple(f"parts.{name}.{of}." for name in heads for of in ("out", "norm"))
    pairs = {name: (theirs.modalities[name], config.modalities[name]) for name in both}
    seen = {name for name, (a, b) in pairs.items() if _channels(a) == _channels(b)}
    for key, x in state.items():
        if not key.startswith(prefixes) or key not in had or key.startswith(new_heads):
            continue
        new = _widened(had[key], x, old, model, {"", *seen}) if key in inputs else had[key]
        if new.shape != x.shape:
            raise MmfastError(
                f"--from {folder}: {key} is {list(new.shape)}; here it is {list(x.shape)}: the options of what both "
                "have should be the same, or the modality should have another name, to start afresh"
            )
        found[key] = new
    model.load_state_dict({**state, **found})
    fresh = tuple(name for name in model.parts if name not in both)
    fresh += tuple(f"the head of {name}, which reads other features" for name in heads)
    scaled = model.fades_image != old.fades_image
    return Kept(run.folder, both, fresh, tuple(name for name in old.parts if name not in both), scaled, step)


def _check(config: Config, theirs: Config, folder: Path) -> None:
    """Raise MmfastError if the weights of their config would mean something else in this one."""

    def shape(spec: Any) -> dict[str, Any]:
        return {key: x for key, x in dataclasses.asdict(spec).items() if key not in FREE}

    pairs: dict[str, tuple[Any, Any]] = {
        key: (getattr(theirs, key), getattr(config, key)) for key in ("anchor", "space", "told")
    }
    pairs["loss.target"] = theirs.loss.target, config.loss.target
    pairs["schedule"] = dataclasses.asdict(theirs.schedule), dataclasses.asdict(config.schedule)
    pairs["backbone"] = shape(theirs.backbone), shape(config.backbone)
    for name in config.modalities.keys() & theirs.modalities.keys():
        was, now = theirs.modalities[name], config.modalities[name]
        pairs[f"modalities.{name}.kind"] = was.kind, now.kind
        pairs[f"modalities.{name}.diffused"] = was.diffused, now.diffused
        for key in ("names", "columns"):  # in their order
            if getattr(was, key, None) and getattr(now, key, None):
                pairs[f"modalities.{name}.{key}"] = getattr(was, key), getattr(now, key)
        for key in ("components", "rms", "text_encoder", "colours", "network", "autoencoder"):  # what the numbers mean
            pairs[f"modalities.{name}.{key}"] = getattr(was, key, None), getattr(now, key, None)
    for key, (a, b) in pairs.items():
        if a != b:
            raise MmfastError(f"--from {folder}: its {key} is {a}, and here it is {b}; it should be the same")
    if config.space == "shared" and config.modalities.keys() != theirs.modalities.keys():
        raise MmfastError(f"--from {folder}: in shared channels the modalities should be the same, or use space=own")


def _channels(spec: Any) -> tuple[Any, ...]:
    """The options that decide what a modality's channels of z_t mean."""
    return spec.encoder, spec.weight, getattr(spec, "layout", None)


def _inputs(config: Config, model: Model) -> set[str]:
    """The weights for what the backbone sees, whose shape depends on its channels: its own, and some of heads."""
    with torch.device("meta"):
        wider = backbones.kind(config.backbone.kind).Backbone(
            config.backbone, len(model.seen_layout()) + 1, plain(model.shape[1:])
        )
    now = model.backbone.state_dict()
    found = {f"backbone.{name}" for name, x in wider.state_dict().items() if x.shape != now[name].shape}
    pyramids = [name for name, module in model.named_modules() if isinstance(module, Pyramid)]
    return found | {f"{name}.past.weight" for name in pyramids}


def _widened(weight: Tensor, like: Tensor, old: Model, new: Model, kept: Collection[str]) -> Tensor:
    """An input weight [out, channels k, ...] with its channels in the new model's order; zero for new ones.

    kept: the modalities whose channels still mean the same ("": those of all together).
    """
    before = {place: i for i, place in enumerate(old.seen_layout()) if place[0] in kept}
    columns = weight.unflatten(1, (len(old.seen_layout()), -1))
    nothing = torch.zeros_like(columns[:, 0])
    found = [columns[:, before[place]] if place in before else nothing for place in new.seen_layout()]
    return torch.stack(found, 1).reshape(like.shape)


@dataclass(frozen=True)
class Start:
    """The folder of the run from whose weights another one began, and the step at which it had them, if known."""

    folder: str
    step: int | None = None


def record_start(run: Run, taken: Kept) -> None:
    """Record in a new run's folder where its weights come from."""
    found = {"from": str(taken.folder.resolve()), "step": taken.step}
    run.guard(lambda: write_text(run.folder / START, json.dumps(found) + "\n"))


def recorded_start(out: str) -> Start | None:
    """Where the weights of the run in `out` came from; None if it began from no other run."""
    try:
        found = json.loads(read_text(Path(out) / START, 2**16))
        folder, step = found.get("from"), found.get("step")
    except (OSError, ValueError, AttributeError):
        return None
    return Start(folder, step if isinstance(step, int) else None) if isinstance(folder, str) else None


def moved_on(out: str, before: Start | None, taken: Kept) -> str:
    """A notice if the run in `out`, which has no checkpoint yet, began from weights of another step; empty if not."""
    if before is None or before.step in (None, taken.step):
        return ""
    return (
        f"--from {taken.folder} has changed: the run in --out {out} began from its weights of step {before.step}, "
        f"has no checkpoint yet, and begins again from those of step {taken.step}"
    )


def check_start(out: str, start: str | None, recorded: Start | None, goes_on: bool) -> str:
    """Raise MmfastError if the run in `out` has no checkpoint and is repeated with another `start` than it began with.

    recorded: its `recorded_start`. goes_on: whether it has a checkpoint, after which its start is not needed, and may
    have moved. Returns a notice for the user; empty for none.
    """
    now = None if start is None else str(Path(start).resolve())
    before = None if recorded is None else recorded.folder
    if before is not None and now is None and not goes_on:
        raise MmfastError(
            f"the run in --out {out} began from the weights of {before} and has no checkpoint yet; repeat the command "
            f"with --from {before}, or choose another --out"
        )
    if now is None or now == before:
        return ""
    if before is not None and not goes_on:
        raise MmfastError(f"--from is {start}, and the run in --out {out} began from {before}; choose another --out")
    began = "did not begin from another run" if before is None else f"began from {before}"
    return f"the run in --out {out} {began}, so --from {start} has no effect" if goes_on else ""
