"""What an input may not do while it is tried: run code, write outside its folder, leave files open."""

import contextlib
import getpass
import os
import sys
import tempfile
from pathlib import Path

from mmfast.data.cache import cache_folder

CACHE = os.path.abspath(cache_folder())
COMPILED = f"torchinductor_{getpass.getuser()}"  # torch's own folder of what it compiles
for folder in (CACHE, os.path.join(tempfile.gettempdir(), COMPILED)):  # for an input to change nothing above them
    os.makedirs(folder, exist_ok=True)
# A module of this name, on Python's path, is what inputs name as code: nothing may import it.
CANARY = "canary_of_the_fuzzer"
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Guard:
    """Sees Python's audit events of this process, from `watch` on, while a folder is the input's own."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._event)

    def watch(self, folder: Path | None) -> None:
        self.folder, self.seen = None if folder is None else os.path.realpath(folder), []

    def _event(self, event: str, args: tuple) -> None:
        if self.folder is None:
            return
        if event in RUNS:
            self.seen.append(f"ran a program ({event} {args[:2]!r})")
        elif event == "import" and args[0] == CANARY:
            self.seen.append("imported code that the input names")
        elif event == "pickle.find_class" and not str(args[0]).startswith(("torch", "multiprocessing")):
            self.seen.append(f"unpickled {args[0]}.{args[1]}")
        elif event == "open" and isinstance(args[0], (str, bytes)) and isinstance(args[2], int):
            if args[2] & WRITES and not self._own(args[0]) and os.fsdecode(args[0]) != os.devnull:
                self.seen.append(f"opened {args[0]!r} to write")
        elif event == "os.mkdir" and os.path.isdir(args[0]):
            return  # of a folder that is there it changes nothing: torch does so when it is imported
        elif event in CHANGES and not all(self._own(x) for x in _places(event, args)):
            self.seen.append(f"changed a file outside its folder ({event} {args[:2]!r})")

    def _own(self, path: str | bytes | Path) -> bool:
        if self.folder is None:
            return False
        path = os.path.abspath(os.fsdecode(path))
        if path == CACHE or path.startswith(os.path.join(CACHE, "")):  # what was decoded is kept there
            return True
        return os.path.join(os.path.realpath(os.path.dirname(path)), "").startswith(os.path.join(self.folder, ""))


def _places(event: str, args: tuple) -> list:
    """The paths among an event's arguments that it changes: of a link where it stands, not what it leads to."""
    if "link" in event:
        args = args[1:2]
    return [x for x in args if isinstance(x, (str, bytes, Path))]


def handles() -> set[str]:
    """The files, pipes and sockets that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


def resident(peak: bool = False) -> int:
    """The bytes of memory that this process has now, or had at most since `forget_peak`."""
    key = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(key))


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
