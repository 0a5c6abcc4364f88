"""Tables: a .csv file of your own, or one of scikit-learn's. Each row is an example.

A modality of kind table has some of the columns, of real numbers; one of kind label has one column, of classes. Whether
a row is held out depends only on its own cells: adding or removing rows moves no other, and equal rows stay together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfast.data.base import VALIDATION, Batch, Data, Judge
from mmfast.data.listing import place
from mmfast.errors import MmfastError, optional_package, unknown
from mmfast.modalities.label import counted
from mmfast.modalities.label import number as class_number
from mmfast.modalities.table import columns_of, number, read_lines, statistics
from mmfast.options import option

SETS = ("iris", "wine", "breast_cancer", "diabetes")
TARGET = "target"  # the column of a set's classes, or of what it predicts
LONGEST = 2**30  # of a file, in bytes


@dataclass
class Spec:
    kind: str = "table"
    source: str = option(
        "breast_cancer",
        f"a .csv file with a line of names, or scikit-learn's {', '.join(SETS)}",
        path=lambda text, full: text.endswith(".csv"),
    )
    columns: dict[str, str] = option({}, "columns of labels with another name, as in {label: species}")
    test_fraction: float = option(0.2, "approximate share of the rows held out for the evaluation", above=0, max=0.9)
    validation: bool = option(False, VALIDATION)


@dataclass
class Rows:
    """Examples as tensors [n, ...], and which examples have a modality if not all do."""

    tensors: dict[str, Tensor]
    present: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        data, present = ({name: x[index] for name, x in part.items()} for part in (self.tensors, self.present))
        return Batch(data, present)

    def of(self, index: Sequence[int]) -> Rows:
        batch = self.__getitems__(index)
        return Rows(batch.data, batch.present)


def files(spec: Spec) -> dict[str, Path]:
    """The files that the table is in, by name."""
    return {} if spec.source in SETS else {Path(spec.source).name: Path(spec.source)}


def cells(spec: Spec) -> dict[str, list[str]]:
    """The table's cells by column, as text. Raises MmfastError for a file that is not a table."""
    if spec.source in SETS:
        return _of_sklearn(spec.source)
    if not spec.source.endswith(".csv"):
        raise unknown("data.source", spec.source, [*SETS, "the path of a .csv file"])
    lines = [line for line in read_lines(Path(spec.source), LONGEST) if any(line)]
    names = lines[0] if lines else []
    if len(lines) < 3 or "" in names or len(set(names)) < len(names):
        raise MmfastError(
            f"data.source: {spec.source} has {len(lines)} lines, the first {names}; it should begin with a name for "
            "each column, all different, and have two rows at least"
        )
    for i, line in enumerate(lines):
        if len(line) != len(names):
            raise MmfastError(f"data.source: {spec.source}: row {i} has {len(line)} cells; it should have {len(names)}")
    return {name: [line[k] for line in lines[1:]] for k, name in enumerate(names)}


def _of_sklearn(name: str) -> dict[str, list[str]]:
    with optional_package("scikit-learn", "table", f"the data set {name}"):
        from sklearn import datasets
    raw = getattr(datasets, f"load_{name}")()
    found = {str(x): [repr(float(v)) for v in raw.data[:, k]] for k, x in enumerate(raw.feature_names)}
    classes = getattr(raw, "target_names", None)
    return {**found, TARGET: [str(v) if classes is None else str(classes[int(v)]) for v in raw.target]}


def _column(spec: Spec, name: str, table: Mapping[str, list[str]]) -> list[str]:
    """The cells of a label."""
    column = spec.columns.get(name, name)
    if column not in table:
        raise MmfastError(
            f"data.source has no column {column!r} for modalities.{name}; it has "
            f"{', '.join(list(table)[:20])}{', ...' if len(table) > 20 else ''}: name the right one with "
            f"--data.columns.{name} COLUMN"
        )
    return table[column]


def found(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> dict[str, dict[str, Any]]:
    """Options of the modalities found in the data: classes, their names and counts, columns, means and scales."""
    table = cells(spec)
    for name in spec.columns:
        if name not in modalities:
            raise unknown("data.columns' modality", name, modalities)
    # Labels first, since a table without columns takes those that nothing else uses.
    labels = {name: _column(spec, name, table) for name, part in modalities.items() if part.kind == "label"}
    taken = {spec.columns.get(name, name) for name in labels} | {c for p in modalities.values() for c in columns_of(p)}
    options: dict[str, dict[str, Any]] = {}
    train = _split(spec, table)[0]
    for name, part in modalities.items():
        if part.kind == "label":
            column = labels[name]
            names = sorted({x for x in column if x})
            if not part.names and not all(x.isdecimal() for x in names):
                if part.classes not in (len(names), type(part)().classes):
                    raise MmfastError(
                        f"modalities.{name}.classes is {part.classes}; the column has {len(names)}: "
                        f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}; leave it out, or give their names"
                    )
                options[name] = {"names": names, "classes": len(names)}
                part = dataclasses.replace(part, **options[name])
            seen = [column[k] for k in train if column[k]]
            options[name] = {**options.get(name, {}), **counted(part, seen)}
        elif part.kind == "table":
            columns = list(part.columns) or [x for x in table if x not in taken]
            rows = _numbers(name, columns, table)[train]
            mean, scale = statistics(rows)
            options[name] = {"columns": columns, "means": part.means or mean, "scales": part.scales or scale}
        else:
            raise MmfastError(f"modalities.{name} is of kind {part.kind}; for a table it should be table or label")
    return options


