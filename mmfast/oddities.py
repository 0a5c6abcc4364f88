"""What is odd about picture files, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mmfast.image_files import Header
from mmfast.sizes import height_width, middle, plain


class Oddity(NamedTuple):
    """What is odd about some picture files of some kinds of modalities, and what is done with them."""

    kinds: tuple[str, ...]
    what: str
    holds: Callable[[Header, Path, Any], bool]


PICTURES, IMAGES = ("image", "mask"), ("image",)
GREY = ("1", "L", "I")  # the first letters of Pillow's grey modes
ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
ODDITIES = (
    Oddity(PICTURES, "turned upright, as their EXIF data says", lambda h, p, s: h.orientation not in (0, 1)),
    Oddity(
        PICTURES,
        "not square: the middle square is taken",
        lambda h, p, s: isinstance(plain(s.size), int) and h.size[0] != h.size[1],
    ),
    Oddity(
        PICTURES,
        "of another shape than the size in the config: the middle is taken",
        lambda h, p, s: not isinstance(plain(s.size), int) and _middle(h, s) != (0, 0, *h.size),
    ),
    Oddity(PICTURES, "smaller than the size in the config: enlarged", lambda h, p, s: _enlarged(h, s)),
    Oddity(PICTURES, "of several frames: the first is taken", lambda h, p, s: h.frames > 1),
    Oddity(
        PICTURES,
        "of another format than their names say: read as what they are",
        lambda h, p, s: _misnamed(h, p),
    ),
    Oddity(IMAGES, "of 16 bits: scaled to the range of others", lambda h, p, s: h.mode[0] == "I"),
    Oddity(IMAGES, "transparent: the background shows through", lambda h, p, s: h.transparent and h.mode[0] != "I"),
    Oddity(IMAGES, "in colour: made grey", lambda h, p, s: s.channels == 1 and h.mode[0] not in GREY),
    Oddity(IMAGES, "grey: the same in all channels", lambda h, p, s: s.channels == 3 and h.mode[0] in GREY),
    Oddity(IMAGES, "of mode CMYK: made RGB", lambda h, p, s: h.mode == "CMYK"),
)


def _middle(header: Header, spec: Any) -> tuple[int, int, int, int]:
    width, height = header.size
    return middle((height, width), spec.size)


def _enlarged(header: Header, spec: Any) -> bool:
    left, top, right, bottom = _middle(header, spec)
    height, width = height_width(spec.size)
    return bottom - top < height or right - left < width


def _misnamed(header: Header, path: Path) -> bool:
    return ENDINGS.get(path.suffix.lower()) != header.format
