"""Guess the modalities in a plain folder from its files: their kinds, classes and sizes."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmfast.candidates import (
    IMAGES,
    MOST_VALUES,
    Candidate,
    as_pictures,
    beside,
    candidate_of,
    check_layout,
    class_pixels,
    class_values,
    colours,
    is_one,
    named_as_masks,
    or_none,
    two_palettes,
)
from mmfast.config import check_name
from mmfast.data.found import check_no_root, find, leads_out, led_out
from mmfast.data.items import spread
from mmfast.data.metadata import find_table, read_table
from mmfast.errors import MmfastError
from mmfast.guess_remarks import remarks
from mmfast.guess_text import are_measured, numbers_note, of_files, of_folders, of_texts
from mmfast.image_files import EXTENSIONS, load_picture, read_header
from mmfast.mask_values import two_classes
from mmfast.modalities.embedding import mapped
from mmfast.sizes import Size, height_width, plain

SIZES = (8, 16, 32, 64, 128, 256)
IGNORED = 255
# At most so many greys that are no class numbers are the colours of a mask's classes.
FEW_GREYS = 8
# A rectangle is guessed if log(width / height) is within ALIKE of the usual value for at least a share NEARLY_ALL of
# the pictures, and the usual value is at least CLEARLY from a square's, which would lose an eighth of each picture.
NEARLY_ALL, ALIKE, CLEARLY = 0.95, 0.05, math.log(8 / 7)
# The network used to inspect data without a config.
DRAFT = {"backbone": {"kind": "mlp", "width": 16, "blocks": 1, "features": 4}}


def most_pixels() -> int:
    """The largest image size that is guessed: one that this machine can train on in a reasonable time."""
    return 64 if torch.cuda.is_available() else 32


@dataclass
class Guess:
    """The contents of a folder: a dict of options for each modality, as in a config, and notes on what was left out.

    folders: the folders of modalities that have another name. outside: whether links may lead out of root. shares: the
    share of the examples that have a modality, for modalities with files or cells of their own. remarks: what else the
    user should know.
    """

    root: Path
    anchor: str
    modalities: dict[str, dict[str, Any]]
    folders: dict[str, str] = field(default_factory=dict)
    examples: int = 0
    notes: list[str] = field(default_factory=list)
    outside: bool = False
    shares: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """The `data` section of a config."""
        folders = {"folders": self.folders} if self.folders else {}
        outside = {"outside": True} if self.outside else {}
        return {"kind": "folder", "root": str(self.root), **folders, **outside}


def guess(root: str | Path, most: int, size: Size | None = None, outside: bool = False) -> Guess:
    """Guess the modalities of a folder. Raises MmfastError if it holds no pictures.

    size: the size of images and masks in pixels. None for one near the pictures' own, at most `most`; if nearly all
    have the same other shape, it is a rectangle with about as many pixels. outside: links may lead out of the folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise MmfastError(
            f"{root} is not a folder; it should be one that contains pictures, in folders such as image, mask and label"
        )
    check_no_root("DIR", root)
    within = None if outside else root
    if out := [path for path in sorted(root.iterdir()) if path.is_dir() and leads_out(path, within)]:
        raise MmfastError(led_out(out))
    found = [x for x in (candidate_of(path, within) for path in sorted(root.iterdir())) if x is not None]
    check_layout(root, found)
    pictures = as_pictures(found)
    if is_one(pictures):
        found = [Candidate(".", "image", find(root, EXTENSIONS, within).paths)]
    elif not any(x.kind == "image" for x in found):
        found = pictures
    if not any(x.kind == "image" and x.paths for x in found):  # look for pictures in root itself
        own = {stem: path for stem, path in find(root, EXTENSIONS, within).paths.items() if "/" not in stem}
        found = [*([Candidate(".", "image", own)] if own else []), *found]
    images = [x for x in found if x.kind == "image" and x.paths]
    if not images:
        raise MmfastError(
            f"{root} holds no pictures ({', '.join(EXTENSIONS)}); they should lie there or in its folders"
        )
    anchor = max(
        images, key=lambda x: (len(x.paths), x.folder.lower().startswith(IMAGES), not named_as_masks(x.folder))
    )
    guessed = Guess(root, "", {}, examples=len(anchor.paths), outside=outside)
    guessed.anchor = _add(guessed, anchor, _image(anchor, most, size))
    size = guessed.modalities[guessed.anchor]["size"]
    for candidate in [*found, *beside(anchor, root / anchor.folder, within)]:
        if candidate is anchor:
            continue
        guessed.notes += [f"{candidate.folder}: {candidate.note}"] if candidate.note else []
        if candidate.note and not candidate.paths:
            continue
        shared = {stem: path for stem, path in candidate.paths.items() if stem in anchor.paths}
        if not shared:
            guessed.notes.append(f"{candidate.folder}: no file has the path and name of one in {anchor.folder}")
        elif candidate.kind == "image":
            guessed.notes.append(
                f"{candidate.folder}: more pictures, which are not masks; {anchor.folder} has the images"
            )
        else:
            options = OPTIONS[candidate.kind](Candidate(candidate.folder, candidate.kind, shared), guessed, size)
            if options is not None:
                guessed.shares[_add(guessed, candidate, options)] = len(shared) / guessed.examples
    _add_columns(guessed)
    _check_alone(guessed, anchor, within)
    if not any(x["kind"] == "label" for x in guessed.modalities.values()):
        named, note = of_folders(anchor.paths)
        guessed.notes += [note] if note else []
        if named is not None:
            guessed.modalities[_free(guessed, "label", "class")] = named
    others = [name for name in guessed.shares if name != guessed.anchor]  # that have files or cells
    guessed.remarks += remarks(anchor.paths, root / anchor.folder, alone=not others)
    return guessed


