"""Draw benchmarks/results/ops.csv, with a panel for each size and a group of bars for each case.

`python -m benchmarks.picture FILE.csv` draws it again.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

COLOURS = {
    "mmfast": "#d1495b",
    "mmfast.diffusers": "#edae49",
    "eager torch": "#66788a",
    "torch.compile": "#9fb1bd",
    "torch.compile, fallback_random": "#c9d3da",
    "diffusers": "#30638e",
    "memory copy": "#e4e4e4",
}


LEAST = 0.2  # the axis starts here; only a copy is faster, next to a call that takes the host's time


def draw(rows: list[dict[str, object]], out: Path, title: str) -> None:
    """Draw times relative to mmfast's (below 1: faster than mmfast) on a logarithmic axis."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install matplotlib to have one")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = list(dict.fromkeys(str(row["size"]) for row in rows))
    figure, axes = pyplot.subplots(len(sizes), 1, figsize=(14, 3.4 * len(sizes)), squeeze=False)
    for axis, size in zip(axes[:, 0], sizes, strict=True):
        mine = [row for row in rows if row["size"] == size]
        cases = list(dict.fromkeys((str(row["op"]), str(row["case"])) for row in mine))
        for i, case in enumerate(cases):
            group = [row for row in mine if (row["op"], row["case"]) == case]
            ours = next(float(str(row["p50_us"])) for row in group if row["provider"] == "mmfast")
            for k, row in enumerate(group):
                ratio, at = float(str(row["p50_us"])) / ours, i + (k - len(group) / 2 + 0.5) * 0.12
                axis.bar(at, ratio - 0.1, 0.11, bottom=0.1, color=COLOURS[str(row["provider"])])
                if ratio > LEAST:
                    axis.text(at, ratio * 1.05, f"{ratio:.1f}", ha="center", va="bottom", fontsize=6)
        axis.set_yscale("log")
        axis.axhline(1, color="#d1495b", linewidth=0.6)
        axis.set_ylim(LEAST, None)
        axis.margins(y=0.2)
        axis.set_title(size, loc="left", fontsize=10)
        axis.set_ylabel("time / mmfast's")
        axis.set_xticks(range(len(cases)), [f"{op}\n" + case.replace(", ", "\n") for op, case in cases], fontsize=6)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    figure.legend(handles, COLOURS, loc="upper right", ncol=4, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    with open(file, newline="") as table:
        draw(list(csv.DictReader(table)), file.with_suffix(".png"), file.stem)
