"""The identity of the noise: four keywords that the public ops share."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

from mmfast.keywords import unexpected
from mmfast.ops.call import GivenNoise
from mmfast.ops.checks import Seed


class Identity(TypedDict, total=False):
    """The keywords that identify the noise; see `mmfast.ops.randn`."""

    seed: Seed
    sample_ids: Tensor | None
    stream: int
    draw: int | Tensor


IDENTITY: Identity = {"seed": None, "sample_ids": None, "stream": 0, "draw": 0}


def noise_from(options: Identity) -> GivenNoise:
    """The noise from complete options, as returned by `mmfast.keywords.filled`."""
    return (options["seed"], options["draw"]), options["sample_ids"], options["stream"], ()


def noise_of(function: str, identity: Identity, levels: tuple[int, ...] = (), stream: int = 0) -> GivenNoise:
    """The noise of this identity; `stream` is the default stream.

    Raises TypeError for an unknown keyword, naming `function`.
    """
    for name in identity:
        if name not in IDENTITY:
            raise unexpected(function, IDENTITY, identity)
    key = identity.get("seed"), identity.get("draw", 0)
    return key, identity.get("sample_ids"), identity.get("stream", stream), levels
