"""Examples stored as files, read on access."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfast import modalities as kinds
from mmfast.data.base import Batch
from mmfast.data.decoded import key_of
from mmfast.image_files import check_shapes


@dataclass
class Files:
    """Examples stored as files, read on access; texts: the texts of modalities without files, by stem."""

    stems: list[str]
    paths: dict[str, dict[str, Path]]
    specs: Mapping[str, Any]
    texts: Mapping[str, Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.stems)

    def _read(self, name: str, stem: str) -> Tensor | None:
        spec = self.specs[name]
        kind = kinds.kind(spec.kind)
        if name in self.texts:
            text = self.texts[name].get(stem)
            return None if text is None else kind.from_text(text, spec, stem)
        path = self.paths[name].get(stem)
        return None if path is None else kind.read(path, spec)

    def key(self, stem: str) -> bytes:
        """A key of what an example's values depend on: its texts, and each file's suffix, size and times of change."""
        parts: list[Any] = []
        for name in self.specs:
            path = self.paths[name].get(stem)
            try:
                about = path.stat() if path is not None else None
            except OSError:  # a dangling link, which cannot be read
                about = None
            # A copy may carry over the mtime of another file, but never its ctime.
            changed = None if about is None else (about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            parts.append([self.texts.get(name, {}).get(stem), path is not None and path.suffix, changed])
        return key_of(stem, *parts)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        data, present = {}, {}
        for name, spec in self.specs.items():
            found = [self._read(name, self.stems[i]) for i in indices]
            there = torch.tensor([x is not None for x in found])
            if not bool(there.all()):
                present[name] = there
            blank = kinds.kind(spec.kind).blank(spec)
            data[name] = torch.stack([blank if x is None else x for x in found])
        # Readers crop the middle, which is the same region of all pictures only if their shapes agree.
        kind_of = {name: kinds.kind(spec.kind) for name, spec in self.specs.items()}
        pictures = [self.paths[name] for name, kind in kind_of.items() if ".png" in kind.extensions]
        for i in indices:
            check_shapes([paths[self.stems[i]] for paths in pictures if self.stems[i] in paths])
        return Batch(data, present)
