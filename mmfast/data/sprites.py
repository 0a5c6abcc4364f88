"""Colour sprites of the game Battle for Wesnoth: image, four-class mask and race, split by unit.

A drawing with transparency gives the image (over a ground) and the class of each pixel: background, shadow (partly
transparent, which includes ghosts and soft edges), body, or body in the colour that the game gives each team. Most
files are frames of a unit's animation, so whole units are held out, never single files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfast import ops
from mmfast.data.base import VALIDATION, Batch, Data
from mmfast.data.cache import HELP, digest, kept
from mmfast.data.sprite_pixels import (
    OPAQUE,
    SIDES,
    area_of,
    averaged,
    hexagon,
    majority,
    middle,
    pixel_classes,
    visible,
)
from mmfast.errors import MmfastError
from mmfast.image_files import load_picture
from mmfast.modalities.caption import vector
from mmfast.options import option
from mmfast.progress import Bar
from mmfast.sizes import Size, height_width, plain
from mmfast.streams import GROUND

VERSION = 1  # of the cached data
PACKAGE = "wesnoth-1.16-data"
SEEN, BODY = 0.9, 200  # a sprite is kept if its crop has this share of its visible pixels, and so many opaque ones
GREY = 128
# The terrain folders whose plain pictures serve as ground, and the share of their kinds that is held out for the test.
TERRAIN, TEST_TERRAIN = ("cave", "flat", "frozen", "grass", "hills", "interior", "sand", "swamp", "water"), 0.2
NO_GROUND = re.compile(r"tile|editor|symbol|wall|variation|beam|oasis|coast|reef")


@dataclass
class Spec:
    kind: str = "sprites"
    root: str = option("/usr/share/games/wesnoth/1.16/data", f"the data folder of Debian's {PACKAGE}", path=True)
    background: str = option("plain", "what is behind a sprite: grey, or terrain", choices=("plain", "terrain"))
    flip: bool = option(True, "train on mirrored copies as well")
    test_fraction: float = option(0.12, "share of the units held out for the evaluation", above=0, max=0.9)
    validation: bool = option(False, VALIDATION)
    cache: str = option("", HELP, path=True)


def unit(path: str) -> str:
    """The unit of a sprite, "race/name", from its path RACE/.../name-words.png: the file's first word, without digits.

    Animations, directions and variants (mage-attack-3, mage-ne, mage+female) follow the name. This merges some units
    (fire-ant and fire-dragon), but never puts frames of one unit on both sides of the split.
    """
    race, *_, file = path.split("/")
    return f"{race}/{re.split(r'[-_+.0-9]', file)[0]}"


def held_out(names: Iterable[str], share: float) -> set[str]:
    """The names "group/name" that are held out for the test: in each group the share with the lowest hashes.

    So a name changes sides only if others of its group are added or removed.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names), key=digest):
        groups.setdefault(name.split("/")[0], []).append(name)
    return {name for group in groups.values() for name in group[: round(len(group) * share)]}


def _files(folder: Path) -> list[str]:
    """The sorted relative paths of the sprites in the races' folders below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png") if path.parent != folder)


def _palette(root: Path) -> list[int]:
    """The colours 0xRRGGBB that the game replaces by a team's: the palette named magenta."""
    file = root / "core" / "team-colors.cfg"
    try:
        found = re.search(r"^\s*magenta\s*=\s*([0-9A-Fa-f, ]+)", file.read_text(errors="replace"), re.MULTILINE)
    except OSError as error:
        raise MmfastError(f"data.root: {file} cannot be read ({error.strerror}); {_install()}") from None
    if found is None:
        raise MmfastError(f"data.root: {file} has no palette named magenta; {_install()}")
    return [int(colour, 16) for colour in found[1].replace(" ", "").strip(",").split(",")]


def _install() -> str:
    return (
        f"`apt-get install {PACKAGE}`, or `apt-get download {PACKAGE} && dpkg-deb -x {PACKAGE}_*.deb DIR` and "
        "--data.root DIR/usr/share/games/wesnoth/1.16/data"
    )


