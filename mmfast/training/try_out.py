"""A rehearsal of a run, to find what does not fit before the run's folder is created."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmfast.build import build_model, pick_device
from mmfast.config import Config
from mmfast.data import Batch, Data
from mmfast.errors import MmfastError, notice
from mmfast.evaluate import check_measures
from mmfast.generate import check_sample
from mmfast.held_out import by_modality
from mmfast.model import Model
from mmfast.ranks import ALONE, Ranks
from mmfast.sample import check_count
from mmfast.training.examples import parts
from mmfast.training.log import check_logs
from mmfast.training.objective import Losses, losses

# The most training examples that modalities are fitted to, and how many are read at once.
FITTED_TO, AT_ONCE = 4096, 256


def check_batch(model: Model, batch: Batch) -> None:
    """Raise MmfastError for the first modality whose data (on the host) does not match its config."""
    for name, x in batch.filled().items():
        if name in model.parts:
            model.part(name).check(x, f"data: {name}")
    for name, part in model.parts.items():
        if name not in batch.data and not part.derived:
            raise MmfastError(f"data: the examples have no {name}; they should have every modality of the config")


def fitted(model: Model, data: Data) -> Model:
    """Fit the model's modalities to training examples, at most FITTED_TO, evenly spaced; returns the model."""
    found: dict[str, list[Tensor]] = {name: [] for name in model.parts if model.part(name).fits}
    if not found:
        return model
    rows = range(0, len(data.train), max(1, -(-len(data.train) // FITTED_TO)))
    for i in range(0, len(rows), AT_ONCE):
        batch = data.train.__getitems__(rows[i : i + AT_ONCE])
        check_batch(model, batch)
        for name, seen in found.items():
            seen.append(batch.data[name][batch.present[name]] if name in batch.present else batch.data[name])
    for name, seen in found.items():
        x = torch.cat(seen)
        if not len(x):
            raise MmfastError(f"data: no training example has {name}, whose components are found from them")
        model.part(name).fit(x)
    return model


def rehearse(config: Config, data: Data, losses: Losses = losses, ranks: Ranks = ALONE) -> Model:
    """Do all that training does before its first step, without a run's folder. Raises MmfastError for bad input.

    Returns the model with its initial weights.
    """
    pick_device(config.train.device, "train.device")
    parts(config, ranks, 0)
    check_logs(config)
    model = fitted(build_model(config), data)
    check_count(model, config.train.batch_size, "train.batch_size")
    if config.evaluate.samples:
        check_measures(model, config)
    for part in (data.train, data.test):
        batch = part.__getitems__(range(min(len(part), config.train.batch_size)))
        check_batch(model, batch)
    try_out(model, batch, config, losses)
    found = by_modality(data.test, 1, model)
    lacking = [name for name in model.parts if name not in found]
    if lacking and ranks.first:
        names = " or ".join(lacking)
        notice(
            f"data: no held-out example has {names}, so there are no figures of it and no pictures given it; raise "
            "data.test_fraction"
        )
    check_sample(model, config)
    return model


def _check_losses(found: Any) -> None:
    """Raise MmfastError unless a loss's parts are scalar tensors."""
    if not isinstance(found, Mapping) or not found:
        raise MmfastError(f"losses returned {found!r:.100}; it should be a dict with a scalar tensor for each part")
    for name, x in found.items():
        if not isinstance(x, Tensor) or x.ndim:
            what = f"a tensor {list(x.shape)}" if isinstance(x, Tensor) else repr(x)
            raise MmfastError(f"losses returned {what:.100} as {name!r}; it should be a scalar tensor")


def try_out(model: Model, batch: Batch, config: Config, losses: Losses) -> None:
    """Run two examples, to find sizes that do not fit, and check the scale of the encodings.

    Raises MmfastError if torch raises. Warns of encodings far from unit RMS, for which the weight's `scale` is
    misleading.
    """
    with torch.no_grad():
        try:
            data, present = ({name: x[:2] for name, x in part.items()} for part in (batch.data, batch.present))
            few = Batch(data, present)
            _check_losses(losses(model, few, torch.arange(len(few)), config))
        except (RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, MmfastError):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MmfastError(f"backbone: a network with these options does not run ({reason}); change them") from None
        for name, E in model.encode(batch.filled()).items():
            E = E[batch.present[name]] if name in batch.present else E
            rms = float(E.square().mean().sqrt()) if len(E) else 1.0
            if not 0.6 < rms < 1.6:
                warnings.warn(f"the encodings of {name!r} have an RMS of {rms:.2f}; it should be near 1", stacklevel=3)
