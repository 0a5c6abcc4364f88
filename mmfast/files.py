"""Files that are never half written: each is whole and on the disk before it takes its name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmfast.errors import MmfastError

# How the name of a file begins that is not whole yet.
TEMPORARY = ".tmp-"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, and put it in its place only when it is whole and on the disk."""
    handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.name}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put a text file in its place atomically."""
    write_atomically(path, lambda file: file.write_text(text))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Tensors by name, with a JSON dictionary, as one safetensors file, atomically."""
    plain = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}

    def save(file: Path) -> None:
        try:
            save_file(plain, file, {"mmfast": json.dumps(metadata)})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(errno.EIO, str(error)) from None

    write_atomically(path, save)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What save_tensors wrote. Raises MmfastError for a file that is missing, truncated or another's."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("mmfast", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise MmfastError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise MmfastError(f"{path} is truncated or damaged ({' '.join(str(error).split())})") from None
    if not isinstance(metadata, dict):
        raise MmfastError(f"{path} was not written by mmfast")
    return tensors, metadata


def load_into(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """load_state_dict with a one-line error."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise MmfastError(f"{path} does not fit the model of config.yaml: {reason}") from None
