"""Files as they come to be: whole before they take their name, readable by whom the user lets, through no link."""

import errno
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from mmfast.errors import MmfastError
from mmfast.files import (
    LONGEST_HEADER,
    LONGEST_METADATA,
    append_text,
    check_regular,
    is_temporary,
    load_tensors,
    read_text,
    save_tensors,
    write_atomically,
    write_text,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions and links are POSIX's")


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_others_may_read_it_as_far_as_the_umask_lets_them(tmp_path, umask):
    """The temporary file is made by mkstemp, which lets nobody; and the umask is the process's own, and stays."""
    write_text(tmp_path / "x.txt", "a")
    with open(tmp_path / "plain.txt", "w") as file:
        file.write("a")
    append_text(tmp_path / "y.txt", "a")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x.txt", "plain.txt", "y.txt")]
    assert modes == [0o666 & ~umask] * 3 and os.umask(umask) == umask


def test_it_is_on_the_disk_before_it_takes_its_name_and_so_is_the_name(tmp_path, monkeypatch):
    events, sync, replace = [], os.fsync, os.replace

    def named(handle):
        return os.readlink(f"/proc/self/fd/{handle}") if os.path.exists("/proc/self/fd") else ""

    monkeypatch.setattr(os, "fsync", lambda handle: events.append(("sync", named(handle))) or sync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append(("name", str(b))) or replace(a, b))
    path = tmp_path / "x.txt"
    write_text(path, "new")
    assert [name for name, _ in events] == ["sync", "name", "sync"] and path.read_text() == "new"
    if events[0][1]:
        assert is_temporary_name(events[0][1]) and events[2][1] == str(tmp_path) and events[1][1] == str(path)


def is_temporary_name(name):
    return os.path.basename(name).startswith(".tmp-mmfast-x.txt-")


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fails(file):
        file.write_text("half")
        assert file.parent == tmp_path and file.suffix == ".txt" and path.read_text() == "old"
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_only_what_a_kill_left_is_temporary(tmp_path):
    """A file of that name: a user's own, a link or a folder is not."""
    left = []
    write_atomically(tmp_path / "x.json", lambda file: left.append(file.name))
    users = ["x.tmp-mmfast-x-abcdefgh", ".tmp-mmfast-notes", ".tmp-x-abcdefgh", ".tmp-mmfast-x-abcdefgh.a.b"]
    for name in (left[0], ".tmp-mmfast-x-abcd_012", *users):
        assert not is_temporary(tmp_path / name)  # there is none
        (tmp_path / name).write_text("a")
        assert is_temporary(tmp_path / name) is (name not in users), name
    (tmp_path / left[0]).unlink()
    (tmp_path / left[0]).symlink_to(tmp_path / "x.json")
    (tmp_path / ".tmp-mmfast-x-folder00").mkdir()
    assert not is_temporary(tmp_path / left[0]) and not is_temporary(tmp_path / ".tmp-mmfast-x-folder00")


def test_what_safetensors_left_half_written_is_temporary(tmp_path):
    """It writes to a file of its own first, by a name that is not ours: then the content tells."""
    save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1000)}, {"step": 1})
    whole, left = (tmp_path / "x.safetensors").read_bytes(), tmp_path / ".tmpAb0Zy9"
    reserved = bytes(len(whole))  # room made for the whole, of which nothing is written yet
    for content in (b"", reserved, whole[:8], whole[:300], whole):
        left.write_bytes(content)
        assert is_temporary(left)
    for content in (b"notes of a user, which begin otherwise", bytes(100) + b"notes", b"notes" + bytes(1000)):
        left.write_bytes(content)
        assert not is_temporary(left)
    save_file({"x": torch.zeros(2)}, left, {"format": "pt"})
    assert not is_temporary(left)
    for name in ("tmpAb0Zy9", ".tmpAb0Zy", ".tmpAb0Zy9.png", ".tmp-b0Zy9"):
        (tmp_path / name).write_bytes(whole)
        assert not is_temporary(tmp_path / name)


SAVES = """
import sys, torch
from pathlib import Path
from mmfast.files import save_tensors
tensors = {"x": torch.zeros(2**25)}
while True:
    save_tensors(Path(sys.argv[1]) / "x.safetensors", tensors, {"step": 1})
"""


@pytest.mark.slow
def test_a_kill_while_safetensors_writes_leaves_what_is_known_as_temporary(tmp_path):
    for k in range(2):
        process = subprocess.Popen([sys.executable, "-c", SAVES, str(tmp_path)])
        while sum(len(name) == len(".tmp000000") for name in os.listdir(tmp_path)) <= k:
            assert process.poll() is None
        process.kill()
        process.wait()
    left = [path for path in tmp_path.iterdir() if path.name != "x.safetensors"]
    assert left and all(is_temporary(path) for path in left), left


def test_text_is_added_and_through_no_link(tmp_path):
    path, link = tmp_path / "x.txt", tmp_path / "link"
    append_text(path, "a\n")
    append_text(path, "é\n")
    assert path.read_text() == "a\né\n"
    link.symlink_to(path)
    with pytest.raises(OSError):
        append_text(link, "b")
    assert path.read_text() == "a\né\n"


def test_a_text_is_read_up_to_a_size(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("é".encode() * 5)
    assert read_text(path, 10) == "ééééé"
    with pytest.raises(OSError, match="it has more than 9 bytes") as error:
        read_text(path, 9)
    assert error.value.errno == errno.EFBIG


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (check_regular, lambda path: read_text(path, 10)):
        with pytest.raises(OSError, match="it is a pipe, a socket or a device; it should be a file") as error:
            read(tmp_path / "pipe")
        assert error.value.errno == errno.EINVAL
    with pytest.raises(MmfastError, match="pipe cannot be read: it is a pipe"):
        load_tensors(tmp_path / "pipe")
    check_regular(tmp_path)  # of a folder the system says so itself


def test_a_files_metadata_have_a_longest_length(tmp_path):
    """What is just short enough is read; JSON of numbers takes many times its length in memory."""
    assert LONGEST_HEADER == 33_554_432  # of a hundred thousand tensors, and no gigabytes
    path = tmp_path / "x.safetensors"
    room = LONGEST_METADATA - len('{"a": ""}')
    save_tensors(path, {}, {"a": "x" * room})
    assert len(load_tensors(path)[1]["a"]) == room
    save_tensors(path, {}, {"a": "x" * (room + 1)})
    with pytest.raises(MmfastError, match=r"damaged \(its metadata is longer than 4194304 bytes\)"):
        load_tensors(path)
