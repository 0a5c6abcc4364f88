"""Convert given values of a modality to x: a text, a number, a path, a picture, an array or a tensor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from mmfast.errors import MmfastError
from mmfast.image_files import EXTENSIONS, check_sizes, nearby, read_header, upright, white
from mmfast.modalities import Modality


@dataclass(frozen=True)
class Several:
    """Texts of several values, as on the command line. Each is drawn n times, unlike those of a list, one a sample."""

    texts: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.texts)


def taken(part: Modality, value: Any, where: str) -> Tensor:
    """Convert a value of one modality to x: [1, ...], or [n, ...] for a list or a tensor with one for each sample.

    Raises MmfastError, naming it `where`, if that is not possible.
    """
    if isinstance(value, (list, tuple)):
        found = [taken(part, x, f"{where}[{i}]") for i, x in enumerate(value)]
        if not found or any(len(x) != 1 for x in found):
            raise MmfastError(f"{where} is a list of {len(found)}; it should hold one value for each sample")
        return torch.cat(found)
    try:
        x = _x(part, value, where)
    except FileNotFoundError:
        files = ", ".join(part.extensions)
        raise MmfastError(
            f"{where} is {str(value)!r}, and no such file exists{nearby(str(value))}; it should be a file ({files})"
        ) from None
    except OSError as error:
        raise MmfastError(f"{where} cannot be read: {error.strerror}") from None
    part.check(x, where)
    if isinstance(value, (str, os.PathLike)):
        part.check_given(x[0], f"{where}={value}")
    elif isinstance(value, PILImage.Image) or (isinstance(value, np.ndarray) and value.dtype == np.uint8):
        part.check_given(x[0], where)
    return x


def known_part(part: Modality, value: Any, where: str) -> Tensor:
    """Which values of one x are known, bool of its shape.

    value: a text or a path (`Modality.parse_known`), a picture that is white where x is known, an array or a tensor.
    An array or a tensor is bool, 0 and 1, or uint8 as in a picture, above 127 where x is known; [H, W] applies to all
    channels. Raises MmfastError, naming it `where`.
    """
    shape = part.blank(part.spec).shape
    if isinstance(value, PILImage.Image) and len(shape) > 1:
        value = white(upright(value, where), shape[-2:])
    if isinstance(value, (str, os.PathLike)):
        return part.parse_known(str(value))
    try:
        there = torch.as_tensor(np.asarray(value))
        if there.dtype == torch.uint8 and there.numel() and int(there.max()) > 1:
            there = there > 127
        return torch.broadcast_to(there.bool(), shape).clone()
    except (TypeError, ValueError, RuntimeError):
        wanted = f"a path, a text or an array of bool {list(shape)}"
        raise MmfastError(f"{where} is {type(value).__name__} {np.shape(value)}; it should be {wanted}") from None


def check_aligned(parts: Mapping[str, Modality], given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise MmfastError if pictures of one sample, or that of a known part, differ in shape.

    Each is cropped to its middle, and these would not be the same part.
    """
    named = {**given, **{f"known {name}": value for name, value in known.items()}}
    kinds = {name: parts.get(name.removeprefix("known ")) for name in named}
    sizes = {name: _sizes(value) for name, value in named.items() if ".png" in getattr(kinds[name], "extensions", ())}
    for k in range(max(map(len, sizes.values()), default=0)):
        check_sizes({name: found[min(k, len(found) - 1)] for name, found in sizes.items() if found})


def _sizes(value: Any) -> list[tuple[int, int]]:
    """(width, height) of each picture of a value; none for what is no picture, or cannot be read."""
    if isinstance(value, Several):
        value = value.texts
    if isinstance(value, (list, tuple)):
        return [size for x in value for size in _sizes(x)]
    if isinstance(value, (str, os.PathLike)) and Path(value).suffix.lower() in EXTENSIONS:
        with contextlib.suppress(MmfastError):
            return [read_header(Path(value)).size]
    if isinstance(value, PILImage.Image):
        return [upright(value, "picture").size]
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3):
        return [(value.shape[1], value.shape[0])]
    return []


def _x(part: Modality, value: Any, where: str) -> Tensor:
    """x of one value, [1, ...], or of a tensor with several; not checked."""
    if isinstance(value, str):
        return part.parse(value)[None]
    if isinstance(value, os.PathLike):
        return part.read(Path(value), part.spec)[None]
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and ".png" in part.extensions:
        try:
            value = PILImage.fromarray(value)
        except (TypeError, ValueError):
            raise MmfastError(f"{where} is uint8 {list(value.shape)}; a picture is [H, W] or [H, W, 3]") from None
    if isinstance(value, PILImage.Image):
        return part.from_picture(upright(value, where), part.spec, where)[None]
    try:
        x = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        wanted = "a number, a name, a path, a picture, an array or a tensor, or a list of these"
        raise MmfastError(f"{where} is of type {type(value).__name__}; it should be {wanted}") from None
    blank = part.blank(part.spec)
    if x.is_complex() or x.dtype == torch.bool or x.is_floating_point() > blank.is_floating_point():
        kind = "real" if blank.is_floating_point() else "whole"
        raise MmfastError(f"{where} is {str(x.dtype).removeprefix('torch.')}; it should be {kind} numbers")
    x = x.to(blank.dtype)
    return x[None] if x.dim() == blank.dim() else x
