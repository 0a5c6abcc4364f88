"""Picture files, opened only in the supported formats and turned upright."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import EpsImagePlugin, ImageColor, ImageOps, UnidentifiedImageError
from PIL import Image as PILImage

from mmfast.errors import MmfastError
from mmfast.files import check_regular
from mmfast.sizes import Size, height_width, middle

# The file name extensions of pictures in a data folder.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# No others, because some of Pillow's formats run programs on what they read (PostScript: Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# The largest 16-bit number.
MOST_16 = 2**16 - 1
# What Pillow raises for damaged files.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error)
# What it raises for a picture with too many pixels; a file of a few bytes may claim any number of them.
BOMB = (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning)
# The environment variable that raises its limit of 179 megapixels. A config, which may come from anywhere, cannot.
MEGAPIXELS = "MMFAST_MEGAPIXELS"


def nearby(path: Path | str) -> str:
    """For a relative path: where it was looked for."""
    return "" if os.path.isabs(path) else f" in the current folder, {os.getcwd()}"


@contextlib.contextmanager
def _named(path: Path | str, what: str) -> Iterator[None]:
    """Turn Pillow's errors into MmfastErrors that name the file or picture."""
    try:
        yield
    except MmfastError:  # raised within
        raise
    except BOMB:
        raise MmfastError(
            f"{path} has more pixels than a {what} may have, {_most_pixels() / 1e6:.4g} million; if that is meant, "
            f"set the variable {MEGAPIXELS} to as many million as it has"
        ) from None
    except FileNotFoundError:
        link = os.path.islink(path)
        lost = "is a link to a file that does not exist; repair or remove it" if link else "does not exist"
        raise MmfastError(f"{path} {lost}{nearby(path)}") from None
    except UnidentifiedImageError:
        raise MmfastError(f"{path} cannot be read as a {what}: it is none of {', '.join(FORMATS)}") from None
    except DAMAGED as error:
        # str() of an OSError would name the path again.
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MmfastError(f"{path} cannot be read as a {what}: {said.splitlines()[0]}; repair or remove it") from None


