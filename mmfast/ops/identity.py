"""The identity of noise, as the public ops take it: four keywords that each of them has."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

from mmfast.keywords import unexpected
from mmfast.ops.call import GivenNoise
from mmfast.ops.checks import Seed


class Identity(TypedDict, total=False):
    """The identity of noise: an op's keywords, which `mmfast.ops.randn` explains."""

    seed: Seed
    sample_ids: Tensor | None
    stream: int
    draw: int | Tensor


IDENTITY: Identity = {"seed": None, "sample_ids": None, "stream": 0, "draw": 0}


def noise_from(options: Identity) -> GivenNoise:
    """The noise of options that are all there, as `mmfast.keywords.filled` has them."""
    return (options["seed"], options["draw"]), options["sample_ids"], options["stream"], ()


def noise_of(function: str, identity: Identity, levels: tuple[int, ...] = (), stream: int = 0) -> GivenNoise:
    """The noise of this identity; stream: where none is given.

    Raises TypeError for another keyword, as of `function`.
    """
    for name in identity:
        if name not in IDENTITY:
            raise unexpected(function, IDENTITY, identity)
    key = identity.get("seed"), identity.get("draw", 0)
    return key, identity.get("sample_ids"), identity.get("stream", stream), levels
