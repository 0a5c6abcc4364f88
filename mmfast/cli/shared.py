"""What the commands share: options of the config, and files that they write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.errors import MmfastError


def overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """--key value and --key=value, in order."""
    pairs, i = [], 0
    while i < len(rest):
        word = rest[i]
        if not word.startswith("--") or len(word) < 3:
            raise MmfastError(f"{word!r} is out of place; options of the config are --key value, as --train.steps 100")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if i + 1 >= len(rest) or rest[i + 1].startswith("--"):
                raise MmfastError(f"--{key} has no value; it should be --{key} VALUE")
            value, i = rest[i + 1], i + 1
        pairs.append((key, value))
        i += 1
    return pairs


def add_allow_code(command: Any) -> None:
    command.add_argument(
        "--allow-code",
        action="append",
        default=[],
        metavar="module:function",
        help="allow a config to run this function of yours; may be repeated",
    )


def add_weights(command: Any) -> None:
    command.add_argument(
        "--weights",
        default="last",
        metavar="last|best",
        help="which averaged weights: the last, or the best on held-out examples [last]",
    )


def check_ending(option: str, name: str | None, endings: tuple[str, ...]) -> None:
    if name is not None and Path(name).suffix.lower() not in endings:
        raise MmfastError(f"{option} is {name}; it should end in {' or '.join(endings)}")


def write(file: Path, write: Any) -> None:
    from mmfast.files import write_atomically

    try:
        write_atomically(file, write)
    except OSError as error:
        raise MmfastError(f"{file} cannot be written: {error.strerror}; choose another place") from None


def slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "=-" else "-" for c in text)[:60]


def new_file(folder: Path, stem: str) -> Path:
    """A name in the folder that is still free: samples are never overwritten."""
    if folder.is_symlink():
        raise MmfastError(f"{folder} is a link, and nothing is written through it; say another place with --out")
    names = (folder / f"{stem}{f'-{k}' if k else ''}.png" for k in range(1_000_000))
    return next(name for name in names if not name.exists())
