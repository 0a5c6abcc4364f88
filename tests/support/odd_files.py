# ruff: noqa: E501
"""Odd files as people have them: for each its kind, how it is made, and its right value or the words of its error.

A row is (modality, ending, make, right). `make(path)` writes the file; `right` is x as numbers, pixels 0 .. 255 for an
image, or a pattern that its error holds. Kinds met in the trackers of Pillow, torchvision and datasets are among them.
"""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

SIDE = 4
RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
CLASSES = RNG.integers(0, 3, (SIDE, SIDE), dtype=np.uint8)
CLASSES[0, :3] = 0, 1, 2
TWO = (RNG.random((SIDE, SIDE)) < 0.5).astype(np.uint8)
TWO[0, :2] = 0, 1
WIDE = RNG.integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
SEEN = RNG.random((SIDE, SIDE)) < 0.6
FLAT = np.full((SIDE, SIDE, 3), (200, 100, 50), np.uint8)
VECTOR = np.array([0.5, -2.0, 3.0, 1.0])
MAP = RNG.normal(size=(2, 2, 2)).astype(np.float32)


def on_white(colours):
    return np.where(SEEN[..., None], colours, 255)


def colours(grey):
    return np.repeat(np.asarray(grey)[..., None], 3, -1)


def saved(pixels, mode=None, format=None, **options):
    def make(path):
        picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        (picture if mode is None else picture.convert(mode)).save(path, format, **options)

    return make


def raw(content):
    return lambda path: path.write_bytes(content)


def content(pixels, format="PNG", **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format, **options)
    return file.getvalue()


