"""A cache of tensors in files, for what takes long to compute and depends on little."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmfast import lock
from mmfast.errors import MmfastError, notice
from mmfast.files import beginning, load_tensors, save_tensors, write_text

HELP = "folder for data that is computed once and kept; empty: mmfast in the user's cache folder"
LIMIT = "gigabytes of decoded examples to keep there, so that none is decoded twice; 0: none are kept"


def cache_folder(folder: str | Path = "") -> Path:
    """The given folder, or else the user's: $XDG_CACHE_HOME/mmfast, or ~/.cache/mmfast if that is not set."""
    if folder:
        return Path(folder)
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "mmfast"
    except RuntimeError:  # the user has no home folder, as in some containers
        raise MmfastError(
            "data.cache is empty, and this user has no home folder to keep data in; give --data.cache DIR, or set the "
            "variable XDG_CACHE_HOME"
        ) from None


# The file that marks a cache folder; backup tools know its first line (bford.info/cachedir).
TAG, SIGNATURE = "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n# Made by mmfast, and safe to remove.\n"


def made(folder: Path) -> None:
    """Create a cache folder and mark it as one. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / TAG).exists():
        write_text(folder / TAG, SIGNATURE)


def is_cache(folder: Path) -> bool:
    """Whether mmfast has created this folder as a cache."""
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
    """The tensors that `make` returns, loaded from FOLDER/NAME-HASH.safetensors if they were made before.

    key: everything that they depend on, as JSON; its hash is in the file's name, and all of it in the file. A damaged
    file is made again. If another process makes the file, this waits for it, with a notice. If the folder cannot be
    written to, this warns and does not fail.
    """
    key = json.loads(json.dumps(key))
    file = cache_folder(folder) / f"{name}-{digest(json.dumps(key, sort_keys=True))[:16]}.safetensors"
    found = _there(file, key)
    if found is not None:
        return found
    with _alone(file):
        found = _there(file, key)  # made by the process that had the lock
        if found is not None:
            return found
        tensors = make()
        try:
            made(file.parent)
            save_tensors(file, tensors, key)
        except OSError as error:
            warnings.warn(f"{file} cannot be kept ({error.strerror}); it will be made again next time", stacklevel=2)
    return tensors


def _there(file: Path, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The tensors of a cache file; None if it is missing, damaged or of another key."""
    try:
        tensors, metadata = load_tensors(file)
    except MmfastError:
        return None
    return tensors if metadata == key else None


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let no other process make the same file: wait for one that does. Where nothing can be locked, both make it."""
    path, held, waiting = file.with_suffix(".lock"), None, False
    with contextlib.suppress(OSError):  # `kept` warns about a folder that cannot be written to
        made(file.parent)
        while True:
            try:
                held = lock.take(path)
                break
            except BlockingIOError:
                if not waiting:
                    notice(f"another process is computing {file}; waiting for it")
                waiting = True
                time.sleep(0.1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        del held