def _load(folder: Path, files: Sequence[str], palette: Sequence[int], size: Size) -> dict[str, Tensor]:
    """Premultiplied pixels [N, 4, H, W], masks [N, H, W] and file numbers [N] of the sprites worth keeping.

    Skips effects with hardly any body (flames, halos), and sprites of which the crop would show too little (SEEN).
    """
    area, factor = area_of(size)
    kept_pixels, rows = [], []
    with Bar(len(files), "reading sprites", "file") as bar:
        for row, file in enumerate(files):
            whole = np.asarray(load_picture(folder / file).convert("RGBA"))
            seen = middle(whole, area)
            if (seen[..., 3] >= OPAQUE).sum() >= BODY and visible(seen) >= SEEN * visible(whole):
                kept_pixels.append(seen)
                rows.append(row)
            bar.update()
    if not rows:
        raise MmfastError(f"data.root: {folder} holds no sprites RACE/NAME.png; {_install()}")
    pixels, masks = [], []
    for start in range(0, len(rows), 256):
        batch = np.stack(kept_pixels[start : start + 256])
        pixels.append(averaged(torch.from_numpy(batch).permute(0, 3, 1, 2), factor))
        masks.append(majority(torch.from_numpy(pixel_classes(batch, palette)), factor))
    return {"pixels": torch.cat(pixels), "masks": torch.cat(masks), "files": torch.tensor(rows)}


def _terrain(root: Path) -> list[Path]:
    folder = root / "core" / "images" / "terrain"
    return sorted(file for part in TERRAIN for file in (folder / part).glob("*.png") if not NO_GROUND.search(file.stem))


def grounds(files: Sequence[Path], size: Size) -> dict[str, Tensor]:
    """Terrain for the ground, "train" and "test", uint8 [G, 3, H, W] each.

    The two share no kind of terrain. A kind is a name without its number: grass/green of grass/green3.
    """
    found = []
    for file in files:
        ground = hexagon(file, size)
        if ground is not None:
            found.append((f"terrain/{file.parent.name}/{re.split(r'[0-9.]', file.name)[0]}", ground))
    for_test = held_out((kind for kind, _ in found), TEST_TERRAIN)
    train, test = ([ground for kind, ground in found if (kind in for_test) is part] for part in (False, True))
    if not train or not test:
        raise MmfastError(
            f"data.root holds {len(found)} pictures of terrain, too few to split; give --data.background plain, "
            f"or {_install()}"
        )
    return {"train": torch.stack(train), "test": torch.stack(test)}


def _listing(root: Path, files: Iterable[Path]) -> str:
    """A hash of the files' paths, sizes and times, as a cache key."""

    def line(file: Path) -> str:
        found = file.stat()
        return f"{file.relative_to(root).as_posix()} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"

    return digest("\n".join(map(line, files)))


