"""Heights and widths: a whole number is the side of a square, a pair is [height, width]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from mmfast.errors import MmfastError

Size: TypeAlias = int | Sequence[int]


def height_width(size: Size) -> tuple[int, int]:
    """The height and the width of a size."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def plain(size: Size) -> int | list[int]:
    """A size as configs and errors show it: a whole number for a square, else [height, width]."""
    height, width = height_width(size)
    return height if height == width else [height, width]


def named(size: Size) -> str:
    """A size as text to read."""
    height, width = height_width(size)
    return f"{height} x {width}" + ("" if height == width else " (height x width)")


def read(key: str, value: Any) -> int | list[int]:
    """An option's value as a size. Raises MmfastError, naming the key, if it is not one."""
    value = value.split(",") if isinstance(value, str) and "," in value else value  # such as --image.size 48,64
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    sides = [int(x) if isinstance(x, str) and x.strip().isdecimal() else x for x in sides]
    whole = all(isinstance(x, int) and not isinstance(x, bool) for x in sides)
    if not whole or len(sides) not in (1, 2) or (len(sides) == 1) == isinstance(value, (list, tuple)):
        raise MmfastError(f"{key} is {value!r}; it should be a whole number, or two as [height, width]")
    return plain(sides[0] if len(sides) == 1 else sides)


def divides(by: int, size: Size) -> bool:
    """Whether a number divides the height and the width."""
    return not any(side % by for side in height_width(size))


def middle(whole: Size, size: Size) -> tuple[int, int, int, int]:
    """The largest centred part of a picture with the aspect ratio of `size`: (left, top, right, bottom) in pixels.

    It consists of whole pixels, so its shape is right to half a pixel; a square is exact.
    """
    (height, width), (rows, columns) = height_width(whole), height_width(size)
    inner_height = min(height, max(1, round(width * rows / columns)))
    inner_width = min(width, max(1, round(height * columns / rows)))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height
