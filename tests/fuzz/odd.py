"""Odd texts, numbers and bytes, and files that were damaged."""

import random
import struct
from pathlib import Path

from .guard import CANARY

TEXTS = (
    "",
    " ",
    "0",
    "1",
    "-1",
    "010",
    "1e3",
    "nan",
    ".inf",
    "null",
    "true",
    "no",
    "~",
    "3.5",
    "x",
    "image",
    "label",
    "mask",
    "unet",
    "mlp",
    "auto",
    "cpu",
    "cuda",
    "cuda:99",
    "meta",
    "../x",
    "/",
    "/etc",
    "/dev/zero",
    ".",
    "..",
    "a b",
    "a\nb",
    "\x1b[31m",
    "\0",
    "\udc80",
    "é",
    "😀",
    "a" * 300,
    "a" * 70_000,
    "${oc.env:HOME}",
    "${x}",
    f"{CANARY}:run",
    "os:system",
    f"!!python/object/apply:{CANARY}.run []",
    "!!binary aGk=",
    "&a [*a]",
    "<<: {a: 1}",
    "[",
    "{",
    "]",
    "}",
    "'",
    '"',
    "#",
    "- x",
    "%s",
    "{0}",
    "--",
    "=",
    "a=",
    "=b",
    "label=3",
    "label=cats",
    "label=0,1,2",
    "label=all",
    "image=data",
    "mask=x.png",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    4,
    5,
    7,
    8,
    15,
    16,
    17,
    31,
    255,
    256,
    1000,
    65535,
    10**6,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**20,
    10**40,
    -(2**63),
    0.0,
    -0.0,
    0.1,
    0.5,
    1.0,
    1.5,
    1e-9,
    1e-320,
    1e9,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
)


def value(rng: random.Random, depth: int = 0) -> object:
    """A value as YAML or JSON has them."""
    pick = rng.random()
    if pick < 0.45:
        return rng.choice(NUMBERS)
    if pick < 0.8 or depth > 2:
        return rng.choice([*TEXTS, None, True, False])
    if pick < 0.9:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice([*TEXTS, "kind", "size", 3, None]): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def spoilt(rng: random.Random, data: bytes) -> bytes:
    """Some bytes, changed, cut, doubled, zeroed or replaced."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(data)) if data else 0
        if len(data) > 200 and rng.random() < 0.5:  # most formats say at the beginning what comes
            at = rng.randrange(200)
        length = rng.choice([1, 2, 4, 8, 30, 500])
        how = rng.randrange(8)
        if how <= 1 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            data[at : at + length] = bytes(min(length, len(data) - at))
        elif how == 3:
            del data[at:]
        elif how == 4:
            del data[at : at + length]
        elif how == 5:
            data[at:at] = data[at : at + length]
        elif how == 6:
            data[at : at + length] = rng.randbytes(length)
        else:
            data[at : at + 8] = struct.pack("<Q", rng.choice([0, 2**31, 2**32 - 1, 2**62, 2**64 - 1]))
    return bytes(data)


def replace(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Put something else in a file's place; returns what was done."""
    import os

    how = rng.choice(
        ["empty", "gone", "folder", "pipe", "device", "another's", "link", "loop", "junk", "huge", "forbidden"]
    )
    if how == "forbidden":
        path.chmod(0)
        return how
    path.unlink()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "another's":
        path.write_bytes(rng.choice(others).read_bytes())
    elif how == "link":
        path.symlink_to(rng.choice(["/etc/passwd", "/proc/self/mem", "nowhere", "/"]))
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "junk":
        path.write_bytes(rng.randbytes(rng.choice([1, 7, 8, 100, 10_000])))
    elif how == "huge":
        with open(path, "wb") as file:
            file.write(rng.choice([b"", struct.pack("<Q", 2**33), b"\x93NUMPY\x01\x00v\x00", b"a: [" * 1000]))
            file.truncate(rng.choice([2**31, 2**35, 2**40]))
    return how
