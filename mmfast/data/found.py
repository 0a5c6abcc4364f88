"""The files below a folder, by their path without the ending."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Found:
    """The files below one folder by their path without the ending; beside them pairs of one stem, and other files."""

    paths: dict[str, Path] = field(default_factory=dict)
    doubles: list[tuple[Path, Path]] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def find(folder: Path, extensions: Sequence[str]) -> Found:
    """The files of these endings below a folder, sorted; none whose path has a hidden part. Linked folders are entered.

    Stems are in Unicode's composed form (NFC): other systems may have written the same name in another.
    """
    found = Found()
    for parent, folders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(x) for x in Path(parent).parents}
        if os.path.realpath(parent) in above:  # a link back, which would go on for ever
            folders[:] = []
            continue
        folders[:] = sorted(x for x in folders if not x.startswith("."))
        for path in sorted(Path(parent) / x for x in files if not x.startswith(".")):
            if path.suffix.lower() not in extensions or _is_special(path):
                found.others.append(path)
                continue
            stem = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
            if stem in found.paths:
                found.doubles.append((found.paths[stem], path))
            else:
                found.paths[stem] = path
    return found


def _is_special(path: Path) -> bool:
    """Whether there is something that is no file, such as a pipe, which would be waited for for ever."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link to nothing: to be told of when it is read
        return False
