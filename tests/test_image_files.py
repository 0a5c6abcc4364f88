"""Picture files of every kind that people have: the right value, or one line with the file's name."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from mmfast.errors import MmfastError
from mmfast.image_files import load_picture, picture_in, read_header, upright
from mmfast.modalities.base import SpaceShape
from mmfast.modalities.image import read_image
from mmfast.modalities.mask import Mask, MaskSpec
from mmfast.modalities.masked_image import Masked, MaskedSpec

SIZE = 8


def read_mask(path, classes, size):
    return Mask.read(path, MaskSpec(classes=classes, size=size))


# In EXIF's numbering, what the viewer has to do: Pillow's names.
T = PILImage.Transpose
ORIENTATIONS = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 6: T.ROTATE_270, 8: T.ROTATE_90}


@pytest.fixture
def random():
    return np.random.default_rng(0)


def turned(path, picture, orientation):
    """The picture stored so that a viewer who turns it by its EXIF data sees it as it is."""
    undo = {T.ROTATE_90: T.ROTATE_270, T.ROTATE_270: T.ROTATE_90}
    how = ORIENTATIONS[orientation]
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    picture.transpose(undo.get(how, how)).save(path, exif=exif, lossless=True)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("ending", ["png", "webp"])
def test_a_photo_stands_upright(tmp_path, random, orientation, ending):
    pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    turned(tmp_path / f"x.{ending}", PILImage.fromarray(pixels), orientation)
    found = read_image(tmp_path / f"x.{ending}", 3, SIZE, None)
    np.testing.assert_allclose((found.permute(1, 2, 0).numpy() + 1) * 127.5, pixels, atol=1e-4)


def test_a_mask_and_what_is_transparent_stand_upright(tmp_path, random):
    classes = random.integers(0, 3, (SIZE, SIZE), dtype=np.uint8)
    turned(tmp_path / "m.png", PILImage.fromarray(classes), 6)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 3, SIZE).numpy(), classes)
    pixels = random.integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
    turned(tmp_path / "a.png", PILImage.fromarray(pixels), 8)
    seen = Masked.read(tmp_path / "a.png", MaskedSpec(channels=3, size=SIZE))[3]
    np.testing.assert_array_equal(seen.numpy(), pixels[..., 3] > 127)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_range(tmp_path, channels):
    ramp = np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    PILImage.fromarray(ramp).save(tmp_path / "x.png")
    found = read_image(tmp_path / "x.png", channels, SIZE, "white")
    assert found.shape == (channels, SIZE, SIZE)
    for plane in found.numpy():
        np.testing.assert_allclose(plane, ramp / 65535 * 2 - 1, atol=1e-5)


def test_sixteen_bits_of_a_mask_are_numbers(tmp_path):
    classes = np.array([[0, 300], [299, 7]], np.uint16)
    PILImage.fromarray(classes).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 301, 2).numpy(), classes)
    with pytest.raises(MmfastError, match=r"m\.png holds class 300; the mask has classes 0 \.\. 299"):
        read_mask(tmp_path / "m.png", 300, 2)


@pytest.mark.parametrize(("background", "behind"), [("white", 255), ("#102030", (16, 32, 48))])
def test_the_background_shows_through_transparent_pixels(tmp_path, background, behind):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 0], pixels[0, :, 3], pixels[1, 0, 3] = 255, 255, 51  # red: whole, a fifth, not at all
    PILImage.fromarray(pixels).save(tmp_path / "x.png")
    found = (read_image(tmp_path / "x.png", 3, 2, background).permute(1, 2, 0).numpy() + 1) * 127.5
    red, behind = np.array([255, 0, 0]), np.broadcast_to(behind, 3)
    np.testing.assert_allclose(found[0], [red, red], atol=1e-3)
    np.testing.assert_allclose(found[1], [0.2 * red + 0.8 * behind, behind], atol=0.51)


def test_a_palette_with_a_transparent_colour(tmp_path):
    picture = PILImage.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "x.png", transparency=1)
    found = (read_image(tmp_path / "x.png", 3, 2, "white").permute(1, 2, 0).numpy() + 1) * 127.5
    np.testing.assert_allclose(found, [[[255, 0, 0], [255] * 3], [[255] * 3, [255, 0, 0]]], atol=1e-3)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n"
TIFF = b"II*\x00\x08\x00\x00\x00" + bytes(40)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb():
    """The header of a PNG of 400 megapixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def broken_chunk(whole):
    return whole[:20] + bytes([whole[20] ^ 255]) + whole[21:]


