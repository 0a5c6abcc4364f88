"""Files that are never half written: each is complete on the disk before it takes its name. Tensors have a digest."""

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

# The prefix of the names of incomplete files.
TEMPORARY = ".tmp-mmfast-"
# The names of the strings in the metadata of a file of tensors.
METADATA, DIGEST = "mmfast", "digest"
# For os.open: follow no link and wait for no pipe, where the system supports it.
NO_LINK = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
# In bytes: enough for a hundred thousand tensors.
LONGEST_HEADER = 2**25
# In bytes: many times a state's lines of stats. Parsed JSON may take some thirty times its length in memory.
LONGEST_METADATA = 2**22


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, and rename it to `path` only when it is complete and on the disk."""
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
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def is_temporary(path: Path) -> bool:
    """Whether a killed process left it behind: a temporary file of write_atomically, or of safetensors for it."""
    if path.is_symlink() or not path.is_file():
        return False
    if re.fullmatch(re.escape(TEMPORARY) + r".+-[a-z0-9_]{8}(\.[^.]*)?", path.name):
        return True
    return re.fullmatch(r"\.tmp[A-Za-z0-9]{6}", path.name) is not None and _begins_as_ours(path)


def _begins_as_ours(path: Path) -> bool:
    """Whether the file begins as one of save_tensors does; other programs use such names too.

    An empty beginning or one of zeros counts too: safetensors reserves space for the whole file before it writes any.
    """
    try:
        head = beginning(path, 256)
    except OSError:
        return False
    # The header's length comes first, then the metadata and the digest in either order.
    return (
        len(head) <= 8
        or not any(head)
        or (head[8:].startswith(b'{"__metadata__":{"') and f'"{METADATA}":'.encode() in head)
    )


def check_regular(path: Path) -> None:
    """Raise OSError for a pipe, a socket or a device: reading one may block, or never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder raises OSError anyway
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device; it should be a file")


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content. Raises OSError if it has more than `most` bytes or is not a regular file."""
    check_regular(path)
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size <= most:
            data = file.read(most + 1)
            if len(data) <= most:
                return data
    raise OSError(errno.EFBIG, f"it has more than {most} bytes")


def beginning(path: Path, count: int) -> bytes:
    """The first bytes of a file, at most `count`. Raises OSError if it is not a regular file."""
    check_regular(path)
    with open(path, "rb") as file:
        return file.read(count)


def read_text(path: Path, most: int) -> str:
    """The text of a UTF-8 file. Raises OSError as `read_bytes` does."""
    return read_bytes(path, most).decode()


def append_text(path: Path, text: str) -> None:
    """Append to a text file, all or nothing. Raises OSError for a link, whose target is not touched."""
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
    """Wait until a file's content is on the disk."""
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
    """Save tensors by name, a JSON dictionary and the digest of both as one safetensors file, atomically."""
    plain = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    text = json.dumps(metadata)

    def save(file: Path) -> None:
        try:
            save_file(plain, file, {METADATA: text, DIGEST: digest(plain, text)})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(errno.EIO, str(error)) from None

    write_atomically(path, save)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load what save_tensors wrote. A file of an earlier version has no digest and loads unchecked.

    Raises MmfastError for a file that is missing, truncated, damaged or not mmfast's.
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
        if METADATA in texts and len(texts) > 1:  # any other string is the digest, intact or damaged
            kept, now = texts.get(DIGEST, "missing"), digest(tensors, texts[METADATA])
            if kept != now:
                raise ValueError(f"the digest of its content is {now[:12]}; it should be {kept[:12]}")
    except FileNotFoundError:
        raise MmfastError(f"{path} does not exist") from None
    except OSError as error:
        raise MmfastError(f"{path} cannot be read: {error.strerror}") from None
    except MemoryError:  # the file claims, or has, more bytes than fit in memory
        size = path.stat().st_size
        raise MmfastError(f"{path} cannot be read: the memory has no room for its {size:,} bytes") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise MmfastError(f"{path} is truncated or damaged ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(metadata, dict):
        raise MmfastError(f"{path} was not written by mmfast")
    return tensors, metadata


def digest(tensors: Mapping[str, Tensor], metadata: str) -> str:
    """The sha256 of a text and of the name, type, shape and bytes of every tensor (on the CPU, contiguous)."""
    ordered = sorted(tensors.items())
    head = json.dumps([metadata, [[name, str(x.dtype), list(x.shape)] for name, x in ordered]])
    found = hashlib.sha256(head.encode())
    for _, x in ordered:
        found.update(x.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _check_header(path: Path) -> None:
    """Raise ValueError for a safetensors header that is longer than the file or LONGEST_HEADER."""
    with open(path, "rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    if not length <= min(size - 8, LONGEST_HEADER):
        raise ValueError(f"it has {size} bytes, and its header claims {length}; {LONGEST_HEADER} is the most")


def check_fit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Raise MmfastError for the first tensor whose name, type or shape is not as wanted, or that is not finite."""
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
    """load_state_dict, with `check_fit` before anything is loaded."""
    check_fit(tensors, module.state_dict(), path)
    module.load_state_dict(dict(tensors))


def path_of(what: str, value: object) -> Path:
    """The path that a user gave. Raises MmfastError, naming `what`, for anything that is not a path."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
        raise MmfastError(f"{what} is {value!r}; it should be a path, as a str or a Path")
    return Path(value)


def check_free(what: str, folder: Path) -> None:
    """Raise MmfastError, naming `what`, if the name is taken (an empty folder is not) or no folder can be made."""
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise MmfastError(f"{what} is {folder}, which already exists; nothing is overwritten: choose a new folder")
    beside = next((p for p in (folder.absolute(), *folder.absolute().parents) if p.exists()), Path("/"))
    if not beside.is_dir() or not os.access(beside, os.W_OK | os.X_OK):
        wrong = "cannot be written to" if beside.is_dir() else "is not a folder"
        raise MmfastError(f"{what} is {folder}, and {beside} {wrong}; choose another place")


@contextlib.contextmanager
def new_folder(what: str, folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `folder` at the end: completely or not at all.

    Raises MmfastError, naming `what`, if `folder` is not free or cannot be written.
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
