"""What the values of a mask's file mean: class numbers, black and white, or a palette's greys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from mmfast.errors import MmfastError


def class_numbers(path: Path | str, picture: PILImage.Image) -> PILImage.Image:
    """A mask's picture with class numbers as pixels. Grey pictures that are stored in colour are made grey.

    Raises MmfastError for a coloured picture, and for one with transparent pixels.
    """
    if picture.mode == "P":
        return _grey_of_palette(picture)
    if picture.mode in ("L", "1") or picture.mode.startswith("I"):
        return picture
    pixels = np.asarray(picture.convert("RGBA"))
    wanted = "a mask should be grey, or have a palette, with class numbers"
    if not (pixels[..., :1] == pixels[..., :3]).all():
        colours = "or name its classes' colours in modalities.NAME.colours"
        raise MmfastError(f"{path} is a coloured picture of mode {picture.mode}; {wanted}, {colours}")
    if not (pixels[..., 3] == 255).all():
        raise MmfastError(f"{path} has transparent pixels; {wanted}")
    return PILImage.fromarray(pixels[..., 0])


# The greys of a palette that are taken for class numbers: small ones, and 255, which is white or to be ignored.
NUMBERS = {*range(64), 255}


def _grey_of_palette(picture: PILImage.Image) -> PILImage.Image:
    """The greys of a palette that has no others than class numbers; the picture itself, whose indices count, if not.

    GIF files and optimisers of PNG files number the values that a picture has anew, so an index means nothing there.
    """
    colours, used = _palette(picture)
    greys = colours[:, 0]
    if max(used, default=0) >= len(greys) or not (colours == greys[:, None]).all():
        return picture
    if not NUMBERS.issuperset(greys[used].tolist()):
        return picture
    return PILImage.fromarray(greys[np.asarray(picture)])


def _palette(picture: PILImage.Image) -> tuple[np.ndarray, list[int]]:
    """A palette's colours, uint8 [n, 3], and the indices that occur in the picture."""
    used = [k for k, count in enumerate(picture.histogram()) if count]
    return np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3), used


def colours_by_index(picture: PILImage.Image) -> dict[int, tuple[int, ...]]:
    """The colours of the indices that occur in a mask whose indices are its class numbers; {} for any other."""
    if picture.mode != "P" or _grey_of_palette(picture) is not picture:
        return {}
    colours, used = _palette(picture)
    return {k: tuple(colours[k].tolist()) for k in used if k < len(colours)}


# What still counts as black or white, and the largest share of pixels between, from antialiased edges and JPEG.
NEARLY, BETWEEN = 7, 0.25
# The least share of pixels of a grey whose four neighbours have the same, by which it is a class of its own.
FLAT = 0.01

# The codings of a mask of two classes: by class numbers, or black and white.
BLACK_AND_WHITE = "0/255"
CODINGS = ("0/1", BLACK_AND_WHITE)


def two_classes(path: Path | str, values: np.ndarray, coding: str = "", known: np.ndarray | None = None) -> np.ndarray:
    """All values of a two-class mask as 0 and 1, from 0 and 1 or from black and white, split at 127.

    values: [H, W]. coding: the one of CODINGS that they must have; empty for either. known: the pixels that count.
    Raises MmfastError, with the values found, for any other.
    """
    found = coding_of(path, values, known)
    if coding and found not in ("", coding):
        usual = coding.replace("/", " and ")
        raise MmfastError(
            f"{path} holds the values {_shown(values)}; most masks of this data hold {usual}: save it with {usual} "
            f"instead, or remove it; if most should be like this one, set modalities.NAME.values: {found}"
        )
    return (values > 127).astype(values.dtype) if found == CODINGS[1] else values


def coding_of(path: Path | str, whole: np.ndarray, known: np.ndarray | None = None) -> str:
    """The one of CODINGS that a two-class mask's values have; empty if all are 0. Raises MmfastError for others.

    whole: [H, W]. known: the pixels that count, at least one.
    """
    values = whole if known is None else whole[known]
    if values.min() >= 0 and values.max() <= 1:
        return CODINGS[0] if values.max() else ""
    white, grey = values >= 255 - NEARLY, (values > NEARLY) & (values < 255 - NEARLY)
    # With 0, 1 and 255 in one file, 255 may be white or "ignore".
    unclear = bool((values == 1).mean() > 0.01 and not ((values > 1) & (values <= NEARLY)).any())
    if values.max() > 255 or not white.any() or grey.mean() > BETWEEN or unclear or _has_flat_grey(whole, known):
        raise MmfastError(
            f"{path} holds the values {_shown(values)}; a mask of two classes should hold 0 and 1, or 0 and 255"
        )
    return CODINGS[1]


def _has_flat_grey(whole: np.ndarray, known: np.ndarray | None) -> bool:
    """Whether a grey fills areas, as a third class does, and not only edges: a hundredth of the picture or more."""
    flat = (whole > NEARLY) & (whole < 255 - NEARLY)
    if known is not None:
        flat &= known
    around = np.pad(whole, 1, mode="edge")
    for beside in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]):
        flat &= beside == whole
    return bool(flat.mean() >= FLAT)


def _shown(values: np.ndarray) -> str:
    found = np.unique(values)
    return ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