@pytest.mark.parametrize(
    "read", [lambda p: read_image(p, 3, 4, None), lambda p: read_mask(p, 3, 4)], ids=["image", "mask"]
)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda whole: POSTSCRIPT, "none of PNG"),
        (lambda whole: TIFF, "none of PNG"),
        (lambda whole: b"", "none of PNG"),
        (lambda whole: b"hello", "none of PNG"),
        (lambda whole: whole[: len(whole) // 2], "cannot be read"),
        (broken_chunk, "cannot be read"),
        (lambda whole: bomb(), "more pixels than a (picture|mask) may have, 179 million; .*MMFAST_MEGAPIXELS"),
    ],
)
def test_what_is_no_picture_is_an_error_of_one_line(tmp_path, random, read, damage, reason):
    path = tmp_path / "x.png"
    PILImage.fromarray(random.integers(0, 3, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MmfastError, match=reason) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_never_end_otherwise(tmp_path, random, seed):
    """A byte changed, bytes cut or added, anywhere in files of every format: pixels or an error."""
    random = np.random.default_rng(seed)
    picture = PILImage.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for ending in ("png", "jpg", "webp", "bmp", "gif"):
        path = tmp_path / f"x.{ending}"
        picture.save(path)
        whole = path.read_bytes()
        for _ in range(40):
            at = int(random.integers(len(whole)))
            changed = bytes([whole[at] ^ int(random.integers(1, 256))])
            damaged = whole[:at] + changed + whole[at + 1 :], whole[:at], whole[:at] + changed + whole[at:]
            path.write_bytes(damaged[at % 3])
            try:
                assert load_picture(path).size
            except MmfastError as error:
                assert path.name in str(error)


def test_the_size_limit_of_pictures_can_be_raised(tmp_path, monkeypatch):
    """By the user's own variable: a picture of 20,200 pixels, with a limit of 20,000 and of 20,200."""
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", PILImage.MAX_IMAGE_PIXELS)
    path = tmp_path / "x.png"
    PILImage.new("L", (202, 100)).save(path)
    monkeypatch.setenv("MMFAST_MEGAPIXELS", "0.02")
    with pytest.raises(MmfastError, match=r"x.png has more pixels than a picture may have, 0.02 million; "):
        load_picture(path)
    with pytest.raises(MmfastError, match=r"more pixels"):
        read_header(path)
    with pytest.raises(MmfastError, match=r"more pixels"):
        picture_in(path.read_bytes(), "x")
    monkeypatch.setenv("MMFAST_MEGAPIXELS", "0.0202")
    with pytest.warns(PILImage.DecompressionBombWarning):
        assert load_picture(path).size == (202, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MmfastError, match=r"more pixels"):
            load_picture(path)
    for odd in ("many", "-1", "0", "nan", "inf"):
        monkeypatch.setenv("MMFAST_MEGAPIXELS", odd)
        with pytest.raises(MmfastError, match=f"MMFAST_MEGAPIXELS is '{odd}'; it should be"):
            load_picture(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MmfastError, match=r"x\.png does not exist$"):
        load_picture(tmp_path / "x.png")


def edges():
    """A white disc on black, as a program that smooths edges draws it: 0, 255 and what lies between."""
    y, x = np.mgrid[:32, :32] - 15.5
    return (np.clip(10.5 - np.hypot(x, y), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (np.array([[0, 1], [1, 0]]), [[0, 1], [1, 0]]),
        (np.array([[0, 255], [255, 0]]), [[0, 1], [1, 0]]),
        (np.array([[1, 1], [1, 1]]), [[1, 1], [1, 1]]),
        (np.array([[255, 255], [255, 255]]), [[1, 1], [1, 1]]),
        (np.array([[3, 252], [250, 5]]), [[0, 1], [1, 0]]),
        (edges(), (edges() > 127).astype(int)),
        (np.array([[0, 1], [255, 0]]), None),
        (np.array([[0, 1], [2, 0]]), None),
        (np.array([[0, 100], [100, 0]]), None),
        (np.array([[0, 128], [255, 128]]), None),
    ],
)
def test_two_classes_are_0_and_1_or_black_and_white(tmp_path, values, classes):
    PILImage.fromarray(values.astype(np.uint8)).save(tmp_path / "m.png")
    if classes is None:
        with pytest.raises(MmfastError, match=r"m\.png holds the values .* should hold 0 and 1, or 0 and 255"):
            read_mask(tmp_path / "m.png", 2, len(values))
    else:
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 2, len(values)).numpy(), classes)


