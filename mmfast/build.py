"""Build what a config describes: schedule, model, data and device."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mmfast import backbones, data, modalities
from mmfast.config import Config
from mmfast.data import Data
from mmfast.data.labelled import with_few_labels
from mmfast.data.precompute import with_embeddings
from mmfast.errors import MmfastError, unknown
from mmfast.model import Model
from mmfast.ranks import local_rank
from mmfast.run import Run
from mmfast.schedule import Schedule, Weight
from mmfast.trust import check_code


def build_schedule(config: Config) -> Schedule:
    """The schedule, with the weight of every modality but the anchor."""
    weights = {
        name: Weight(spec.weight.kind, spec.weight.scale)
        for name, spec in config.modalities.items()
        if name != config.anchor
    }
    make = {"cosine": Schedule.cosine, "linear": Schedule.linear}[config.schedule.kind]
    return make(config.schedule.T, weights)


def build_model(config: Config) -> Model:
    """The model with its initial weights, which depend on config.seed alone."""
    kinds = {name: modalities.kind(spec.kind) for name, spec in config.modalities.items()}
    kinds |= {
        name: modalities.diffused_itself(kinds[name]) for name, spec in config.modalities.items() if spec.diffused
    }
    spec = config.modalities[config.anchor]
    if spec.encoder != "fixed" and not kinds[config.anchor].bounded:
        raise MmfastError(f"modalities.{config.anchor}.encoder is {spec.encoder!r}; for the anchor it should be fixed")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # the CPU's alone
        with _made(f"modalities.{config.anchor}: a modality"):
            anchor = kinds[config.anchor](config.anchor, spec, kinds[config.anchor].anchor_space(spec))
        space = Model.space_shape(anchor, config.space)
        parts = {}
        for name, spec in config.modalities.items():
            with _made(f"modalities.{name}: a modality"):
                parts[name] = anchor if name == config.anchor else kinds[name](name, spec, space)
        network = backbones.kind(config.backbone.kind).Backbone
        with _made("backbone: a network"):
            return Model(
                config.anchor,
                parts,
                build_schedule(config),
                lambda channels, size: network(config.backbone, channels, size),
                config.space,
                config.loss.target,
                config.told,
            )


@contextlib.contextmanager
def _made(what: str) -> Iterator[None]:
    """Raise MmfastError if making it needs more memory than there is, or overflows a size."""
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        if isinstance(error, TypeError) and "overflow" not in str(error).lower():  # torch's type for some overflows
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MmfastError(f"{what} with these options cannot be made ({reason}); choose smaller ones") from None


def stored(config: Config) -> dict[str, Any]:
    """The specs of the modalities that the data set holds, neither made from others nor computed by a network."""
    specs = config.modalities.items()
    return {n: x for n, x in specs if not modalities.kind(x.kind).derived and not getattr(x, "network", "")}


def files_of(config: Config) -> dict[str, Path]:
    """The files of the examples of a config's data, by their paths relative to `data.root`; {} if it has none."""
    kind = data.kind(config.data.kind)
    own, look = getattr(kind, "files", None), getattr(kind, "look", None)
    if own is not None:
        return dict(own(config.data))
    if look is None:
        return {}
    listing = look(config.data, stored(config), config.anchor)
    paths, root = listing.paths, config.data.root
    files = [x for found in paths.values() for stem, x in found.items() if stem in paths[config.anchor]]
    files += [listing.table] if listing.table is not None else []
    return {Path(os.path.relpath(path, root)).as_posix(): path for path in files}


def check_beside_data(config: Config, what: str, place: Path) -> None:
    """Raise MmfastError, naming `what`, if pictures in `place` would become examples of a config's data."""
    folders = getattr(data.kind(config.data.kind), "folders", None)
    for folder in folders(config.data, stored(config)) if folders is not None else ():
        inside = os.path.relpath(os.path.realpath(place), os.path.realpath(folder))
        if not any(part.startswith(".") for part in Path(inside).parts):  # neither ".." nor a hidden folder
            raise MmfastError(
                f"{what} is {place}, which lies among the data in {folder}, so that its pictures would be examples; "
                "choose another place"
            )


