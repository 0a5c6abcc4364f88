"""Rows of a table: real numbers in columns with their own units, standardised by the training data."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from mmfast import files
from mmfast.errors import MmfastError, unknown
from mmfast.metrics.rows import energy_distance, ks_distances
from mmfast.modalities import base
from mmfast.modalities.base import Modality, SpaceShape
from mmfast.options import option
from mmfast.pictures import bars, scatter_matrix
from mmfast.words import plural

# The longest file of a row, in bytes; the scale of a constant column.
LONGEST, CONSTANT = 2**22, 1.0
# The columns that a scatter matrix shows.
SHOWN = 5


@dataclass
class TableSpec(base.Spec):
    """float [B, columns], in the columns' own units."""

    kind: str = "table"
    columns: list[str] = option([], "the columns' names; empty: as the training data (data.kind table) has them")
    means: list[float] = option([], "each column's mean; empty: the training data's")
    scales: list[float] = option([], "each column's standard deviation; empty: the training data's", above=0)
    sigma: float = option(0.1, "standard deviation of the Gaussian head, as a share of the column's", above=0)
    reads: str = base.reads_option()


class Table(Modality):
    kind = "table"
    Spec = TableSpec
    metric = joint_metric = "rmse"
    statistics = ("means", "scales")
    extensions = (".csv",)
    mean: Tensor
    scale: Tensor

    def __init__(self, name: str, spec: TableSpec, space: SpaceShape) -> None:
        super().__init__(name, spec, space)
        if not spec.columns:
            raise MmfastError(
                f"modalities.{name}.columns is empty; it should name the columns (`mmfast train` finds those of "
                "data.kind table, and in Python mmfast.build.with_found does)"
            )
        count = len(spec.columns)
        if len(set(spec.columns)) < count:
            twice = next(x for x in spec.columns if spec.columns.count(x) > 1)
            raise MmfastError(f"modalities.{name}.columns has {twice!r} twice; each should have a name of its own")
        for key, values in (("means", spec.means), ("scales", spec.scales)):
            if len(values) not in (0, count):
                raise MmfastError(
                    f"modalities.{name}.{key} has {plural(len(values), 'number')}; it should have {count}, one per "
                    "column"
                )
        if space.channels is not None or spec.encoder != "fixed":
            raise MmfastError(f"modalities.{name} is a table, which needs space=own and encoder=fixed")
        self.channels, self.uniform, self.reads = count, True, spec.reads
        # Not saved with the weights, because they are in the config. In float64, so that no digits of a year are lost.
        mean, scale = spec.means or [0.0] * count, spec.scales or [1.0] * count
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64), persistent=False)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64), persistent=False)

    @classmethod
    def anchor_space(cls, spec: TableSpec) -> SpaceShape:
        return SpaceShape(1, 1)

    def build_head(self, features: int) -> None:
        self.out = base.one_head(self.reads, features, len(self.spec.columns))

    def check(self, x: Tensor, where: str) -> None:
        base.check_floats(x, (len(self.spec.columns),), where)

    def standard(self, x: Tensor) -> Tensor:
        """(x - mean) / scale, float32 [B, columns]."""
        return ((x.double() - self.mean) / self.scale).float()

    def encode(self, x: Tensor) -> Tensor:
        return self.standard(x)[:, :, None, None]

    def from_z0(self, z0: Tensor) -> Tensor:
        return self._in_units(z0.flatten(1))

    def known_in_space(self, known: Tensor) -> Tensor:
        return known[:, :, None, None]

    def in_part(self, value: Any) -> tuple[Tensor, Tensor] | None:
        """From NAME=NUMBER for some columns, or a dict of them."""
        if isinstance(value, str) and "=" in value and not value.endswith(self.extensions):
            pairs = self._pairs(value)
            names = [name for name, _ in pairs]
            if twice := [name for name in names if names.count(name) > 1]:
                raise MmfastError(f"{self.name} has column {twice[0]!r} twice; give one value for it")
            value = dict(pairs)
        if not isinstance(value, Mapping):
            return None
        columns = self.spec.columns
        if not value:
            raise MmfastError(
                f"{self.name} has no column; give a value for some of {', '.join(columns)}, or leave it out"
            )
        for name in value:
            if name not in columns:
                raise unknown(f"{self.name}'s column", name, columns)
        x = torch.tensor([number(str(value.get(c, 0)), f"{self.name}: column {c!r}") for c in columns])
        return x, torch.tensor([c in value for c in columns])

    def _pairs(self, text: str) -> list[tuple[str, str]]:
        """The names and numbers in NAME=NUMBER,NAME=NUMBER; the names of columns may have commas."""
        names = "|".join(map(re.escape, self.spec.columns))
        pairs: list[tuple[str, str]] = []
        while text or not pairs:
            known = re.match(rf"\s*({names})\s*=([^,]*)(?:,|$)", text)
            if known:
                pairs.append((known[1], known[2]))
                text = text[known.end() :]
            else:
                pair, _, text = text.partition(",")
                name, _, cell = pair.rpartition("=")
                pairs.append((name.strip(), cell))
        return pairs

    def parse_known(self, text: str) -> Tensor:
        """Parse names of columns, separated by commas."""
        names, words = list[str](), text.split(",")
        while words:  # the longest name that is a column's, because a name may have commas
            starts = {k: ",".join(words[:k]).strip() for k in range(len(words), 0, -1)}
            count = next((k for k, name in starts.items() if name in self.spec.columns), 1)
            names.append(starts[count])
            words = words[count:]
        for name in names:
            if name not in self.spec.columns:
                raise unknown(f"known {self.name}'s column", name, self.spec.columns)
        return torch.tensor([name in names for name in self.spec.columns])

    def head(self, features: Tensor) -> Tensor:
        """The means of the standardised numbers."""
        return self.out(features)

    def nll(self, prediction: Tensor, x: Tensor) -> Tensor:
        """For the standardised numbers."""
        squared = ((prediction - self.standard(x)) / self.spec.sigma).square()
        return (0.5 * squared + math.log(self.spec.sigma * math.sqrt(2 * math.pi))).sum(1)

    def loss(self, prediction: Tensor, x: Tensor) -> Tensor:
        return (prediction - self.standard(x)).square().mean(1)

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        return prediction.float()[:, :, None, None]

    def decode(self, prediction: Tensor) -> Tensor:
        return self._in_units(prediction)

    def _in_units(self, standard: Tensor) -> Tensor:
        """Convert standardised numbers to the columns' units."""
        return (standard.double() * self.scale + self.mean).float()

    def show(self, x: Tensor, size: int) -> PILImage.Image:
        """Show a bar for each column: how many standard deviations it is from the mean."""
        return bars(self.standard(x[None].to(self.mean.device))[0].tolist(), size)

    def overview(self, x: Tensor, real: Tensor) -> PILImage.Image:
        """The scatter matrix of the first columns: real rows in grey, behind those of x."""
        columns = self.spec.columns[:SHOWN]
        return scatter_matrix(columns, real[:, :SHOWN].cpu().numpy(), x[:, :SHOWN].cpu().numpy())

    def score(self, x: Tensor, truth: Tensor) -> float:
        """Root mean square difference, in standard deviations."""
        host = self.mean.device
        return float((self.standard(x.to(host)) - self.standard(truth.to(host))).square().mean().sqrt())

    def distances(self, x: Tensor, real: Tensor) -> dict[str, float]:
        """Two distances of sets of rows: the Kolmogorov-Smirnov distance as a mean over the columns, and the energy
        distance of the standardised rows."""
        x, real = (self.standard(rows.to(self.mean.device)).cpu() for rows in (x, real))
        return {"ks": float(ks_distances(x, real).mean()), "energy": energy_distance(x, real)}

    @classmethod
    def read(cls, path: Path, spec: TableSpec) -> Tensor:
        """Read a row from a .csv file that has one row, with or without a line of names above it."""
        lines = [line for line in read_lines(path) if line]
        names, row = (lines[0], lines[1]) if len(lines) == 2 else (spec.columns, lines[0] if lines else [])
        if len(lines) not in (1, 2) or len(names) != len(row):
            raise MmfastError(f"{path} holds {len(lines)} lines; it should hold one row of numbers, or names above it")
        return row_of(dict(zip(names, row, strict=True)), spec, str(path))

    @classmethod
    def from_text(cls, text: str, spec: TableSpec, where: str) -> Tensor:
        """From the cells of a table by column, as JSON."""
        try:
            cells = json.loads(text)
        except ValueError:
            cells = None
        return row_of(cells, spec, where) if isinstance(cells, dict) else super().from_text(text, spec, where)

    @classmethod
    def blank(cls, spec: TableSpec) -> Tensor:
        return torch.zeros(len(spec.columns))

    def plain(self, x: Tensor) -> dict[str, float]:
        """The numbers by column."""
        values = x.float().cpu().numpy()
        return {name: float(str(value)) for name, value in zip(self.spec.columns, values, strict=True)}  # the shortest

    def values(self, text: str) -> list[str]:
        """The text as one value, since a row has commas."""
        return [text]

    def parse(self, text: str) -> Tensor:
        """Parse a file, or all numbers of a row separated by commas."""
        if text.endswith(self.extensions):
            return self.read(Path(text), self.spec)
        row = text.split(",")
        if len(row) != len(self.spec.columns):
            raise MmfastError(
                f"{self.name}={text} has {plural(len(row), 'number')}; it should have {len(self.spec.columns)}, one "
                "per column, or be a .csv file"
            )
        return row_of(dict(zip(self.spec.columns, row, strict=True)), self.spec, self.name)


