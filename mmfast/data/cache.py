"""What takes long to make and depends on little is made once and kept as a file."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmfast.errors import MmfastError
from mmfast.files import beginning, load_tensors, save_tensors, write_text

HELP = "folder for data that is computed once and kept; empty: mmfast in the user's cache folder"
LIMIT = "gigabytes of decoded examples to keep there, so that none is decoded twice; 0: none are kept"


def cache_folder(folder: str | Path = "") -> Path:
    """The folder given, or the user's own: $XDG_CACHE_HOME/mmfast, ~/.cache/mmfast where that is not set."""
    if folder:
        return Path(folder)
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "mmfast"
    except RuntimeError:  # a user without one, as in some containers
        raise MmfastError(
            "data.cache is empty, and this user has no home folder to keep data in; give --data.cache DIR, or set the "
            "variable XDG_CACHE_HOME"
        ) from None


# The file that marks a cache: those who make backups know its first line (bford.info/cachedir).
TAG, SIGNATURE = "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n# Made by mmfast, and safe to remove.\n"


def made(folder: Path) -> None:
    """Make a cache folder, and mark it as one. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / TAG).exists():
        write_text(folder / TAG, SIGNATURE)


def is_cache(folder: Path) -> bool:
    """Whether it is a folder that mmfast has made a cache of."""
    try:
        return beginning(folder / TAG, len(SIGNATURE)) == SIGNATURE.encode()
    except OSError:
        return False


def digest(text: str) -> str:
    """The sha256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def kept(
    folder: str | Path, name: str, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors that `make` makes, from FOLDER/NAME-HASH.safetensors where they were made before.

    key: all that they depend on, as JSON; its hash is in the file's name and the whole of it inside. A file that is
    damaged is made again; a folder that cannot be written to gives a warning, no error.
    """
    key = json.loads(json.dumps(key))
    file = cache_folder(folder) / f"{name}-{digest(json.dumps(key, sort_keys=True))[:16]}.safetensors"
    try:
        tensors, metadata = load_tensors(file)
        if metadata == key:
            return tensors
    except MmfastError:
        pass  # missing or damaged
    tensors = make()
    try:
        made(file.parent)
        save_tensors(file, tensors, key)
    except OSError as error:
        warnings.warn(f"{file} cannot be kept ({error.strerror}); it will be made again next time", stacklevel=2)
    return tensors
