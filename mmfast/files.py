"""Files that are never half written: each is whole and on the disk before it takes its name. Tensors have a digest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmfast.errors import MmfastError

# How the name of a file begins that is not whole yet.
TEMPORARY = ".tmp-mmfast-"
# The names of the strings that a file of tensors carries.
METADATA, DIGEST = "mmfast", "digest"
# For os.open: no link is followed, and no pipe waited for, where the system can.
NO_LINK = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
# In bytes: a hundred thousand tensors' worth.
LONGEST_HEADER = 2**25
# In bytes: many times a state's lines of stats. JSON may take some thirty times its length in memory.
LONGEST_METADATA = 2**22


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, and put it in its place only when it is whole and on the disk."""
    handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.name}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        sync(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put a text file in its place atomically."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def is_temporary(path: Path) -> bool:
    """Whether a killed process left this file half written: by write_atomically, or by safetensors for save_tensors."""
    if path.is_symlink() or not path.is_file():
        return False
    if re.fullmatch(re.escape(TEMPORARY) + r".+-[a-z0-9_]{8}(\.[^.]*)?", path.name):
        return True
    return re.fullmatch(r"\.tmp[A-Za-z0-9]{6}", path.name) is not None and _begins_as_ours(path)


def _begins_as_ours(path: Path) -> bool:
    """Whether a file is the beginning of what save_tensors writes, be it empty: others give files such names too."""
    try:
        head = beginning(path, 256)
    except OSError:
        return False
    # After the header's length come the metadata, the digest and the text in either order.
    return len(head) <= 8 or (head[8:].startswith(b'{"__metadata__":{"') and f'"{METADATA}":'.encode() in head)


def check_regular(path: Path) -> None:
    """Raise OSError where there is a pipe, a socket or a device: reading it may wait for ever, or never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder is an error of the system's own
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device; it should be a file")


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content. Raises OSError for one of more than `most` bytes, and for what is no file."""
    check_regular(path)
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size <= most:
            data = file.read(most + 1)
            if len(data) <= most:
                return data
    raise OSError(errno.EFBIG, f"it has more than {most} bytes")


def beginning(path: Path, count: int) -> bytes:
    """The first bytes of a file, at most `count`. Raises OSError for what is no file."""
    check_regular(path)
    with open(path, "rb") as file:
        return file.read(count)


def read_text(path: Path, most: int) -> str:
    """A text file in UTF-8. Raises OSError as `read_bytes` does."""
    return read_bytes(path, most).decode()


def append_text(path: Path, text: str) -> None:
    """Add to a text file, all or nothing. Raises OSError where it is a link: what that leads to is not touched."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK, 0o666)
    with open(handle, "ab", buffering=0) as file:
        size, left = os.fstat(handle).st_size, memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) or 0 :]
        except OSError:
            os.ftruncate(handle, size)
            raise


def sync(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Tensors by name, with a JSON dictionary and the digest of it all, as one safetensors file, atomically."""
    plain = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    text = json.dumps(metadata)

    def save(file: Path) -> None:
        try:
            save_file(plain, file, {METADATA: text, DIGEST: digest(plain, text)})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(errno.EIO, str(error)) from None

    write_atomically(path, save)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What save_tensors wrote; a file of an earlier version, which has no digest, loads unchecked.

    Raises MmfastError for a file that is missing, truncated, damaged or another's.
    """
    try:
        check_regular(path)
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            if len(texts.get(METADATA, "")) > LONGEST_METADATA:
                raise ValueError(f"its metadata is longer than {LONGEST_METADATA} bytes")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(texts.get(METADATA, "null"))
        if METADATA in texts and len(texts) > 1:  # any other string is the digest, or was
            kept, now = texts.get(DIGEST, "missing"), digest(tensors, texts[METADATA])
            if kept != now:
                raise ValueError(f"the digest of its content is {now[:12]}; it should be {kept[:12]}")
    except FileNotFoundError:
        raise MmfastError(f"{path} does not exist") from None
    except OSError as error:
        raise MmfastError(f"{path} cannot be read: {error.strerror}") from None
    except MemoryError:  # of a file that claims, or has, more bytes than there is room for
        size = path.stat().st_size
        raise MmfastError(f"{path} cannot be read: the memory has no room for its {size:,} bytes") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise MmfastError(f"{path} is truncated or damaged ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(metadata, dict):
        raise MmfastError(f"{path} was not written by mmfast")
    return tensors, metadata


def digest(tensors: Mapping[str, Tensor], metadata: str) -> str:
    """The sha256 of a text, and of the name, type, shape and bytes of every tensor (on the CPU, contiguous)."""
    ordered = sorted(tensors.items())
    head = json.dumps([metadata, [[name, str(x.dtype), list(x.shape)] for name, x in ordered]])
    found = hashlib.sha256(head.encode())
    for _, x in ordered:
        found.update(x.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _check_header(path: Path) -> None:
    """Raise ValueError for a safetensors header that is longer than the file, or than any that was written."""
    with open(path, "rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    if not length <= min(size - 8, LONGEST_HEADER):
        raise ValueError(f"it has {size} bytes, and its header should have {length}; {LONGEST_HEADER} is the most")


def check_fit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Raise MmfastError for the first tensor that is not of the wanted names, types and shapes, or not finite."""
    for name in sorted(tensors.keys() | wanted.keys()):
        if name not in wanted:
            what = "does not belong there"
        elif name not in tensors:
            what = "is missing"
        elif (found := _kind(tensors[name])) != (should := _kind(wanted[name])):
            what = f"is {found}; it should be {should}"
        elif not bool(tensors[name].isfinite().all()):
            what = "holds NaN or infinity; every number should be finite"
        else:
            continue
        raise MmfastError(f"{path} does not fit the model of config.yaml: {name} {what}")


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """load_state_dict of finite tensors that fit. Raises MmfastError for others, before anything is loaded."""
    check_fit(tensors, module.state_dict(), path)
    module.load_state_dict(dict(tensors))


def path_of(what: str, value: object) -> Path:
    """What a user gave as a path. Raises MmfastError, which calls it `what`, for anything else."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
        raise MmfastError(f"{what} is {value!r}; it should be a path, as a text or a Path")
    return Path(value)


def check_free(what: str, folder: Path) -> None:
    """Raise MmfastError, which calls it `what`, where a file or a folder with something in it is already there."""
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise MmfastError(f"{what} is {folder}, which is there already; nothing is overwritten: choose a new folder")


@contextlib.contextmanager
def new_folder(what: str, folder: Path) -> Iterator[Path]:
    """A folder to fill that becomes `folder` at the end: whole or not at all.

    Raises MmfastError, which calls it `what`, where there is something already, or where it cannot be written.
    """
    check_free(what, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as temporary:
            made = Path(temporary) / "new"
            made.mkdir()
            yield made
            os.rename(made, folder)
    except OSError as error:
        raise MmfastError(f"{folder} cannot be written: {error.strerror}; choose another place") from None