def with_found(config: Config, before: Config | None = None) -> Config:
    """The config with class names, columns and scales filled in from the data where it does not specify them.

    The run then stores them, shows them in its pictures and accepts them: `--given label=cats`. before: the config of
    the run being resumed, whose statistics are kept even if the data has changed.
    """
    found = getattr(data.kind(config.data.kind), "found", None)
    parts = dict(config.modalities)
    for name, options in found(config.data, stored(config), config.anchor).items() if found is not None else ():
        spec = dataclasses.replace(parts[name], **options)
        was = before.modalities.get(name) if before is not None else None
        if was is not None and was.kind == spec.kind:
            keys = [key for key in modalities.kind(spec.kind).statistics if not getattr(parts[name], key)]
            kept = {key: getattr(was, key) for key in keys}
            if all(len(x) == len(getattr(spec, key)) for key, x in kept.items()):  # otherwise it is another config
                spec = dataclasses.replace(spec, **kept)
        parts[name] = spec
    return dataclasses.replace(config, modalities=parts)


def build_data(config: Config) -> Data:
    """The data set. Raises MmfastError unless it holds every modality of the config."""
    read = stored(config)
    networks = {name: spec for name, spec in config.modalities.items() if getattr(spec, "network", "")}
    for name, spec in networks.items():
        check_code(f"modalities.{name}.network", spec.network)
    found = data.kind(config.data.kind).open(config.data, read, config.anchor)
    for part, name in ((found.train, "train"), (found.test, "test")):
        if len(part) == 0:
            raise MmfastError(f"data ({config.data.kind}) has no {name} examples; it should hold at least one")
    held = found.train.__getitems__([0]).data
    for name in read:
        if name not in held:
            raise unknown("modality", name, held)
    for name, spec in networks.items():
        cache, cells = getattr(config.data, "cache", ""), getattr(spec, "cells", 0)
        whole = bool(getattr(spec, "components", None))
        found = with_embeddings(found, config.anchor, name, spec.network, spec.dim, cache, cells, whole)
    for name, spec in config.modalities.items():
        derived = modalities.kind(spec.kind).derived
        if name != config.anchor and not derived:
            continue
        why = "is made from another modality, in every example" if derived else "is the anchor, which every example has"
        usual = type(spec)()
        for key in ("labelled_fraction", "labelled_only", "labelled_share"):
            if getattr(spec, key) != getattr(usual, key):
                raise MmfastError(f"modalities.{name}.{key} is set, but {name} {why}; leave it out")
    return with_few_labels(found, config.modalities)


def load_run(
    folder: str | Path, device: str = "auto", what: str = "--device", weights: str = "last"
) -> tuple[Run, Config, Model]:
    """Load a run: its folder, its config and its averaged model, ready for mmfast.sample.sample.

    weights: "last", or "best" for the best on held-out examples. Raises MmfastError if there are none.
    """
    run = Run.open(folder)
    config = run.config()
    model = build_model(config)
    run.load_weights(model, weights)
    return run, config, model.to(pick_device(device, what)).eval()


def pick_device(name: str, what: str = "--device") -> torch.device:
    """A device by name. "auto" is the first GPU, or the CPU without one; under torchrun, each rank has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MmfastError(f"{what} is {name!r}; it should be auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MmfastError(f"{what} is {name!r}, but torch finds no GPU; use cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise MmfastError(f"{what} is {name!r}; it should be auto, cpu, cuda or cuda:N")
    local = local_rank()
    if device.type == "cuda" and local is not None:
        if device.index is not None:
            raise MmfastError(f"{what} is {name!r}; under torchrun it should be auto, cuda (each rank its own) or cpu")
        if local >= torch.cuda.device_count():
            raise MmfastError(
                f"this machine has {torch.cuda.device_count()} GPUs, and this is its process {local + 1}; lower "
                f"--nproc-per-node, or set {what} to cpu"
            )
    return device