def row_of(cells: dict[str, str], spec: TableSpec, where: str) -> Tensor:
    """Convert a row's cells by column to float32 [columns]. Raises MmfastError, naming the row `where`."""
    missing = [name for name in spec.columns if name not in cells]
    if missing:
        raise unknown(f"{where}: column", missing[0], cells)
    return torch.tensor([number(cells[name], f"{where}: column {name!r}") for name in spec.columns])


def number(cell: str, where: str) -> float:
    """The number in a cell. Raises MmfastError if it is not a finite number."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MmfastError(f"{where} is {cell[:40]!r}; it should be a number")
    return value


def read_lines(path: Path, most: int = LONGEST) -> list[list[str]]:
    """The lines of a .csv file, each as its cells. Raises MmfastError naming the file."""
    try:
        text = files.read_text(path, most).removeprefix("\ufeff")
        return [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(text), strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MmfastError(f"{path} cannot be read as a table (.csv): {error}") from None


def statistics(rows: np.ndarray) -> tuple[list[float], list[float]]:
    """The mean and standard deviation of each column of float64 [n, columns]; CONSTANT for a constant column."""
    # By rounding, std of a constant such as 0.1 may be 1e-17, so test whether the float32 values of x differ.
    held = torch.from_numpy(rows).float()
    varies = (held != held[:1]).any(0).numpy()
    return rows.mean(0).tolist(), np.where(varies, rows.std(0), CONSTANT).tolist()


def columns_of(spec: Any) -> Sequence[str]:
    """The columns that a table's spec names."""
    return spec.columns if spec.kind == Table.kind else ()
