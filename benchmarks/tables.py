"""Results as CSV files: a line for each row, with the keys of the first row as the columns."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def write(rows: Sequence[Mapping[str, object]], out: Path) -> None:
    """Write the rows (at least one) to the file, replacing it. Creates its folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
