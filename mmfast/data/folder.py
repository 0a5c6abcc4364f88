"""Aligned folders: root/MODALITY/.../stem.ext, where files of one path and stem belong together.

root/image/cats/001.png, root/mask/cats/001.png, root/label/cats/001.txt, root/embedding/cats/001.npy. An example is
an anchor's file; what it lacks of the others counts as missing. A label without a folder of its own is the first
folder of the anchor's path (cats).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfast import modalities as kinds
from mmfast.data.base import Batch, Data
from mmfast.errors import MmfastError
from mmfast.options import option


@dataclass
class Spec:
    kind: str = "folder"
    root: str = option("", "the folder that holds a folder for each modality")
    test_fraction: float = option(0.1, "share of the examples held out for the evaluation", above=0, max=0.9)


@dataclass
class Files:
    """Examples as files, read when they are asked for."""

    stems: list[str]
    paths: dict[str, dict[str, Path]]
    specs: Mapping[str, Any]
    classes: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.stems)

    def _read(self, name: str, stem: str) -> Tensor | None:
        spec = self.specs[name]
        if name in self.classes:
            return torch.tensor(self.classes[name].index(stem.split("/")[0]))
        path = self.paths[name].get(stem)
        return None if path is None else kinds.kind(spec.kind).read(path, spec)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        data, present = {}, {}
        for name, spec in self.specs.items():
            found = [self._read(name, self.stems[i]) for i in indices]
            there = torch.tensor([x is not None for x in found])
            if not bool(there.all()):
                present[name] = there
            blank = kinds.kind(spec.kind).blank(spec)
            data[name] = torch.stack([blank if x is None else x for x in found])
        return Batch(data, present)


def _find(root: Path, name: str, extensions: Sequence[str]) -> dict[str, Path]:
    """The files of one modality by their path below its folder, without the ending; none whose path has a hidden part.

    Linked folders are entered. Raises MmfastError for two files of one path and stem.
    """
    folder = root / name
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(x) for x in Path(parent).parents}
        if os.path.realpath(parent) in above:  # a link back, which would go on for ever
            folders[:] = []
            continue
        folders[:] = sorted(x for x in folders if not x.startswith("."))
        for path in sorted(Path(parent) / x for x in files if not x.startswith(".")):
            if path.suffix.lower() not in extensions:
                continue
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise MmfastError(f"data.root holds {found[stem]} and {path}, two files of one example; remove one")
            found[stem] = path
    return found


def open(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Data:
    """The examples below spec.root: the files of the anchor, and what goes with each."""
    root = Path(spec.root)
    if not spec.root or not root.is_dir():
        raise MmfastError(f"data.root is {spec.root!r}, no folder; it should hold a folder for each modality")
    paths, classes = {}, {}
    for name, part in sorted(modalities.items(), key=lambda item: item[0] != anchor):  # the anchor first
        extensions = kinds.kind(part.kind).extensions
        endings = ", ".join(extensions)
        paths[name] = _find(root, name, extensions)
        if name == anchor and not paths[name]:
            raise MmfastError(f"data.root: {root / name} holds no {part.kind} files ({endings})")
        if not paths[name] and part.kind == "label":
            classes[name] = _classes(paths[anchor], name, part, root / name)
        elif not any(stem in paths[anchor] for stem in paths[name]):
            raise MmfastError(
                f"data.root: {root / name} holds no {part.kind} file ({endings}) of the same path and name "
                f"as one in {root / anchor}"
            )
    stems = sorted(paths[anchor])
    order = torch.randperm(len(stems), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = max(1, round(len(stems) * spec.test_fraction))
    if len(stems) < 2:
        raise MmfastError(
            f"data.root: {root / anchor} holds one example; it should hold some to train on and some to test"
        )

    def part_of(index: list[int]) -> Files:
        return Files([stems[i] for i in sorted(index)], paths, modalities, classes)

    return Data(part_of(order[held_out:]), part_of(order[:held_out]))


def _classes(anchors: dict[str, Path], name: str, part: Any, folder: Path) -> list[str]:
    """The folder of each class, from the first folder of the anchors' paths: those of the names given, else in their
    order; folders that are whole numbers are the classes of these numbers.
    """
    found = sorted({stem.split("/")[0] for stem in anchors if "/" in stem})
    if not found or any("/" not in stem for stem in anchors):
        raise MmfastError(f"data.root: {folder} holds no label files (.txt), nor do folders name the classes")
    if not part.names and all(x.isdecimal() and len(x) <= 9 for x in found):  # which keep their numbers
        numbers = [int(x) for x in found]
        if len({*numbers}) < len(found) or max(numbers) >= part.classes:
            raise MmfastError(
                f"modalities.{name}.classes is {part.classes}; the folders are the numbers {', '.join(found[:5])}, "
                "which should differ and be below it"
            )
        return [found[numbers.index(k)] if k in numbers else "" for k in range(part.classes)]
    names = list(part.names) or found
    missing = [stem for stem in found if stem not in names]
    if missing or len(names) != part.classes:
        raise MmfastError(
            f"modalities.{name}.classes is {part.classes}; the folders name {len(found)} ({', '.join(found[:5])})"
        )
    return names
