"""The site's pages: every one is there, and every page has its place."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RESULTS = Path("benchmarks") / "results"


def pages(found: Any) -> list[str]:
    """The files that a part of the navigation names."""
    if isinstance(found, str):
        return [found] if found.endswith(".md") else []
    return [page for part in (found.values() if isinstance(found, dict) else found) for page in pages(part)]


def test_the_navigation_names_every_page_once():
    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    docs = [file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")]
    results = [file.relative_to(ROOT).as_posix() for file in (ROOT / RESULTS).rglob("*.md")]
    assert sorted(named) == sorted([*docs, *results, "CONTRIBUTING.md"])
