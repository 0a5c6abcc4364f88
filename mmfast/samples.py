"""Samples for users: show them as a grid, use them as pictures and names, save them as files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from torch import Tensor

from mmfast.errors import MmfastError, unknown
from mmfast.files import new_folder, path_of
from mmfast.modalities import Modality
from mmfast.pictures import sample_grid
from mmfast.saved import cells, write_file, write_rows


@dataclass(frozen=True, repr=False)
class Samples:
    """Samples, each with every modality.

    data: tensors [len, ...] by name, on the host. how: the seed, steps, sampler and guidance. ids: the id of each
    sample's noise. truth: if values were given from held-out examples, the true values of the sampled modalities.
    in_part: the whole of what was given in part, [1 or len, ...], of which the known part is in `data`.
    A notebook shows samples as their grid, next to the truth.
    """

    data: dict[str, Tensor]
    parts: Mapping[str, Modality]
    anchor: str
    given: tuple[str, ...]
    how: dict[str, Any]
    title: str
    ids: list[int]
    columns: int | None = None
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    in_part: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Samples({len(self)} of {', '.join(self.data)}; {self.title})"

    def __getitem__(self, name: str) -> list[Any]:
        """A modality in plain form: pictures (for a mask, its class numbers), class names, or arrays."""
        if name not in self.parts:
            raise unknown("samples' modality", name, self.parts)
        return [self.parts[name].plain(x) for x in self.data[name]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the samples, each a dict of its modalities by name."""
        columns = {name: self[name] for name in self.data}
        return iter([{name: found[i] for name, found in columns.items()} for i in range(len(self))])

    @property
    def images(self) -> list[PILImage.Image]:
        """The anchor's pictures at their own size."""
        return self[self.anchor]

    @property
    def labels(self) -> list[str]:
        """The class names, or numbers if they have none. Raises MmfastError unless exactly one modality is a label."""
        names = [name for name, part in self.parts.items() if part.kind == "label"]
        if len(names) != 1:
            raise MmfastError(
                f"samples have {len(names)} labels ({', '.join(names)}); take them by name, samples[NAME]"
            )
        return self[names[0]]

    def grid(self, columns: int | None = None) -> PILImage.Image:
        """All samples in one picture, each with its modalities side by side; a row for each of several given values."""
        columns = self.columns if columns is None else whole("columns", columns, 1)
        pictures = {name: x.expand(len(self), *x.shape[1:]) for name, x in self.in_part.items() if x.dim() > 2}
        known = [name for name in self.given if name not in self.in_part]
        beside = {"given in part": pictures, "true": self.truth}
        return sample_grid(self.parts, self.data, self.title, known, columns, beside=beside)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.grid().save(file, "PNG")
        return file.getvalue()

    def save(self, folder: str | Path) -> Path:
        """Write each sample as files to a new folder, which `data: {kind: folder}` reads as the same samples.

        The files are folder/image/000.png, folder/mask/000.png (class numbers), folder/label/000.txt,
        folder/embedding/000.npy, and folder/samples.jsonl with a line for each sample. The folder is written completely
        or not at all. Raises MmfastError if it already exists and is not empty.
        """
        folder = path_of("save's folder", folder)
        with new_folder("save's folder", folder) as made:
            self._write(made)
        return folder

    def _write(self, folder: Path) -> None:
        lines = []
        for i, sample in enumerate(self):
            what: dict[str, dict[str, Any]] = {}
            for name, value in sample.items():
                (folder / name).mkdir(parents=True, exist_ok=True)
                file = write_file(value, folder / name / f"{i:03d}")
                what[name] = {"file": file.relative_to(folder).as_posix()}
                if isinstance(value, (str, dict)):
                    what[name]["value"] = value
            lines.append({"sample": f"{i:03d}", "id": self.ids[i], **self.how, "given": self.given, "modalities": what})
        rows = [cells(sample) for sample in self]
        if any(part.kind == "table" for part in self.parts.values()):
            write_rows(folder / "samples.csv", rows)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "samples.jsonl").write_text(text, encoding="utf-8")


def whole(what: str, value: Any, least: int) -> int:
    """Check a whole number of at least `least`. Raises MmfastError, naming it `what`, for anything else."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value < 2**63:
        raise MmfastError(f"{what} is {value!r}; it should be a whole number of at least {least}, below 2**63")
    return int(value)
