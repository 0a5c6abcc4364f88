"""Arithmetic on lists of tensors, which takes a GPU a few launches for the whole list.

Each function is named after the method of a tensor that it applies to every element of the first list. A further
argument is a list with a value for each, or one value for all. torch's own functions are not public names; where one is
missing, a loop does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _each(name: str) -> Callable[..., Any]:
    fused = getattr(torch, f"_foreach_{name}", None)
    return _loop(name) if fused is None else fused


def _loop(name: str) -> Callable[..., list[Tensor]]:
    def apply(tensors: list[Tensor], *arguments: Any) -> list[Tensor]:
        lists = [x if isinstance(x, list) else [x] * len(tensors) for x in arguments]
        return [getattr(x, name)(*own) for x, *own in zip(tensors, *lists, strict=True)]

    return apply


add_, lerp, lerp_, mul_, sub_ = map(_each, ("add_", "lerp", "lerp_", "mul_", "sub_"))
