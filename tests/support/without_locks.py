"""python without_locks.py WORDS: `mmfast WORDS` in a process to which the kernel refuses every file lock (ENOLCK).

As a network file system without a lock server does. A seccomp filter answers fcntl's F_SETLK and F_SETLKW, and flock.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import platform
import struct
import sys

NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF: a word of what was called, jump if equal, the answer
ALLOW, ERROR = 0x7FFF0000, 0x00050000
NUMBER, COMMAND = 0, 24  # in struct seccomp_data: the call's number, the low half of its second argument
CALLS = {"x86_64": (72, 73), "aarch64": (25, 32)}  # fcntl, flock


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def refuse_locks() -> bool:
    """Install the filter for this process and its children; False where the kernel takes none."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return False
    control, lock = CALLS[platform.machine()]
    code = [
        (LOAD, 0, 0, NUMBER),
        (EQUAL, 5, 0, lock),  # to the refusal
        (EQUAL, 0, 3, control),  # or else allowed
        (LOAD, 0, 0, COMMAND),
        (EQUAL, 2, 0, fcntl.F_SETLK),
        (EQUAL, 1, 0, fcntl.F_SETLKW),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ERROR | errno.ENOLCK),
    ]
    packed = b"".join(struct.pack("HBBI", *line) for line in code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    return libc.prctl(SECCOMP, FILTER, ctypes.byref(Program(len(code), packed)), 0, 0) == 0


if __name__ == "__main__":
    if not refuse_locks():
        sys.exit(77)
    with open(sys.argv[0], "rb") as file:  # any file: it is refused now
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            sys.exit(78)
        except OSError as error:
            assert error.errno == errno.ENOLCK
    from mmfast.cli import main

    sys.exit(main(sys.argv[1:]))