def _most_pixels() -> float:
    """The most pixels that Pillow opens: twice MAX_IMAGE_PIXELS, above which it warns."""
    text = os.environ.get(MEGAPIXELS, "")
    if text:
        try:
            most = int(float(text) * 1e6)
        except (ValueError, OverflowError):
            most = 0
        if most <= 0:
            raise MmfastError(f"{MEGAPIXELS} is {text!r}; it should be a number of megapixels above 0, such as 400")
        PILImage.MAX_IMAGE_PIXELS = -(-most // 2)
    return math.inf if PILImage.MAX_IMAGE_PIXELS is None else 2 * PILImage.MAX_IMAGE_PIXELS


@contextlib.contextmanager
def _opened(path: Path, what: str) -> Iterator[PILImage.Image]:
    """Open the file as one of FORMATS. Raises MmfastError as `_named` does."""
    with _named(path, what):
        check_regular(path)
        _most_pixels()
        with PILImage.open(path, formats=FORMATS) as file:
            yield file


def load_picture(path: Path, what: str = "picture") -> PILImage.Image:
    """The picture in a file, fully loaded and turned upright by its EXIF data.

    Raises MmfastError, naming the file, for one that is missing, damaged, of another format or far too large (see
    MEGAPIXELS).
    """
    with _opened(path, what) as file:
        return upright(file, path, what)


def picture_in(data: bytes, where: str, what: str = "picture") -> PILImage.Image:
    """`load_picture` for a file's content, which errors call `where`."""
    with _named(where, what):
        _most_pixels()
        with PILImage.open(io.BytesIO(data), formats=FORMATS) as file:
            return upright(file, where, what)


def upright(picture: PILImage.Image, where: Path | str, what: str = "picture") -> PILImage.Image:
    """A copy of a picture, fully loaded and turned upright by its EXIF data. Raises MmfastError as `load_picture` does.

    EXIF data that cannot be read is ignored, as in viewers.
    """
    if picture.mode == "F":
        raise MmfastError(
            f"{where} is a picture of floats, which have no range of their own; it should have 8 or 16 bits"
        )
    with _named(where, what):
        picture.load()
    try:
        turned = ImageOps.exif_transpose(picture)
    except DAMAGED:
        turned = picture.copy()
    assert turned is not None
    return turned


@contextlib.contextmanager
def no_programs() -> Iterator[None]:
    """Keep Pillow from running programs, for when another package opens pictures of any format."""
    before = EpsImagePlugin.gs_binary
    EpsImagePlugin.gs_binary = False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before


class Header(NamedTuple):
    """What a picture's header states: its size when upright, and how it is stored."""

    size: tuple[int, int]
    mode: str
    format: str
    orientation: int = 1  # in EXIF's numbering
    transparent: bool = False
    frames: int = 1


def read_header(path: Path) -> Header:
    """Read a picture's header, without its pixels unless metadata comes after them.

    Raises MmfastError as `load_picture` does.
    """
    with _opened(path, "picture") as file:
        if file.format == "PNG" and _says_more_later(path):
            file.load()
        orientation = _orientation(file.info)
        size = file.size[::-1] if orientation in (5, 6, 7, 8) else file.size
        frames = getattr(file, "n_frames", 1)
        return Header(size, file.mode, str(file.format), orientation, file.has_transparency_data, frames)


def _says_more_later(path: Path) -> bool:
    """Whether metadata that may tell the orientation comes after a PNG's pixels."""
    pixels = False
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            pixels |= head[4:] == b"IDAT"
            if pixels and head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return False


def _orientation(info: Mapping[Any, Any]) -> int:
    """The orientation, in EXIF's numbering, from the EXIF data or else the XMP data, as Pillow reads it."""
    exif = PILImage.Exif()
    with contextlib.suppress(*DAMAGED):
        exif.load(info.get("exif") or _raw_profile(info))
    if 0x0112 in exif:
        found: int = exif[0x0112]
        return found
    for key in ("XML:com.adobe.xmp", "xmp"):
        text = info.get(key, "")
        text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        if said := re.search(r'tiff:Orientation(?:="|>)([0-9])', text):
            return int(said[1])
    return 1


def _raw_profile(info: Mapping[Any, Any]) -> bytes:
    """The EXIF data that ImageMagick writes into a PNG as text: hexadecimal digits from the fourth line on."""
    return bytes.fromhex("".join(str(info.get("Raw profile type exif", "")).split("\n")[3:]))


def check_shapes(paths: Sequence[Path]) -> None:
    """`check_sizes` for picture files."""
    if len(paths) < 2:
        return
    first, *others = [read_header(path).size for path in paths]
    if not all(_alike(first, size) for size in others):
        check_sizes({str(path): load_picture(path).size for path in paths})


def check_sizes(sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raise MmfastError unless the pictures of one example have the same aspect ratio, to within a pixel.

    sizes: (width, height) of each, by its name in errors.
    """
    (name, first), *others = sizes.items()
    for other, size in others:
        if not _alike(first, size):
            raise MmfastError(
                f"{other} is {size[0]} x {size[1]} and {name} is {first[0]} x {first[1]}: they differ in shape, so "
                "their middles are not the same part; crop or pad them alike"
            )


def _alike(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return abs(a[0] * b[1] - b[0] * a[1]) <= max(*a, *b)


def middle_resized(picture: PILImage.Image, size: Size, how: PILImage.Resampling) -> PILImage.Image:
    """The largest part in the middle of a picture that has the aspect ratio of `size`, resized to `size`."""
    height, width = height_width(size)
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), how, box=middle((picture.height, picture.width), size))


def check_colour(name: str, colour: str) -> tuple[int, ...]:
    """Red, green and blue, 0 .. 255, of a colour name or #rrggbb. Raises MmfastError for any other text."""
    try:
        return ImageColor.getrgb(colour)[:3]
    except ValueError:
        raise MmfastError(f"{name} is {colour!r}; it should be a colour such as white or #808080") from None


def grey_or_colour(
    picture: PILImage.Image, channels: int, background: str | None, where: Path | str = "picture"
) -> PILImage.Image:
    """Convert a picture to mode L or RGB, or to F in 0 .. 255 if it has 16 bits per pixel.

    background: the colour behind transparent pixels; None to ignore the alpha. Raises MmfastError, naming `where`, for
    numbers that do not fit in 16 bits.
    """
    if picture.mode.startswith("I"):  # a 16-bit PNG
        values = np.asarray(picture)
        if not 0 <= int(values.min()) <= int(values.max()) <= MOST_16:
            raise MmfastError(
                f"{where} runs from {values.min()} to {values.max()}; a picture of 16 bits should be in 0 .. {MOST_16}"
            )
        clear = picture.info.get("transparency")  # the value of transparent pixels
        values = values.astype(np.float32) / 257
        if background is not None and isinstance(clear, int):
            grey = PILImage.new("RGB", (1, 1), check_colour("background", background)).convert("L").getpixel((0, 0))
            values[np.asarray(picture) == clear] = grey
        return PILImage.fromarray(values)
    if picture.mode == "La":  # Pillow converts it to nothing else
        picture = picture.convert("LA")
    if background is not None and picture.has_transparency_data:
        behind = PILImage.new("RGBA", picture.size, (*check_colour("background", background), 255))
        picture = PILImage.alpha_composite(behind, picture.convert("RGBA"))
    return picture.convert("L" if channels == 1 else "RGB")


def white(picture: PILImage.Image, size: Size) -> np.ndarray:
    """Where the resized middle of a picture is white: bool [height, width]."""
    grey = middle_resized(grey_or_colour(picture, 1, None), size, PILImage.Resampling.NEAREST)
    return np.asarray(grey) > 127
