"""What the commands share: options of the config, and the files that they write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfast.errors import MmfastError, notice
from mmfast.trust import permit

if TYPE_CHECKING:
    from mmfast.config import Config

# The longest side, in pixels, that libjpeg writes.
LARGEST_JPEG = 65_500


def overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """--key value and --key=value, in order."""
    pairs, i = [], 0
    while i < len(rest):
        word = rest[i]
        if not word.startswith("--") or len(word) < 3:
            raise MmfastError(f"{word!r} is out of place; set config options by --key value, as in --train.steps 100")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if i + 1 >= len(rest) or rest[i + 1].startswith("--"):
                raise MmfastError(f"--{key} has no value; it should be --{key} VALUE")
            value, i = rest[i + 1], i + 1
        pairs.append((key, value))
        i += 1
    return pairs


def load_config(source: str, rest: Sequence[str]) -> Config:
    """The config that a command names, with its other words as overrides. A notice says if it names no data."""
    from mmfast.config import load
    from mmfast.config_source import overridden, read
    from mmfast.plain_yaml import load_yaml

    pairs = overrides(rest)
    config = load(source, pairs)
    if "data" not in overridden(load_yaml(read(source), source), source, pairs):
        notice(f"{source} has no section data, so the data set is {config.data.kind}")
    return config


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


def add_overwrite(command: Any) -> None:
    command.add_argument("--overwrite", action="store_true", help="replace an output file that already exists")


def check_file(option: str, name: str | None, overwrite: bool, *endings: str) -> None:
    """Raise MmfastError unless the file that the user names can be written, before any work is done for it.

    A file is overwritten only with --overwrite, anything else never. endings: those that the name may have.
    """
    if name is None:
        return
    path = Path(name)
    if endings and path.suffix.lower() not in endings:
        raise MmfastError(f"{option} is {name}; it should end in {' or '.join(endings)}")
    if path.exists() and not path.is_file():
        raise MmfastError(f"{option} is {name}, which exists and is not a file; choose another name")
    if os.path.lexists(path) and not overwrite:
        raise MmfastError(f"{option} is {name}, which already exists; choose another name, or add --overwrite")
    if not path.parent.is_dir():
        raise MmfastError(f"{option} is {name}, and {path.parent} is not a folder; create it, or choose another place")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise MmfastError(f"{option} is {name}, and {path.parent} cannot be written to; choose another place")


def write(file: Path, write: Any) -> None:
    from mmfast.files import write_atomically

    try:
        write_atomically(file, write)
    except OSError as error:
        raise MmfastError(f"{file} cannot be written: {error.strerror}; choose another place") from None


def write_picture(file: Path, picture: Any) -> Path:
    """Write a picture in the format that the file's name says.

    Returns the file: a new .png if the picture is too large for a JPEG.
    """
    if file.suffix.lower() != ".png" and max(picture.size) > LARGEST_JPEG:
        wanted, file = file, _free(file.parent, file.stem)
        width, height = picture.size
        notice(
            f"the picture is {width:,} x {height:,} pixels, and a JPEG has at most {LARGEST_JPEG:,} per side; it is "
            f"written to {file} instead of {wanted}"
        )
    write(file, lambda temporary: picture.save(temporary))
    return file


def measure_by(args: Any, spec: Any) -> None:
    """Set the measuring networks in a config's `evaluate` section as the command line says.

    The config's weights are those of its own network, so another network does not use them.
    """
    permit("evaluate.features", args.features)
    for name in ("features", "lpips"):
        asked, weights = getattr(args, name, None), getattr(args, f"{name}_weights", None)
        if asked is not None and asked != getattr(spec, name):
            setattr(spec, name, asked)
            setattr(spec, f"{name}_weights", "")
        if weights is not None:
            setattr(spec, f"{name}_weights", weights)


def slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "=-" else "-" for c in text)[:60]


def new_file(folder: Path, stem: str) -> Path:
    """A name that is still free in the folder, because samples are never overwritten."""
    refuse_link(folder)
    return _free(folder, stem)


def refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise MmfastError(f"{folder} is a link, and nothing is written through links; choose another place with --out")


def make_folder(folder: Path) -> None:
    """Make a folder for a command's own files, before any work is done for them.

    Raises MmfastError if nothing can be written there.
    """
    refuse_link(folder)
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MmfastError(f"{folder} cannot be written to: {error.strerror}; choose another place with --out") from None


def _free(folder: Path, stem: str) -> Path:
    names = (folder / f"{stem}{f'-{k}' if k else ''}.png" for k in range(1_000_000))
    return next(name for name in names if not os.path.lexists(name))
