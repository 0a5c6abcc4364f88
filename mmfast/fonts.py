"""Fonts for the texts in pictures: Pillow's own, or one of the system's for characters that it lacks."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import ImageFont

from mmfast.errors import notice

# Fonts with many characters, by the names of their files; Pillow looks for them where the system keeps fonts.
NAMES = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSerifCJK-Regular.ttc", "FreeSans.ttf",
    "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc",
    "segoeui.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf",
)  # fmt: skip
# No font has this character: each draws its mark for a missing one.
MISSING = "\U0010ffff"
# A size at which to compare the shapes of two characters, in points.
PROBE = 20

# Makes the font of a size in points.
Font = Callable[[float], Any]


def lettering(text: str) -> tuple[str, Font]:
    """A text to write in a picture, and a font that has all of its characters.

    If no font here does, the missing characters are replaced by their codes, such as U+732B, and a notice says so once.
    """
    special = frozenset(c for c in text if ord(c) > 126)
    if not special:
        return text, ImageFont.load_default
    font, lacking = _font(special)
    return "".join(f"U+{ord(c):04X}" if c in lacking else c for c in text), font


@functools.lru_cache(1024)
def _font(special: frozenset[str]) -> tuple[Font, frozenset[str]]:
    """The font that has most of these characters, and those that it lacks."""
    best: tuple[Font, frozenset[str]] = ImageFont.load_default, _lacking(ImageFont.load_default, special)
    for path in _paths(min(best[1], default="")):
        if not best[1]:
            break
        font = functools.partial(ImageFont.truetype, path)
        try:
            lacking = _lacking(font, special)
        except OSError:  # not installed, or not a font
            continue
        if len(lacking) < len(best[1]):
            best = font, lacking
    if best[1]:
        _say("".join(sorted(best[1])))
    return best


def _lacking(font: Font, characters: frozenset[str]) -> frozenset[str]:
    probe = font(PROBE)
    missing = bytes(probe.getmask(MISSING))
    return frozenset(c for c in characters if c.isprintable() and bytes(probe.getmask(c)) == missing)


def _paths(character: str) -> Iterator[str]:
    """Files of fonts that may have the character: fontconfig's choice, and usual ones."""
    if not character:
        return
    found = ""
    try:
        wanted = f":charset={ord(character):x}"
        how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 5, "check": True}
        found = subprocess.run(["fc-match", "-f", "%{file}", wanted], **how).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):  # without fontconfig, as on Windows and macOS
        pass
    if found:
        yield found
    yield from NAMES
    if (matplotlib := importlib.util.find_spec("matplotlib")) is not None and matplotlib.origin:
        yield str(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.lru_cache(64)
def _say(characters: str) -> None:
    shown = characters if len(characters) <= 20 else f"{characters[:20]}..."
    notice(
        f"no font here has {shown}, so pictures show the codes of these characters; a package of fonts adds them "
        "(apt-get install fonts-noto-cjk)"
    )