def _numbers(name: str, columns: Sequence[str], table: Mapping[str, list[str]]) -> np.ndarray:
    """The columns as float64 [n, columns]. Raises MmfastError for a cell that is not a number, naming the row."""
    for column in columns:
        if column not in table:
            raise unknown(f"modalities.{name}.columns", column, table)
    hint = f"fill it in, remove the row, or name the columns to be used in modalities.{name}.columns"

    def read(column: str, i: int, cell: str) -> float:
        try:
            return number(cell, f"data.source: row {i + 1}, column {column!r}")
        except MmfastError as error:
            raise MmfastError(f"{error}: {hint}") from None

    return np.array([[read(c, i, cell) for i, cell in enumerate(table[c])] for c in columns]).T


def _split(spec: Spec, table: Mapping[str, list[str]]) -> tuple[list[int], list[int]]:
    """The numbers of the training rows and of the held-out rows."""
    at = [place("\n".join(row)) for row in zip(*table.values(), strict=True)]
    order = sorted(range(len(at)), key=at.__getitem__)
    share = spec.test_fraction
    low = sum(x < share for x in at)
    parts = order[low:], order[:low]
    if spec.validation:
        high = sum(x < share * (2 - share) for x in at)  # the same share of the remaining rows
        parts = order[high:], order[low:high]
    if not all(parts):
        raise MmfastError(
            f"data.source has {len(at)} rows, of which {len(parts[0])} are to train on and {len(parts[1])} held out; "
            "change data.test_fraction, or give more rows"
        )
    return sorted(parts[0]), sorted(parts[1])


def open(spec: Spec, modalities: Mapping[str, Any], anchor: str) -> Data:
    """Rows (float32 [n, columns], in the columns' units) and labels (int64 [n]). Raises MmfastError naming a bad cell.

    A label whose cell is empty is missing; numbers must not be. If the anchor is a table, judges and baselines are
    scikit-learn's logistic regressions: judges are fitted to all rows, baselines to the training rows.
    """
    table = cells(spec)
    whole = dict(modalities)
    for name, options in found(spec, modalities, anchor).items():
        whole[name] = dataclasses.replace(modalities[name], **options)
    tensors, present = {}, {}
    for name, part in whole.items():
        if part.kind == "table":
            tensors[name] = torch.from_numpy(_numbers(name, part.columns, table)).float()
            continue
        texts = _column(spec, name, table)
        column = spec.columns.get(name, name)
        numbers = [class_number(x, part, f"data.source: column {column!r}") if x else torch.tensor(0) for x in texts]
        tensors[name] = torch.stack(numbers)
        if not all(texts) and name == anchor:
            raise MmfastError(
                f"data.source: row {texts.index('') + 1}, column {column!r} is empty; every row needs {anchor}, the "
                "anchor: fill it in, or remove the row"
            )
        if not all(texts):
            present[name] = torch.tensor([bool(x) for x in texts])
    rows, (train, test) = Rows(tensors, present), _split(spec, table)
    if whole[anchor].kind != "table":
        return Data(rows.of(train), rows.of(test))
    labels = [name for name, part in whole.items() if part.kind == "label"]
    part = whole[anchor]

    def judges() -> dict[str, Judge]:
        return {name: judge for name in labels if (judge := _regression(rows, anchor, name, part)) is not None}

    def baselines() -> dict[str, float]:
        return _baselines(rows.of(train), rows.of(test), anchor, labels, part)

    return Data(rows.of(train), rows.of(test), judges, baselines=baselines)


def _regression(rows: Rows, anchor: str, name: str, spec: Any) -> Judge | None:
    """scikit-learn's logistic regression of a label on standardised rows; None without it, or with only one class."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    there = rows.present.get(name, torch.ones(len(rows), dtype=torch.bool))
    labels = rows.tensors[name][there].numpy()
    if len(set(labels.tolist())) < 2:
        return None
    mean, scale = np.array(spec.means), np.array(spec.scales)
    standard: Callable[[Tensor], Any] = lambda x: (x.cpu().double().numpy() - mean) / scale  # noqa: E731
    regression = LogisticRegression(max_iter=5000).fit(standard(rows.tensors[anchor][there]), labels)
    return lambda x: torch.from_numpy(regression.predict(standard(x))).long()


def _baselines(train: Rows, test: Rows, anchor: str, labels: Sequence[str], spec: Any) -> dict[str, float]:
    """The held-out accuracy of a logistic regression fitted to the training rows, for each label."""
    figures = {}
    for name in labels:
        judge = _regression(train, anchor, name, spec)
        there = test.present.get(name, torch.ones(len(test), dtype=torch.bool))
        if judge is not None and bool(there.any()):
            right = judge(test.tensors[anchor][there]) == test.tensors[name][there]
            figures[f"{name}.logistic_regression_accuracy"] = float(right.float().mean())
    return figures
