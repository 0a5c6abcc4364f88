"""The options of sampling, their defaults, and the checks that need no model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from mmfast.config_sections import MOST_TIMES
from mmfast.errors import MmfastError
from mmfast.errors import unknown as unknown_name
from mmfast.options import PRECISIONS
from mmfast.samplers import HEADS, MOST_SPACING, SAMPLERS
from mmfast.samples import whole as whole_number


class SampleOptions(TypedDict, total=False):
    """The keywords of `sample`; see there."""

    steps: int
    spacing: float
    sampler: str
    eta: float
    guidance_scale: float | Mapping[str, float]
    clamp: float | None
    seed: int
    sample_ids: Tensor | None
    batch_size: int
    precision: str
    heads: str
    resample: int
    unknown: Collection[str]
    offset: Mapping[str, float] | None
    progress: bool | str


SAMPLE: SampleOptions = {
    "steps": 50,
    "spacing": 1.0,
    "sampler": "ddpm",
    "eta": 0.0,
    "guidance_scale": 1.0,
    "clamp": 1.0,
    "seed": 0,
    "sample_ids": None,
    "batch_size": 256,
    "precision": "fp32",
    "heads": "soft",
    "resample": 5,
    "unknown": (),
    "offset": None,
    "progress": False,
}


def check_options(chosen: SampleOptions, count: int) -> Tensor:
    """The ids of the samples. Raises MmfastError for an option that is invalid for any model."""
    sampler, eta, clamp = chosen["sampler"], chosen["eta"], chosen["clamp"]
    for name, value, choices in (
        ("sampler", sampler, SAMPLERS),
        ("precision", chosen["precision"], PRECISIONS),
        ("heads", chosen["heads"], HEADS),
    ):
        if not isinstance(value, str) or value not in choices:
            raise unknown_name(name, value, choices)
    ids = checked_ids(chosen["sample_ids"], count)
    whole_number("batch_size", chosen["batch_size"], 1)
    whole_number("resample", chosen["resample"], 1)
    if chosen["resample"] > MOST_TIMES:
        raise MmfastError(f"resample is {chosen['resample']}; it should be at most {MOST_TIMES}")
    spacing = chosen["spacing"]
    if not (is_number(spacing) and 1 <= spacing <= MOST_SPACING):
        raise MmfastError(f"spacing is {spacing!r}; it should lie in 1 .. {MOST_SPACING}")
    if clamp is not None and not (is_number(clamp) and clamp > 0):
        raise MmfastError(f"clamp is {clamp!r}; it should be above 0, or None")
    if not (is_number(eta) and 0 <= eta <= 1):
        raise MmfastError(f"eta is {eta!r}; it should lie in 0 .. 1")
    if eta and not takes_eta(sampler):
        takers = ", ".join(filter(takes_eta, SAMPLERS))
        raise MmfastError(f"eta is {eta}, and {sampler} takes none; leave it out, or use a sampler that does: {takers}")
    if chosen["seed"] is None:
        raise MmfastError("seed is None; it should be a number, by which samples can be drawn again")
    return ids


def checked_ids(ids: Tensor | None, count: int) -> Tensor:
    """`ids`, or 0 .. count - 1 for None, on the CPU. Raises MmfastError unless they are int64 [count] and in range."""
    ids = torch.arange(count) if ids is None else ids
    if not isinstance(ids, Tensor) or ids.shape != (count,) or ids.dtype != torch.int64:
        raise MmfastError(f"sample_ids is no int64 tensor [{count}]; it should be, with a number for each sample")
    if count and not 0 <= int(ids.min()) <= int(ids.max()) < 1 << 48:  # the bits of a number in the noise's counter
        raise MmfastError(f"sample_ids are {int(ids.min())} .. {int(ids.max())}; they should be in 0 .. 2^48 - 1")
    return ids.cpu()


def takes_eta(sampler: str) -> bool:
    """Whether this sampler's steps depend on eta."""
    rule = SAMPLERS[sampler]

    def alpha_bar(t: int) -> float:
        return float(0.7**t)  # defined for every t that a rule may use

    return rule(alpha_bar, 2, 1, (), 0.0) != rule(alpha_bar, 2, 1, (), 1.0)


def plain_numbers(value: Any) -> Any:
    """Convert a NumPy number to Python's type, also inside a dict."""
    if isinstance(value, Mapping):
        return {name: plain_numbers(x) for name, x in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)
