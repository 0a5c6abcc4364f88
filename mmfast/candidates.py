"""The folders below a root as candidates for modalities, by what their files appear to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmfast import modalities as kinds
from mmfast.data.found import find_each
from mmfast.data.items import spread
from mmfast.errors import MmfastError
from mmfast.image_files import EXTENSIONS, load_picture
from mmfast.mask_values import class_numbers, colours_by_index
from mmfast.modalities.mask import colour_codes
from mmfast.words import plural

T = TypeVar("T")

# Words in the names of folders with masks, and beginnings of the names of folders with images.
MASKS = ("mask", "seg", "annot", "trimap")
IMAGES = ("image", "photo", "picture", "img", "rgb", "jpegimages")
PALETTES_AT_MOST = 1000  # masks whose palettes are compared
# More values than this are not the classes of a mask.
MOST_VALUES = 64


@dataclass
class Candidate:
    """The files of one folder, by stem, and the kind that they appear to be.

    coloured: masks whose classes are colours. note: what was left out of the folder.
    """

    folder: str
    kind: str
    paths: dict[str, Path]
    coloured: bool = False
    note: str = ""


def candidate_of(path: Path, within: Path | None) -> Candidate | None:
    """The files of a folder that are of its most common kind; None if it is not a folder or holds no such files.

    Masks in files of a format that is not one of masks are left out, with a note. A folder in which most pictures have
    a text or a vector of the same name is one of pictures (see `beside`).
    """
    if path.name.startswith(".") or not path.is_dir():
        return None
    each = find_each(path, ENDINGS, within)
    found = {kind: x.paths for kind, x in each.items()}
    pictures = found["image"].keys()
    if pictures and any(2 * len(pictures & found[k].keys()) > len(pictures) for k in BESIDE):
        kind = "image"
    else:
        kind = max((k for k in ENDINGS if k != "mask"), key=lambda k: len(found[k]))
    coloured = kind == "image" and named_as_masks(path.name) and _are_coloured(found["image"])
    if kind == "image" and (coloured or _are_masks(path.name, found["image"])):
        kind, note = "mask", _other_formats(each["mask"].others, bool(found["mask"]))
        return Candidate(path.name, kind, found[kind], coloured, note) if found[kind] or note else None
    return Candidate(path.name, kind, found[kind], coloured) if found[kind] else None


def _other_formats(others: Sequence[Path], beside: bool) -> str:
    """A note on the files of a folder of masks that are not of a mask's format; empty if there are none.

    beside: whether there are masks; then only pictures are named.
    """
    left = [path for path in others if path.suffix.lower() in EXTENSIONS or not beside]
    if not left:
        return ""
    endings, known = ", ".join(sorted({path.suffix.lower() for path in left})), kinds.kind("mask").extensions
    return f"{plural(len(left), 'file')} ({endings}); masks are read from {', '.join(known)}, so convert them"


def check_layout(root: Path, found: Sequence[Candidate]) -> None:
    """Raise MmfastError if images and their masks lie in folders below one of root's folders, as for each split."""
    for part in found:
        inside = sorted({stem.split("/")[0] for stem in part.paths if "/" in stem})
        masks = [x for x in inside if named_as_masks(x)]
        images = [x for x in inside if x.lower().startswith(IMAGES) and x not in masks]
        if masks and images:
            a, b = images[0], masks[0]
            raise MmfastError(
                f"{root / part.folder} holds folders of images ({a}) and of masks ({b}); give that folder instead of "
                f"{root}, or move the files into {root / a / part.folder} and {root / b / part.folder}"
            )


def two_palettes(paths: Sequence[Path]) -> str:
    """An error for two masks in which one index of the palette has different colours; empty if there are none.

    It looks at PALETTES_AT_MOST of them.
    """
    first: dict[int, tuple[int, ...]] = {}
    seen: dict[int, Path] = {}
    for path in spread(paths, PALETTES_AT_MOST):
        picture = or_none(load_picture, path)
        for index, colour in ({} if picture is None else colours_by_index(picture)).items():
            if first.setdefault(index, colour) != colour:
                return (
                    f"{path} and {seen[index]} have different palettes: {index} is #{bytes(colour).hex()} in one and "
                    f"#{bytes(first[index]).hex()} in the other, so it cannot be a class number; name the classes' "
                    "colours in modalities.NAME.colours"
                )
            seen.setdefault(index, path)
    return ""