def cut(data, share=0.7):
    return raw(data[: int(len(data) * share)])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth, colour, rows, size=(SIDE, SIDE), *more, broken=None):
    """A PNG by hand, of rows of bytes, with more chunks before its pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    if broken is not None:  # the checksum of this part
        parts[broken] = parts[broken][:-1] + bytes([parts[broken][-1] ^ 1])
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def big_endian(values):
    return [row.astype(">u2").tobytes() for row in values.reshape(SIDE, -1)]


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def palette(numbers, colours, **options):
    picture = Image.frombytes("P", (SIDE, SIDE), np.asarray(numbers, np.uint8).tobytes())
    picture.putpalette(np.asarray(colours, np.uint8).tobytes())
    return saved(picture, **options)


def text_bomb(path):
    about = PngImagePlugin.PngInfo()
    about.add_text("x", "y" * 90_000_000, zip=True)
    Image.fromarray(RGB).save(path, pnginfo=about)


def array(x, **options):
    def make(path):
        with open(path, "wb") as file:
            np.lib.format.write_array(file, np.asarray(x), **options)

    return make


def npz(path):
    with open(path, "wb") as file:
        np.savez(file, VECTOR)


def claims(shape, descr="'<f4'"):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def linked(make):
    def through(path):
        real = path.parents[2] / "elsewhere" / path.name
        real.parent.mkdir(exist_ok=True)
        make(real)
        path.symlink_to(real)

    return through


COLOURS = RNG.integers(0, 256, (3, 3), dtype=np.uint8)
LA, RGBA = np.dstack([GREY, SEEN * 255]).astype(np.uint8), np.dstack([RGB, SEEN * 255]).astype(np.uint8)
KEYED = np.array(RGB)
KEYED[0, 0] = 1, 2, 3
FRAMES = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
WIDE_RGB = RNG.integers(0, 65536, (SIDE, SIDE, 3), dtype=np.uint16)
WIDE_RGBA = np.dstack([WIDE_RGB, np.full((SIDE, SIDE), 65535)]).astype(np.uint16)
TWO_BITS = RNG.integers(0, 4, (SIDE, SIDE))
WHITE_KEYED = KEYED.copy()
WHITE_KEYED[0, 0] = 255
BLACK = Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 255))

RIGHT = {
    "rgb": ("image", ".png", saved(RGB), RGB),
    "grey": ("image", ".png", saved(GREY), colours(GREY)),
    "grey with alpha": ("image", ".png", saved(LA), on_white(colours(GREY))),
    "hidden colours": ("image", ".png", saved(RGBA), on_white(RGB)),
    "palette": ("image", ".png", palette(CLASSES, COLOURS), COLOURS[CLASSES]),
    "palette with a transparent colour": ("image", ".png", palette(CLASSES, COLOURS, transparency=1),
                                          np.where((CLASSES == 1)[..., None], 255, COLOURS[CLASSES])),
    "palette with alpha": ("image", ".png", palette(CLASSES, COLOURS, transparency=b"\xff\x00\x00"),
                           np.where((CLASSES > 0)[..., None], 255, COLOURS[CLASSES])),
    "one bit": ("image", ".png", saved(Image.fromarray(TWO * 255), "1"), colours(TWO * 255)),
    "two bits": ("image", ".png", raw(png(2, 0, [bytes([(a << 6) | (b << 4) | (c << 2) | d]) for a, b, c, d in TWO_BITS])),
                 colours(TWO_BITS * 85)),
    "16 bits": ("image", ".png", saved(WIDE), colours(WIDE / 257)),
    "16 bits of colour": ("image", ".png", raw(png(16, 2, big_endian(WIDE_RGB))), WIDE_RGB >> 8),
    "16 bits with alpha": ("image", ".png", raw(png(16, 6, big_endian(WIDE_RGBA))), WIDE_RGB >> 8),
    "colour key": ("image", ".png", raw(png(8, 2, [row.tobytes() for row in KEYED], (SIDE, SIDE),
                                            chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3])))), WHITE_KEYED),
    "gamma": ("image", ".png", raw(png(8, 2, [row.tobytes() for row in RGB], (SIDE, SIDE),
                                       chunk(b"gAMA", struct.pack(">I", 22222)))), RGB),
    "checksum of the pixels": ("image", ".png", raw(png(8, 2, [row.tobytes() for row in RGB], broken=-2)), RGB),
    "colour profile": ("image", ".png", saved(RGB, icc_profile=b"no profile"), RGB),
    "bytes after the end": ("image", ".png", raw(content(RGB) + b"more" * 100), RGB),
    "animated png": ("image", ".png", saved(FRAMES[0], save_all=True, append_images=FRAMES[1:]), RGB),
    "animated webp": ("image", ".webp", saved(FRAMES[0], save_all=True, append_images=FRAMES[1:], lossless=True), RGB),
    "animated gif called png": ("image", ".png", saved(Image.fromarray(GREY), format="GIF", save_all=True,
                                append_images=[Image.fromarray(255 - GREY)]), colours(GREY)),
    "jpeg called png": ("image", ".png", saved(FLAT, format="JPEG", quality=100), FLAT),
    "png called jpg": ("image", ".jpg", saved(RGB, format="PNG"), RGB),
    "webp called jpeg": ("image", ".jpeg", saved(RGB, format="WEBP", lossless=True), RGB),
    "progressive jpeg": ("image", ".jpg", saved(FLAT, progressive=True, quality=100), FLAT),
    "grey jpeg": ("image", ".JPG", saved(np.full((SIDE, SIDE), 77, np.uint8), format="JPEG"), colours([[77] * 4] * 4)),
    "cmyk jpeg": ("image", ".jpg", saved(BLACK, format="JPEG"), np.zeros((SIDE, SIDE, 3))),
    "a phone's two pictures": ("image", ".jpg", saved(Image.fromarray(FLAT), format="MPO", save_all=True,
                               append_images=[Image.fromarray(RGB)], quality=100), FLAT),
    "bmp": ("image", ".bmp", saved(RGB), RGB),
    "bmp with a palette": ("image", ".bmp", palette(CLASSES, COLOURS, format="BMP"), COLOURS[CLASSES]),
    "upper case ending": ("image", ".PNG", saved(RGB, format="PNG"), RGB),
    "upside down": ("image", ".png", saved(RGB, exif=exif(3)), RGB[::-1, ::-1]),
    "on its side": ("image", ".png", saved(RGB, exif=exif(6)), np.rot90(RGB, -1)),
    "mirrored on its side": ("image", ".webp", saved(RGB, exif=exif(5), lossless=True), RGB.transpose(1, 0, 2)),
    "orientation of no meaning": ("image", ".png", saved(RGB, exif=exif(77)), RGB),
    "exif that is none": ("image", ".png", raw(png(8, 2, [row.tobytes() for row in RGB], (SIDE, SIDE),
                                                   chunk(b"eXIf", b"rubbish"))), RGB),
    "a link": ("image", ".png", linked(saved(RGB)), RGB),
    "cafe\u0301": ("image", ".png", saved(RGB), RGB),
    "dots.in.the.name": ("image", ".png", saved(RGB), RGB),
    "50% \U0001f600 'quoted'": ("image", ".png", saved(RGB), RGB),
    "mask": ("mask", ".png", saved(CLASSES), CLASSES),
    "mask with a palette": ("mask", ".png", palette(CLASSES, COLOURS), CLASSES),
    "mask with a transparent palette": ("mask", ".png", palette(CLASSES, COLOURS, transparency=0), CLASSES),
    "mask as grey colours": ("mask", ".png", saved(colours(CLASSES)), CLASSES),
    "mask of 16 bits": ("mask", ".png", saved(CLASSES.astype(np.uint16)), CLASSES),
    "mask on its side": ("mask", ".png", saved(CLASSES, exif=exif(6)), np.rot90(CLASSES, -1)),
    "mask twice as large": ("mask", ".png", saved(CLASSES.repeat(2, 0).repeat(2, 1)), CLASSES),
    "mask with ignored pixels": ("mask", ".png", saved(np.where(SEEN, CLASSES, 255).astype(np.uint8)),
                                 np.where(SEEN, CLASSES.astype(int), -1)),
    "mask in a gif": ("mask", ".gif", palette(CLASSES, COLOURS, format="GIF"), CLASSES),
    "black and white": ("two", ".png", saved(TWO * 255), TWO),
    "nearly black and white": ("two", ".png", saved(TWO * 249 + 4), TWO),
    "two classes in a bit": ("two", ".png", saved(Image.fromarray(TWO * 255), "1"), TWO),
    "two classes in a jpeg": ("two", ".png", saved(np.full((SIDE, SIDE), 255, np.uint8), format="JPEG"), TWO * 0 + 1),
    "one class alone": ("two", ".png", saved(TWO * 0), TWO * 0),
    "label": ("label", ".txt", raw(b"2"), 2),
    "label by name": ("label", ".txt", raw("na\u00efve bee".encode()), 1),
    "label with a byte order mark": ("label", ".txt", raw(b"\xef\xbb\xbfape\r\n"), 0),
    "label among empty lines": ("label", ".txt", raw(b"\n\n  2 \n\n"), 2),
    "label in digits of another script": ("label", ".txt", raw("\u0661".encode()), 1),
    "vector": ("vector", ".npy", array(VECTOR), VECTOR),
    "vector of half precision": ("vector", ".npy", array(VECTOR.astype(np.float16)), VECTOR),
    "vector of the other byte order": ("vector", ".npy", array(VECTOR.astype(">f8")), VECTOR),
    "vector of whole numbers": ("vector", ".npy", array(np.arange(4, dtype=np.uint64)), np.arange(4)),
    "vector of bools": ("vector", ".npy", array(np.array([1, 0, 0, 1], bool)), [1, 0, 0, 1]),
    "vector in two dimensions": ("vector", ".npy", array(VECTOR.reshape(2, 2)), VECTOR),
    "vector of a later format": ("vector", ".npy", array(VECTOR, version=(3, 0)), VECTOR),
    "map": ("map", ".npy", array(MAP), MAP),
    "map in Fortran's order": ("map", ".npy", array(np.asfortranarray(MAP)), MAP),
}  # fmt: skip

STRUCTURED = np.zeros(4, [("a", "f4"), ("b", "f4")])
WRONG = {
    "empty file": ("image", ".png", raw(b""), "none of PNG"),
    "text called png": ("image", ".png", raw(b"<html>404 not found</html>"), "none of PNG"),
    "postscript called png": ("image", ".png", raw(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"), "none of PNG"),
    "pdf called jpg": ("image", ".jpg", raw(b"%PDF-1.7\n"), "none of PNG"),
    "svg called png": ("image", ".png", raw(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "none of PNG"),
    "float tiff called png": ("image", ".png", saved(Image.fromarray(GREY.astype(np.float32)), format="TIFF"), "none of PNG"),
    "icon called png": ("image", ".png", saved(Image.fromarray(RGB).resize((16, 16)), format="ICO"), "none of PNG"),
    "portable pixmap called bmp": ("image", ".bmp", saved(RGB, format="PPM"), "none of PNG"),
    "sound called webp": ("image", ".webp", raw(b"RIFF$\0\0\0WAVEfmt "), "none of PNG"),
    "pointer of git lfs": ("image", ".png", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "none of"),
    "cut png": ("image", ".png", cut(content(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))), "cannot be read"),
    "cut jpeg": ("image", ".jpg", cut(content(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")), "truncated"),
    "cut webp": ("image", ".webp", cut(content(RGB.repeat(16, 0), "WEBP")), "cannot be read"),
    "cut gif": ("image", ".png", cut(content(GREY.repeat(16, 0), "GIF"), 0.9), "cannot be read"),
    "cut bmp": ("image", ".bmp", cut(content(RGB, "BMP")), "cannot be read"),
    "png of a header alone": ("image", ".png", raw(content(RGB)[:33]), "cannot be read"),
    "broken chunk": ("image", ".png", raw(png(8, 2, [row.tobytes() for row in RGB], broken=0)), "broken|cannot be read"),
    "png without a width": ("image", ".png", raw(png(8, 2, [b""], (0, 4))), "cannot be read"),
    "rows too short": ("image", ".png", raw(png(8, 2, [b"\0\0\0"])), "cannot be read"),
    "enormous picture": ("image", ".png", raw(png(8, 0, [b""], (40_000, 40_000))), "more pixels than"),
    "enormous text in a picture": ("image", ".png", text_bomb, "cannot be read"),
    "link to nothing": ("image", ".png", lambda path: path.symlink_to("nothing.png"), "does not exist"),
    "link to itself": ("image", ".png", lambda path: path.symlink_to(path.name), "symbolic links"),
    "coloured mask": ("mask", ".png", saved(RGB), "coloured picture of mode RGB"),
    "mask with alpha": ("mask", ".png", saved(np.dstack([colours(CLASSES), SEEN * 255]).astype(np.uint8)), "transparent"),
    "mask with more classes": ("mask", ".png", saved(CLASSES + 1), r"holds class 3; the mask has classes 0 \.\. 2"),
    "mask of large numbers": ("mask", ".png", saved(WIDE), "holds class"),
    "mask in a photo's jpeg": ("mask", ".png", saved(RGB, format="JPEG"), "coloured|holds class"),
    "mask of another shape": ("mask", ".png", saved(CLASSES[:2]), "differ in shape"),
    "empty mask file": ("mask", ".png", raw(b""), "cannot be read as a mask"),
    "three values in two classes": ("two", ".png", saved(CLASSES), "holds the values 0, 1, 2"),
    "greys in two classes": ("two", ".png", saved(GREY), "holds the values"),
    "class numbers among black and white": ("two", ".png", saved(TWO), "holds the values 0, 1; most masks of this data"),
    "one class in numbers": ("two", ".png", saved(TWO * 0 + 1), "holds the values 1; most masks of this data hold 0 and"),
    "0, 1 and 255": ("two", ".png", saved(np.where(SEEN, TWO, 255).astype(np.uint8)), "holds the values 0, 1, 255"),
    "black and red": ("two", ".png", saved(np.dstack([TWO * 255, TWO * 0, TWO * 0])), "coloured picture"),
    "label of no class": ("label", ".txt", raw(b"wasp"), "'wasp' is not a label"),
    "label in another case": ("label", ".txt", raw(b"Ape"), "'Ape' is not a label"),
    "large label": ("label", ".txt", raw(b"3"), "'3' is not a label"),
    "negative label": ("label", ".txt", raw(b"-1"), "'-1' is not a label"),
    "label with a fraction": ("label", ".txt", raw(b"1.0"), "'1.0' is not a label"),
    "label of 5,000 digits": ("label", ".txt", raw(b"7" * 5000), r"'7{40}\.\.\.' is not a label"),
    "two labels": ("label", ".txt", raw(b"0 1"), "'0 1' is not a label"),
    "empty label": ("label", ".txt", raw(b""), "'' is not a label"),
    "label in UTF-16": ("label", ".txt", raw("ape".encode("utf-16")), "cannot be read as a label"),
    "label in Latin-1": ("label", ".txt", raw("na\u00efve bee".encode("latin-1")), "cannot be read as a label"),
    "label of two megabytes": ("label", ".txt", raw(b"0" * 2**21), "more than 1048576 bytes"),
    "label that is a link to nothing": ("label", ".txt", lambda path: path.symlink_to("x"), "cannot be read as a label"),
    "npz called npy": ("vector", ".npy", npz, "an archive"),
    "vector with NaN": ("vector", ".npy", array(VECTOR * np.nan), "NaN or infinite"),
    "vector with infinity": ("vector", ".npy", array(np.full(4, np.inf)), "NaN or infinite"),
    "vector beyond float32": ("vector", ".npy", array(VECTOR * 1e300), "NaN or infinite"),
    "vector of objects": ("vector", ".npy", array(np.array([1, None, "a", 2], object), allow_pickle=True), "cannot be read"),
    "vector of complex numbers": ("vector", ".npy", array(VECTOR * 1j), "complex128"),
    "vector of text": ("vector", ".npy", array(np.array(["1"] * 4)), "<U1"),
    "vector of dates": ("vector", ".npy", array(np.zeros(4, "datetime64[s]")), "datetime64"),
    "vector of records": ("vector", ".npy", array(STRUCTURED), r"holds \[\('a'"),
    "a single number": ("vector", ".npy", array(np.float64(1)), "holds 1 numbers; it should hold 4"),
    "no numbers": ("vector", ".npy", array(np.zeros(0)), "holds 0 numbers"),
    "too many numbers": ("vector", ".npy", array(np.zeros(5)), "holds 5 numbers"),
    "empty npy": ("vector", ".npy", raw(b""), "cannot be read as a vector"),
    "cut npy": ("vector", ".npy", cut(claims("(4,)") + b"\0" * 16, 0.95), "cannot be read as a vector"),
    "npy that claims a terabyte": ("vector", ".npy", raw(claims("(250000000000,)")), "cannot be read as a vector"),
    "npy whose header is code": ("vector", ".npy", raw(claims("(4,)", "__import__('os')")), "cannot be read as a vector"),
    "a pickle": ("vector", ".npy", raw(b"\x80\x04K\x01."), "cannot be read as a vector"),
    "map turned over": ("map", ".npy", array(np.zeros((2, 4, 1))), r"holds \[2, 4, 1\]; it should hold \[2, 2, 2\]"),
}  # fmt: skip

# What is no file of its modality: it is left out, and belongs to nothing.
LEFT_OUT = {
    "pipe": ("image", ".png", os.mkfifo),
    "tiff": ("image", ".tif", saved(RGB, format="TIFF")),
    "mask in a jpeg file": ("mask", ".jpg", saved(CLASSES * 100, format="JPEG")),
    "pipe among labels": ("label", ".txt", os.mkfifo),
    "notes": ("image", ".txt", raw(b"these are my photos")),
}
# Names that are hidden, and a folder, of which nothing is said.
UNSEEN = {
    "._x": ("image", ".png", raw(b"\0\5\x16\7")),
    ".ipynb_checkpoints": ("image", "", lambda path: (path.mkdir(), saved(RGB)(path / "x-checkpoint.png"))),
    "Thumbs": ("image", ".png", lambda path: path.mkdir()),
    "circle": ("image", "", lambda path: path.symlink_to(path.parent)),
}
