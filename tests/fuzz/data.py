"""Folders of data: each example is read as what its config says, or there is an error of one line."""

import contextlib
import io
import os
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import odd
from .guard import CANARY
from .pool import Fault, one_line

MODES = ("L", "RGB", "RGBA", "P", "1", "LA", "I;16", "I", "CMYK", "F")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".gif", ".tif", ".txt", ".npy")
NAMES = (
    "0",
    "1",
    "2",
    "a",
    "a b",
    "é",
    "x.y",
    "-",
    "a\nb",
    "\udcff",
    ".hidden",
    "A",
    "con",
    "n" * 200,
    "[x]",
    "%s",
    "{}",
)
POSTSCRIPT = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({CANARY}) (w) file closefile\n".encode()


class DataFolders:
    def prepare(self, base: Path) -> None:
        from mmfast import config as configs

        self.config = lambda modalities, root, more: configs.resolve(
            configs.OmegaConf.create(
                {
                    "anchor": "photo",
                    "data": {"kind": "folder", "root": root, **more},
                    "modalities": modalities,
                    "backbone": {"kind": "mlp", "width": 8, "blocks": 1, "features": 4},
                }
            )
        )

    def attempt(self, rng: random.Random, folder: Path) -> str | None:
        root = folder / "data"
        root.mkdir()
        colour = rng.choice([1, 3])
        modalities: dict[str, Any] = {"photo": {"kind": "image", "channels": colour, "size": rng.choice([4, 8])}}
        kinds = {
            "mask": {"kind": "mask", "classes": rng.choice([2, 4]), "size": rng.choice([4, 8])},
            "label": {"kind": "label", "classes": rng.choice([2, 3])},
            "emb": {"kind": "embedding", "dim": 4},
        }
        modalities |= {name: kinds[name] for name in kinds if rng.random() < 0.5}
        stems = [rng.choice(["", "", "0/", "1/", "cats/"]) + rng.choice(NAMES) for _ in range(rng.choice([2, 3, 4, 6]))]
        bad = rng.choice([0, 0.1, 0.5])
        for name in modalities:
            for stem in stems:
                if rng.random() < 0.9:
                    with contextlib.suppress(OSError, ValueError, KeyError):  # what this system or Pillow cannot write
                        write(rng, root / name / stem, modalities[name]["kind"], bad)
        if rng.random() < 0.1:
            with contextlib.suppress(OSError):
                (root / "photo" / "loop").symlink_to(rng.choice([root, root / "photo", root / "mask"]))
        more = {"test_fraction": rng.choice([0.1, 0.5])}
        if rng.random() < 0.1:
            more["folders"] = {
                rng.choice([*modalities, "x"]): rng.choice([".", "..", "/", "/etc", "mask", "a/../..", ""])
            }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            actions = [
                lambda: self._read(modalities, root, more),
                lambda: self._survey(modalities, root, more),
                lambda: self._guess(root),
            ]
            return one_line(rng.choice(actions))

    def _read(self, modalities: Any, root: Path, more: Any) -> None:
        from mmfast.build import build_data, build_model
        from mmfast.training.trainer import check_batch

        config = self.config(modalities, str(root), more)
        data = build_data(config)
        model = build_model(config)
        for part in (data.train, data.test):
            for k in range(len(part)):
                batch = part.__getitems__([k])
                check_batch(model, batch)
                photo = batch.data["photo"]
                size = modalities["photo"]["size"]
                if (
                    list(photo.shape) != [1, modalities["photo"]["channels"], size, size]
                    or not -1 <= photo.min() <= photo.max() <= 1
                ):
                    raise Fault(f"a photo of {list(photo.shape)}, {photo.min()} .. {photo.max()}")

    def _survey(self, modalities: Any, root: Path, more: Any) -> None:
        from mmfast.cli.check import page
        from mmfast.survey import survey

        with contextlib.redirect_stderr(io.StringIO()):
            page(survey(self.config(modalities, str(root), more), quiet=True), "x")

    def _guess(self, root: Path) -> None:
        from mmfast.guess import guess

        guess(root, 64)


def write(rng: random.Random, stem: Path, kind: str, bad: float) -> None:
    """A file of this kind, or something else in its place."""
    ending = {"label": ".txt", "embedding": ".npy"}.get(kind) or rng.choice(
        ENDINGS[:5] if rng.random() < 0.9 else ENDINGS
    )
    path = stem.with_name(stem.name + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or not path.is_file():  # put there in the place of another: a pipe, a link to a file of ours
        path.unlink(missing_ok=True)
    data = {"label": _label, "embedding": _numbers}.get(kind, _picture)(rng, kind, bad, ending)
    path.write_bytes(odd.spoilt(rng, data) if rng.random() < bad else data)
    if rng.random() < bad / 5:
        odd.replace(rng, path, [path])
    if rng.random() < bad / 5 and path.exists():
        os.rename(path, path.with_suffix(rng.choice(ENDINGS)))


def _picture(rng: random.Random, kind: str, bad: float, ending: str) -> bytes:
    if rng.random() < bad / 5:
        return POSTSCRIPT
    size = (12, 12) if rng.random() > bad else rng.choice([(1, 1), (12, 13), (1, 300), (300, 200), (12, 1)])
    mode = ("L" if kind == "mask" else "RGB") if rng.random() > bad else rng.choice(MODES)
    pixels = np.frombuffer(rng.randbytes(size[0] * size[1]), np.uint8).reshape(size[::-1]) % (
        2 if kind == "mask" else 255
    )
    picture = Image.fromarray(pixels).convert(mode if mode != "I;16" else "I").convert(mode)
    file = io.BytesIO()
    formats = {".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".gif": "GIF", ".tif": "TIFF"}
    options: dict[str, Any] = {"lossless": True} if ending == ".webp" else {}
    if rng.random() < bad:
        exif = Image.Exif()
        exif[0x0112] = rng.choice([0, 1, 3, 6, 8, 9, 60000])
        options["exif"] = exif
    picture.save(file, formats.get(ending.lower(), "JPEG"), **options)
    return file.getvalue()


def _label(rng: random.Random, kind: str, bad: float, ending: str) -> bytes:
    if rng.random() > bad:
        return rng.choice([b"0", b"1\n", b" 1 "])
    return rng.choice(
        [rng.choice(odd.TEXTS).encode(errors="surrogatepass"), str(rng.choice(odd.NUMBERS)).encode(), rng.randbytes(9)]
    )


def _numbers(rng: random.Random, kind: str, bad: float, ending: str) -> bytes:
    file = io.BytesIO()
    if rng.random() < bad:
        kinds = [np.float64, np.int8, np.bool_, np.complex64, "U3", "O", "M8[s]", np.float16, ">f4", [("a", "f4")]]
        shape = rng.choice([(4,), (), (0,), (2, 2), (4, 1), (5,)])
        x = np.zeros(shape, rng.choice(kinds))  # type: ignore[call-overload]
        np.save(file, x, allow_pickle=True)
        if rng.random() < 0.3:
            text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rng.choice(odd.NUMBERS)},), }}\n".encode()
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"1234" * 4
        return file.getvalue()
    np.save(file, np.array([rng.choice([0.0, 1.0, -1.0, 0.5]) for _ in range(4)], np.float32) + 0.1)
    return file.getvalue()
