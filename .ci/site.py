"""A hook of mkdocs that adds files from outside docs/: CONTRIBUTING.md, and the pages of benchmarks/results.

Links to them begin with ../ in docs/, so that they work on a code host. In the site these files are beside the other
pages, so the hook cuts the ../ off.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]


def on_files(files, config):
    results = ROOT / "benchmarks" / "results"
    found = [ROOT / "CONTRIBUTING.md"]
    found += sorted(file for ending in ("md", "png", "json") for file in results.rglob(f"*.{ending}"))
    for file in found:
        files.append(File.generated(config, file.relative_to(ROOT).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri == "CONTRIBUTING.md":
        return re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\]\(\.\./(benchmarks/results/|CONTRIBUTING)", r"](\1", markdown)
