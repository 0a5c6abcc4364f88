"""A look at a run before it is one: what does not fit should show before there is a folder."""

from __future__ import annotations

import warnings

import torch

from mmfast.config import Config
from mmfast.data import Batch
from mmfast.errors import MmfastError
from mmfast.model import Model
from mmfast.training.objective import Losses


def try_out(model: Model, batch: Batch, config: Config, losses: Losses) -> None:
    """Run two examples, so that sizes that do not fit show before there is a run; and look at the encodings' scales.

    Raises MmfastError where torch refuses; warns of encodings far from unit RMS, whose weight's scale means another
    thing than it says.
    """
    with torch.no_grad():
        try:
            few = Batch(*({name: x[:2] for name, x in part.items()} for part in (batch.data, batch.present)))
            losses(model, few, torch.arange(len(few)), config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise MmfastError(f"backbone: a network with these options does not run ({reason}); change them") from None
        for name, E in model.encode(batch.filled()).items():
            E = E[batch.present[name]] if name in batch.present else E
            rms = float(E.square().mean().sqrt()) if len(E) else 1.0
            if not 0.6 < rms < 1.6:
                warnings.warn(f"the encodings of {name!r} have an RMS of {rms:.2f}; it should be near 1", stacklevel=3)