@dataclass
class Sprites:
    """Examples stored as bytes, put on their ground on access; from number N on they are mirrored."""

    pixels: Tensor
    masks: Tensor
    labels: Tensor
    grounds: Tensor
    mirrored: bool
    captions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by modality: vectors, who has one

    def __len__(self) -> int:
        return len(self.labels) * (1 + self.mirrored)

    def sources(self, indices: Sequence[int]) -> Tensor:
        """The numbers of the unmirrored sprites: int64 [B]."""
        return torch.as_tensor(indices) % len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index, row = torch.as_tensor(indices), self.sources(indices)
        flip = index >= len(self.labels)
        pixels = torch.where(flip[:, None, None, None], self.pixels[row].flip(3), self.pixels[row]).int()
        mask = torch.where(flip[:, None, None], self.masks[row].flip(2), self.masks[row])
        words = ops.random_words([len(index), 1], seed=0, sample_ids=index, stream=GROUND)
        ground = self.grounds[words[:, 0] % len(self.grounds)].int()
        image = (pixels[:, :3] + ((255 - pixels[:, 3:]) * ground + 127) // 255).clamp(max=255)
        data = {"image": image.float() / 127.5 - 1, "label": self.labels[row], "mask": mask.long()}
        data |= {name: vectors[row] for name, (vectors, _) in self.captions.items()}
        return Batch(data, {name: there[row] for name, (_, there) in self.captions.items()})


def captions(root: Path, files: Iterable[str]) -> list[str]:
    """What each sprite RACE/NAME.png shows, such as "an elvish archer"; "" if no unit's description matches it.

    The game's unit descriptions name one picture each; other frames of the unit have that name with a suffix.
    """
    names: dict[str, str] = {}
    for path in sorted((root / "core" / "units").rglob("*.cfg")):
        text = path.read_text(encoding="utf-8", errors="replace")
        name = re.search(r'^\s*name\s*=\s*_\s*"([^"]+)"', text, re.MULTILINE)
        picture = re.search(r'^\s*image\s*=\s*"?units/([^"~\s]+)\.png', text, re.MULTILINE)
        if name and picture:
            names.setdefault(picture[1], name[1].split("^")[-1].lower())
    found = []
    for file in files:
        stem = file.removesuffix(".png")
        ends = [len(stem), *(m.start() for m in reversed(list(re.finditer(r"[-+_.0-9]", stem))))]
        caption = next((names[stem[:end]] for end in ends if stem[:end] in names), "")
        found.append(f"{'an' if caption[0] in 'aeiou' else 'a'} {caption}" if caption else "")
    return found


def found(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> dict[str, dict[str, Any]]:
    """The captions that occur, as options of the caption modalities."""
    root, names = Path(spec.root), [n for n, p in modalities.items() if p.kind == "caption" and not p.captions]
    folder = root / "core" / "images" / "units"
    texts = sorted({x for x in captions(root, _files(folder)) if x}) if names and folder.is_dir() else []
    return {name: {"captions": texts} for name in names}


def open(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Data:
    """Image (float [3, H, W] in -1 .. 1, 256 levels), mask (CLASSES), label (the race) and captions, split by unit.

    A modality of kind caption is the unit's name, which nine sprites in ten have.

    The size is the anchor's: 16, 32, 36, 64 or 72, or a rectangle whose longer side is one of these, from the middle of
    that square. Raises MmfastError for other sizes, for missing files, and for a label with fewer classes than races.
    """
    size, root = plain(modalities[anchor].size), Path(spec.root)
    if max(height_width(size)) not in SIDES:
        raise MmfastError(
            f"modalities.{anchor}.size is {size}; for this data it (of a rectangle the longer side) should be one of "
            f"{', '.join(map(str, SIDES))}"
        )
    folder = root / "core" / "images" / "units"
    if not folder.is_dir():
        raise MmfastError(f"data.root: {folder} does not exist; {_install()}")
    files, palette = _files(folder), _palette(root)
    races = sorted({file.split("/")[0] for file in files})
    classes = getattr(modalities.get("label"), "classes", len(races))
    if classes < len(races):
        raise MmfastError(f"modalities.label.classes is {classes}; this data has {len(races)} ({', '.join(races)})")
    listing = _listing(folder, (folder / file for file in files))
    key = {"version": VERSION, "size": size, "files": listing, "palette": palette}
    loaded = kept(spec.cache, "sprites", key, lambda: _load(folder, files, palette, size))
    names = [files[row] for row in loaded["files"].tolist()]
    labels = torch.tensor([races.index(name.split("/")[0]) for name in names])
    units = [unit(name) for name in names]
    for_test = held_out(units, spec.test_fraction)
    test = torch.tensor([name in for_test for name in units])
    train = ~test
    if spec.validation:
        for_test = held_out((name for name in units if name not in for_test), spec.test_fraction)
        test = torch.tensor([name in for_test for name in units])
        train &= ~test

    grey = torch.full((1, 3, *height_width(size)), GREY, dtype=torch.uint8)
    ground = {"train": grey, "test": grey}
    if spec.background == "terrain":
        terrain = _terrain(root)
        key = {"version": VERSION, "size": size, "files": _listing(root, terrain)}
        ground = kept(spec.cache, "terrain", key, lambda: grounds(terrain, size))

    of_text = [(name, part) for name, part in modalities.items() if getattr(part, "kind", "") == "caption"]
    texts = captions(root, names) if of_text else []
    there = torch.tensor([bool(text) for text in texts])
    vectors = {name: torch.stack([vector(p.text_encoder, text, p.dim) for text in texts]) for name, p in of_text}

    def part(rows: Tensor, ground: Tensor, mirrored: bool) -> Sprites:
        own = {name: (x[rows], there[rows]) for name, x in vectors.items()}
        return Sprites(loaded["pixels"][rows], loaded["masks"][rows], labels[rows], ground, mirrored, own)

    return Data(part(train, ground["train"], spec.flip), part(test, ground["test"], False))