def _check_alone(guessed: Guess, anchor: Candidate, within: Path | None) -> None:
    """Raise MmfastError if pictures in the root are the anchor's, and folders that are no modality hold others."""
    if anchor.folder != ".":
        return
    used = [guessed.root / guessed.folders.get(name, name) for name in guessed.modalities if name != guessed.anchor]
    read = find(guessed.root, EXTENSIONS, within).without(used).paths
    if others := [path for stem, path in read.items() if stem not in anchor.paths]:
        raise MmfastError(
            f"{guessed.root} holds pictures, and {others[0]} in a folder that is no modality would be read as one of "
            "them; put the pictures of the root into a folder of their own, such as image"
        )


def _add_columns(guessed: Guess) -> None:
    """Add the labels that are columns of a table next to the folders."""
    path = find_table(guessed.root)
    if path is None:
        return
    table, numbers = read_table(path), dict[str, set[str]]()
    for name, cells in table.columns.items():
        if name in table.nested:
            guessed.notes.append(f"{path}: the column {name}, which has lists or objects")
            continue
        if are_measured(cells.values()):
            numbers[name] = {*cells.values()}
            continue
        options, note = of_texts({*cells.values()}, len(cells))
        try:
            check_name(name)
        except MmfastError:
            guessed.notes.append(f"{path}: the column {name!r}, which cannot be a modality's name; rename it")
            continue
        if name in guessed.modalities:
            guessed.notes.append(f"{path}: the column {name}, because {name} has files of its own")
        elif options is None:
            guessed.notes.append(f"{path}: the column {name}, with {note}")
        else:
            guessed.modalities[name] = options
            guessed.shares[name] = min(1.0, len(cells) / guessed.examples)
    if numbers:
        guessed.notes.append(f"{path}: {numbers_note(numbers)}")


def _add(guessed: Guess, candidate: Candidate, options: dict[str, Any]) -> str:
    """Add the modality under its folder's name, or its kind's if that is taken or invalid; returns the name."""
    kind = options["kind"]
    name = candidate.folder
    try:
        check_name(name)
        free = name not in guessed.modalities
    except MmfastError:
        free = False
    if not free:
        name = _free(guessed, kind)
        guessed.folders[name] = candidate.folder
    guessed.modalities[name] = options
    return name


def _free(guessed: Guess, *names: str) -> str:
    """The first name that no modality and no folder has: one of these, or the first of them with a number."""
    every = itertools.chain(names, (f"{names[0]}{k}" for k in itertools.count(2)))
    return next(x for x in every if x not in guessed.modalities and not os.path.lexists(guessed.root / x))


