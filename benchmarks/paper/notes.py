"""The notes at the end of a task's page: the bullets of notes/TASK.md."""

from __future__ import annotations

import re
from pathlib import Path

from mmfast.errors import MmfastError

FOLDER = Path(__file__).resolve().parent / "notes"
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")


def read(task: str) -> list[str]:
    """The notes of a task, each as one line; none if there is no file.

    A bullet that is only a link stands for the text of that file, which several tasks may share.
    """
    file = FOLDER / f"{task}.md"
    if not file.exists():
        return []
    notes: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("- "):
            notes.append(line[2:].strip())
        elif line.startswith("  ") and notes:
            notes[-1] += f" {line.strip()}"
        elif line.strip():
            raise MmfastError(f"{file.name} has the line {line!r}; it should be a bullet (- ...), or go on with one")
    return [_shared(note) for note in notes]


def _shared(note: str) -> str:
    link = LINK.fullmatch(note)
    return " ".join((FOLDER / link[1]).read_text(encoding="utf-8").split()) if link else note