def test_two_classes_are_decided_on_the_whole_file(tmp_path):
    """Outside the middle square there is white: so a 1 inside is no class, and the file is unclear."""
    values = np.zeros((4, 16), np.uint8)
    values[:, 6:8], values[:, 0] = 1, 255
    PILImage.fromarray(values).save(tmp_path / "m.png")
    with pytest.raises(MmfastError, match="holds the values 0, 1, 255"):
        read_mask(tmp_path / "m.png", 2, 4)


@pytest.mark.parametrize(
    ("mode", "pixel", "found"),
    [("RGB", (2, 2, 2), 2), ("RGBA", (1, 1, 1, 255), 1), ("LA", (2, 255), 2), ("RGB", (2, 0, 0), "coloured"),
     ("RGBA", (1, 1, 1, 0), "transparent"), ("CMYK", (9, 0, 0, 0), "coloured")],
)  # fmt: skip
def test_a_mask_in_colour_is_refused_unless_it_is_grey(tmp_path, mode, pixel, found):
    ending = "jpg" if mode == "CMYK" else "png"
    PILImage.new(mode, (4, 4), pixel).save(tmp_path / f"m.{ending}")
    if isinstance(found, int):
        assert (read_mask(tmp_path / f"m.{ending}", 3, 4) == found).all()
    else:
        with pytest.raises(MmfastError, match=rf"m\.{ending} .*{found}"):
            read_mask(tmp_path / f"m.{ending}", 3, 4)


def test_a_picture_in_memory_is_called_by_where_it_came_from():
    with pytest.raises(MmfastError, match=r"^example 5 of pets cannot be read as a mask: "):
        picture_in(b"no picture", "example 5 of pets", "mask")


def test_an_opened_picture_that_is_cut_is_called_by_where_it_came_from():
    file = io.BytesIO()
    PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
    cut = PILImage.open(io.BytesIO(file.getvalue()[:5000]))
    with pytest.raises(MmfastError, match=r"^example 5 of pets cannot be read as a mask: "):
        upright(cut, "example 5 of pets", "mask")


def test_a_mask_of_colours_has_the_classes_of_its_list(tmp_path):
    """In the order of the list, whatever the picture's mode; saved again it is the same picture."""
    colours = ["#000000", "red", "#00ff00", "#123456"]
    rgb = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0x12, 0x34, 0x56]], np.uint8)
    numbers = np.array([[0, 3, 1], [2, 2, 0], [1, 1, 3]])
    spec = MaskSpec(classes=4, size=3, colours=colours)
    picture = PILImage.fromarray(rgb[numbers])
    for name, saved in (("rgb", picture), ("rgba", picture.convert("RGBA")), ("palette", picture.quantize(4))):
        saved.save(tmp_path / f"{name}.png")
        assert (Mask.read(tmp_path / f"{name}.png", spec).numpy() == numbers).all()
    part = Mask("mask", spec, SpaceShape(3, 3))
    x = torch.from_numpy(numbers)
    part.plain(x).save(tmp_path / "again.png")
    assert (Mask.read(tmp_path / "again.png", spec).numpy() == numbers).all()
    assert (np.asarray(part.show(x, 3)) == rgb[numbers]).all()
    # The number of a colour may be ignored, as that of a class may.
    ignoring = MaskSpec(classes=3, size=3, colours=colours, ignore=3)
    assert (Mask.read(tmp_path / "rgb.png", ignoring).numpy() == np.where(numbers == 3, -1, numbers)).all()
    x = Mask.read(tmp_path / "rgb.png", ignoring)
    Mask("mask", ignoring, SpaceShape(3, 3)).plain(x).save(tmp_path / "ignored.png")
    assert torch.equal(Mask.read(tmp_path / "ignored.png", ignoring), x)
    two = MaskSpec(classes=2, size=3, colours=["#ffffff", "#000000"])
    PILImage.fromarray(np.uint8([[0, 255, 0]] * 3)).save(tmp_path / "two.png")
    assert Mask.read(tmp_path / "two.png", two).tolist() == [[1, 0, 1]] * 3
    few = MaskSpec(classes=4, size=3, colours=colours[:3])
    with pytest.raises(MmfastError, match=r"rgb\.png has the colour #123456, which is none of the mask's 3 colours"):
        Mask.read(tmp_path / "rgb.png", few)
    for wrong, said in ((["red", "#ff0000"], "each class should have one"), (["rot", "red"], "it should be a colour")):
        with pytest.raises(MmfastError, match=said):
            Mask.read(tmp_path / "rgb.png", MaskSpec(classes=2, size=3, colours=wrong))