def _image(candidate: Candidate, most: int, size: Size | None) -> dict[str, Any]:
    paths = spread(list(candidate.paths.values()), 256)
    headers = [header for path in paths if (header := or_none(read_header, path)) is not None]
    if size is None:
        side = sorted(min(header.size) for header in headers)[len(headers) // 2] if headers else most
        square = min((x for x in SIZES if x <= max(most, SIZES[0])), key=lambda x: abs(math.log(x / side)))
        size = _rectangle([header.size for header in headers], square)
    grey = all(header.mode[0] in "1LI" for header in headers) or all(or_none(_is_grey, x) for x in spread(paths, 32))
    return {"kind": "image", "channels": 1 if grey and headers else 3, "size": plain(size)}


def _rectangle(sizes: Sequence[tuple[int, int]], side: int) -> Size:
    """The size that fits the pictures, each (width, height): a square unless nearly all have the same other shape.

    A rectangle has at most as many pixels as the square, and sides that are multiples of a quarter of the square's.
    """
    shapes = sorted(math.log(width / height) for width, height in sizes)
    usual = shapes[len(shapes) // 2] if shapes else 0.0
    alike = sum(abs(x - usual) < ALIKE for x in shapes)
    if abs(usual) < CLEARLY or alike < NEARLY_ALL * len(shapes):
        return side
    sides = range(side // 4, 4 * side + 1, side // 4)

    def off(size: tuple[int, int]) -> float:
        height, width = size
        return abs(math.log(width / height) - usual) + abs(math.log(width * height / side**2)) / 2

    return min(((h, w) for h in sides for w in sides if h * w <= side**2), key=off)


def _is_grey(path: Path) -> bool:
    pixels = np.asarray(load_picture(path).convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def _mask(candidate: Candidate, guessed: Guess, size: Size) -> dict[str, Any] | None:
    """The options of a mask with two classes, or as many as the largest number implies; 255 is then ignored.

    If some files hold 0 and 1 and others 0 and 255, the mask has two classes, and one of the two codings is wrong. A
    few greys that are far apart are taken for the colours of the classes.
    """
    read = [or_none(class_values, path) for path in candidate.paths.values()]
    if all(x is None for x in read):
        return _coloured(candidate, guessed, size)
    values = [x or set[int]() for x in read]
    every, both = set[int]().union(*values), any({1, IGNORED} <= x for x in values)
    if two_palettes([*candidate.paths.values()]):
        return _coloured(candidate, guessed, size)
    options: dict[str, Any] = {"kind": "mask", "classes": 2, "size": size}
    numbers = every - {IGNORED}
    few = not numbers or max(numbers) < MOST_VALUES
    # Black and white with antialiased edges has values all over the range; class numbers are small or dense.
    edges = not few and all(or_none(_two, path) for path in candidate.paths.values())
    if every <= {0, 1} or every == {0, IGNORED} or (every == {0, 1, IGNORED} and not both) or edges:
        return options
    if not few and max(numbers) >= 4 * len(numbers) and len(every) <= FEW_GREYS:
        return _coloured(candidate, guessed, size)
    if (not few and max(numbers) >= 4 * len(numbers)) or not numbers:
        guessed.notes.append(f"{candidate.folder}: masks with values up to {max(every)}, which are no class numbers")
        return None
    options["classes"] = max(2, max(numbers) + 1)
    return options | ({"ignore": IGNORED} if IGNORED in every else {})


def _coloured(candidate: Candidate, guessed: Guess, size: Size) -> dict[str, Any] | None:
    """The options of a mask whose classes are colours."""
    found = colours([*candidate.paths.values()])
    if found is None:
        guessed.notes.append(
            f"{candidate.folder}: coloured pictures; a mask holds class numbers, or a few colours that are its classes"
        )
        return None
    return {"kind": "mask", "classes": len(found), "size": size, "colours": found}


def _two(path: Path) -> bool:
    """True for a mask of two classes. Raises MmfastError for any other."""
    return two_classes(path, class_pixels(path)).max() <= 1


def _text(candidate: Candidate, guessed: Guess, size: Size) -> dict[str, Any] | None:
    options, note = of_files([*candidate.paths.values()])
    if options is None:
        guessed.notes.append(f"{candidate.folder}: {note}")
    return options


def _embedding(candidate: Candidate, guessed: Guess, size: Size) -> dict[str, Any] | None:
    shapes = (or_none(_shape, path) for path in candidate.paths.values())
    shape = next((x for x in shapes if x and math.prod(x)), None)
    if shape is None:
        guessed.notes.append(f"{candidate.folder}: no file can be read as a vector or a map")
        return None
    height, width = height_width(size)
    if len(shape) == 3 and min(shape[1:]) > 1 and shape[1] * width == shape[2] * height and height % shape[1] == 0:
        return {"kind": "feature_map", "dim": shape[0], "cells": plain(shape[1:])}
    return {"kind": "embedding", "dim": math.prod(shape)}


def _shape(path: Path) -> tuple[int, ...]:
    try:
        return tuple(mapped(path).shape)
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError, AttributeError) as error:
        raise MmfastError(f"{path} cannot be read as a vector (.npy): {error}") from None


OPTIONS = {"mask": _mask, "label": _text, "embedding": _embedding}
