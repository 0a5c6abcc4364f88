"""The options that every modality has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmfast.options import option
from mmfast.schedule import KINDS as WEIGHTS
from mmfast.sizes import read


@dataclass
class WeightSpec:
    """The cumulative weight W of a modality."""

    kind: str = option("carried", "the shape of W(t)", choices=tuple(WEIGHTS))
    scale: float = option(1.0, "scale s of W, for encodings of unit RMS")


@dataclass
class Spec:
    """The options that every modality has."""

    kind: str = ""
    encoder: str = option("fixed", "how x enters the diffusion space", choices=("fixed", "learned"))
    weight: WeightSpec = field(default_factory=WeightSpec)
    loss_weight: float = option(1.0, "weight (lambda) of this modality's part of the loss", min=0)
    given_probability: float | None = option(
        None, "how often it is given (at time 0) in training; null: train.given_probability", min=0, max=1
    )
    unknown_probability: float = option(
        0.0, "how often it is unknown (at time T) in training, and read off the rest", min=0, max=1
    )
    own_time_probability: float = option(
        0.0, "how often it has a time of its own in training; else it has the anchor's", min=0, max=1
    )
    diffused: bool = option(
        False, "diffuse it as the anchor is, by a prediction of its encoding and not by a head of its kind"
    )
    given_at_T: float | None = option(
        None,
        "share, of the training examples in which it is given, at t = T, where sampling begins (the largest share of "
        "all modalities given counts); null: none",
        min=0,
        max=1,
    )
    labelled_fraction: float = option(
        1.0,
        "share of the training examples that keep it; it is removed from the rest, to simulate few labels",
        above=0,
        max=1,
    )
    labelled_only: bool = option(False, "leave out the training examples that lack it")
    labelled_share: float | None = option(
        None,
        "if fewer of the training examples have it, repeat them until they are this share; null: never",
        above=0,
        max=0.99,
    )
    given_steps: int | None = option(
        None, "steps of sampling where it is given (of several the fewest); null: sample.steps", min=1
    )


def size_option(default: int = 64, help: str = "height and width in pixels: a number, or [height, width]") -> Any:
    """The option of a size: one whole number for a square, or two."""
    return option(default, help, min=1, read=read)