def beside(anchor: Candidate, folder: Path, within: Path | None) -> list[Candidate]:
    """The texts and vectors in the anchor's own folder that belong to its files, as 001.txt belongs to 001.jpg."""
    found = find_each(folder, {kind: ENDINGS[kind] for kind in BESIDE}, within)
    paths = {kind: {s: p for s, p in x.paths.items() if s in anchor.paths} for kind, x in found.items()}
    return [Candidate(anchor.folder, kind, some) for kind, some in paths.items() if some]


BESIDE = ("label", "embedding")
ENDINGS = {"image": EXTENSIONS, **{name: kinds.kind(name).extensions for name in ("label", "embedding", "mask")}}


def _are_masks(name: str, paths: dict[str, Path]) -> bool:
    """Whether the pictures are masks.

    They are if the folder's name says so and some can be read as masks; or else if all files have a mask's extension
    and those inspected hold few values.
    """
    values = [or_none(class_values, path) for path in spread(list(paths.values()), 16)]
    counts = [len(x) for x in values if x is not None]
    if named_as_masks(name):
        return bool(counts) or not values
    endings = all(p.suffix.lower() in kinds.kind("mask").extensions for p in paths.values())
    return endings and not name.lower().startswith(IMAGES) and bool(counts) and 1 < max(counts) <= MOST_VALUES


def _are_coloured(paths: dict[str, Path]) -> bool:
    """Whether the pictures are masks of a few colours, none of which can be read as a mask of class numbers."""
    some = spread(list(paths.values()), 16)
    endings = all(p.suffix.lower() in kinds.kind("mask").extensions for p in paths.values())
    return endings and all(or_none(class_values, path) is None for path in some) and colours(some) is not None


def named_as_masks(folder: str) -> bool:
    """Whether a folder's name says that it holds masks."""
    return any(word in folder.lower() for word in MASKS)


def as_pictures(found: Sequence[Candidate]) -> list[Candidate]:
    """Turn masks into images if only their few values, or colours, suggest that they are masks, and they belong to no
    images: for colours, to none in a folder that is named as one of images."""
    images = [x for x in found if x.kind == "image"]
    stems = {stem for x in images for stem in x.paths}
    of_named = {stem for x in images if x.folder.lower().startswith(IMAGES) for stem in x.paths}

    def of_none(x: Candidate) -> bool:
        if x.coloured:
            return not of_named & x.paths.keys()
        return x.kind == "mask" and not named_as_masks(x.folder) and not stems & x.paths.keys()

    return [dataclasses.replace(x, kind="image", coloured=False) if of_none(x) else x for x in found]


def is_one(found: Sequence[Candidate]) -> bool:
    """Whether the folders are the classes of one modality: all hold pictures, and none has a modality's name."""
    if not found:
        return True
    named = any(x.folder.lower().startswith(IMAGES) or x.kind != "image" for x in found)
    return not named and (len(found) > 1 or not any("/" in stem for stem in found[0].paths))


def or_none(read: Callable[[Path], T], path: Path) -> T | None:
    """Read a file; None if it cannot be read, which `mmfast check` reports."""
    try:
        return read(path)
    except MmfastError:
        return None


def colours(paths: Sequence[Path]) -> list[str] | None:
    """The colours of coloured masks, such as #ff0000, black first; None if there are too many for classes."""
    found: set[int] = set()
    for path in paths:
        codes = or_none(lambda file: colour_codes(load_picture(file)), path)
        found |= set() if codes is None else {int(x) for x in np.unique(codes)}
        if len(found) > MOST_VALUES:
            return None
    return [f"#{code:06x}" for code in sorted(found)] if len(found) > 1 else None


def class_pixels(path: Path) -> np.ndarray:
    """A mask's class numbers, int32 [H, W]."""
    return np.asarray(class_numbers(path, load_picture(path))).astype(np.int32)


def class_values(path: Path) -> set[int]:
    """The class numbers that a mask holds."""
    return {int(x) for x in np.unique(class_pixels(path))}
