"""The pages that people read, taken apart: their code blocks, and the commands within their text."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]

FENCE = re.compile(r"^(\s*)```(.*)$")
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
INLINE = re.compile(r"`((?:mmfast|python|pip|pytest|mkdocs|ruff) [^`]+)`")
LANGUAGES = ("python", "yaml", "json", "bash", "text")


class Block(NamedTuple):
    """A fenced block: the line of its first line, its language and title, its text, and why it is not run ("")."""

    page: str
    line: int
    language: str
    title: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def take_apart(page: str, text: str) -> tuple[list[Block], str]:
    """The fenced blocks of a page, and its text without them. Raises ValueError for a block that is not understood."""
    blocks, prose, inside, reason = [], [], None, ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if fence and inside is None:
            if fence[1]:
                raise ValueError(f"{page}:{number}: an indented fence; it should begin its line")
            language, _, options = fence[2].strip().partition(" ")
            if language not in LANGUAGES:
                raise ValueError(f"{page}:{number}: language {language!r}; it should be one of {', '.join(LANGUAGES)}")
            title = re.fullmatch(r'title="([^"]+)"', options)
            if options and not title:
                raise ValueError(f'{page}:{number}: {options!r}; it should be title="FILE" or nothing')
            inside = (number + 1, language, title[1] if title else "", [])
        elif fence:
            start, language, name, lines = inside
            blocks.append(Block(page, start, language, name, "\n".join(lines) + "\n", reason))
            inside, reason = None, ""
        elif inside is not None:
            inside[3].append(line)
        else:
            prose.append(line)
            note = NOT_RUN.fullmatch(line.strip())
            if line.strip():
                reason = note[1] if note else ""
    if inside is not None:
        raise ValueError(f"{page}:{inside[0]}: a block without an end")
    return blocks, "\n".join(prose)


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, split into words; those that && joins are apart, and comments left out."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return found


READ = {page: take_apart(page, (ROOT / page).read_text()) for page in PAGES}
BLOCKS = {page: blocks for page, (blocks, _) in READ.items()}


def inline(page: str) -> list[str]:
    """The commands within a page's text, such as `mmfast eval RUN`."""
    prose = READ[page][1]
    return [" ".join(found.split()) for found in INLINE.findall(prose)]
