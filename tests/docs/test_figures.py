"""The figures that README.md and docs/results.md quote, against the pages of the benchmarks that they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = re.compile(r"(\d+\.?\d*)\s±\s+(\d+\.?\d*)")
# In the table of fine-tuned models, whose pages were since replaced.
REPLACED = {("0.822", "0.001"), ("0.819", "0.001")}
OURS, TOTAL = "mmfast", "mmfast, with their images together"

# By README's row: the page, the condition and the metric, and the single-task model.
MASK, LABEL = "image-mask", "image-label"
DDPM = "drawn together, by DDPM in 100 steps"
CLASS = "class-conditional DDPM, label dropped"
ROWS = [
    ("FD of images drawn from noise in 25 steps", MASK, "drawn together", "FD-EffNetLite0", "image alone"),
    ("the same in 100 even steps of DDPM", MASK, DDPM, "FD-EffNetLite0", "image alone"),
    ("mean IoU of the mask predicted from an image", MASK, "given the image", "mean IoU", "segmentation alone"),
    ("FD of images drawn for a label", LABEL, "given the label", "FD-Classifier", CLASS),
    ("fraction of them classified as that label", LABEL, "given the label", "consistency", CLASS),
    ("accuracy of the label predicted from an image", LABEL, "given the image", "accuracy", "classifier alone"),
]


def measured(page: Path) -> Iterator[tuple[tuple[str, str, str], tuple[float, float]]]:
    for row in json.loads(page.read_text())["rows"]:
        if row.get("stderr") is not None:
            yield (row["method"], row["condition"], row["metric"]), (row["mean"], row["stderr"])


def same(text: str, value: float) -> bool:
    """Whether the text is the value rounded to the text's digits."""
    digits = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5 * 10**-digits * (1 + 1e-6)


@pytest.mark.parametrize(("text", "page", "condition", "metric", "single"), ROWS)
def test_the_table_of_the_readme(text: str, page: str, condition: str, metric: str, single: str) -> None:
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if f"| {text}" in line]
    found = dict(measured(RESULTS / "cpu_16000" / f"{page}.json"))
    quoted = FIGURE.findall(line)
    assert len(quoted) == 3
    for method, (mean, error) in zip((OURS, single, TOTAL), quoted, strict=True):
        known = found[method, condition, metric]
        assert same(mean, known[0]) and same(error, known[1]), (method, mean, error, known)


def test_every_mean_in_the_results_is_on_a_page() -> None:
    """Each "mean ± standard error" is that of a row of some page; an old figure whose page has changed is not."""
    known = []
    for page in RESULTS.rglob("*.json"):
        found = json.loads(page.read_text())
        if isinstance(found, dict) and "rows" in found:
            known += [values for _, values in measured(page)]
    quoted = set(FIGURE.findall((ROOT / "docs" / "results.md").read_text()))
    assert len(quoted) > 100
    missing = {q for q in quoted if not any(same(q[0], mean) and same(q[1], error) for mean, error in known)}
    assert missing == REPLACED
