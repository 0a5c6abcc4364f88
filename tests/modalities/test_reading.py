"""Files by value: every pixel, also of pictures of other sizes and modes. What is resized is compared with Pillow."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import modalities
from mmfast.errors import MmfastError
from mmfast.modalities import SpaceShape


def read(kind, file, **options):
    return modalities.kind(kind).read(file, modalities.kind(kind).Spec(**options))


def as_floats(pixels):
    return torch.from_numpy(np.asarray(pixels, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


@pytest.fixture
def random():
    return np.random.default_rng(1)


def test_an_image_that_fits_is_its_middle_square(tmp_path, random):
    """7 x 4 pixels: columns 1 to 4; as it is, where only the longer side is too long; and all of one of 4 x 4."""
    pixels = random.integers(0, 256, (4, 7, 3), dtype=np.uint8)
    for name, part, expected in (("wide", pixels, pixels[:, 1:5]), ("all", pixels[:, :4], pixels[:, :4])):
        Image.fromarray(part).save(tmp_path / f"{name}.png")
        found = read("image", tmp_path / f"{name}.png", channels=3, size=4, background="white")
        torch.testing.assert_close(found, as_floats(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [5, 40])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_an_image_of_another_size_is_resized_by_lanczos(tmp_path, random, size, channels, mode):
    picture = Image.fromarray(random.integers(0, 256, (13, 13, 3), dtype=np.uint8))
    picture.save(tmp_path / "x.png")
    found = read("image", tmp_path / "x.png", channels=channels, size=size, background="white")
    resized = picture.convert(mode).resize((size, size), Image.Resampling.LANCZOS)
    torch.testing.assert_close(found, as_floats(np.asarray(resized).reshape(size, size, channels)), atol=1e-6, rtol=0)


def test_of_a_tall_image_the_middle_square_is_resized(tmp_path, random):
    """13 x 21: rows 4 to 16. Lanczos reaches three pixels far, also over the square's edge: compared within."""
    picture = Image.fromarray(random.integers(0, 256, (21, 13, 3), dtype=np.uint8))
    picture.save(tmp_path / "x.png")
    found = read("image", tmp_path / "x.png", channels=3, size=52, background="white")
    expected = as_floats(picture.crop((0, 4, 13, 17)).resize((52, 52), Image.Resampling.LANCZOS))
    torch.testing.assert_close(found[:, 12:-12], expected[:, 12:-12], atol=1e-6, rtol=0)


def test_a_mask_of_another_size_keeps_its_classes(tmp_path, random):
    """8 x 16: every second pixel of its middle."""
    tall = random.integers(0, 5, (16, 8), dtype=np.uint8)
    Image.fromarray(tall).save(tmp_path / "x.png")
    assert read("mask", tmp_path / "x.png", classes=5, size=4).tolist() == tall[4:12][1::2, 1::2].tolist()


def test_a_masks_palette_is_read_as_numbers(tmp_path, random):
    """Whatever its colours."""
    pixels = random.integers(0, 3, (4, 4), dtype=np.uint8)
    picture = Image.frombytes("P", (4, 4), pixels.tobytes())
    picture.putpalette([200, 0, 0, 0, 200, 0, 7, 7, 200])
    picture.save(tmp_path / "x.png")
    assert read("mask", tmp_path / "x.png", classes=3, size=4).tolist() == pixels.tolist()


def test_a_mask_may_be_black_and_white(tmp_path):
    """Split at 127, where edges are smoothed."""
    pixels = np.array([[0, 127, 0], [255, 128, 255], [0, 0, 255]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "two.png")
    assert read("mask", tmp_path / "two.png", classes=2, size=3).tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 1]]
    Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).save(tmp_path / "three.png")
    with pytest.raises(MmfastError, match=r"three.png holds class 3; the mask has classes 0 .. 2"):
        read("mask", tmp_path / "three.png", classes=3, size=2)


def test_what_is_half_transparent_is_hidden(tmp_path, random):
    """An alpha of 128 shows, one of 127 hides; 4 x 6 pixels: rows 1 to 4, of the colours and of the alpha."""
    pixels = random.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    pixels[..., 3] = random.choice([0, 1, 127, 128, 254, 255], (6, 4))
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = read("masked", tmp_path / "x.png", channels=3, size=4)
    torch.testing.assert_close(found[:3], as_floats(pixels[1:5, :, :3]), atol=1e-6, rtol=0)
    assert found[3].tolist() == (pixels[1:5, :, 3] >= 128).astype(float).tolist()


def test_labels_by_number_and_by_name(tmp_path):
    spec = {"classes": 3, "names": ["ape", "bee", "10"]}
    for text, expected in (("0", 0), (" 2\n", 2), ("bee", 1), ("10", 2)):
        (tmp_path / "x.txt").write_text(text)
        assert int(read("label", tmp_path / "x.txt", **spec)) == expected
    for text in ("3", "-1", "Bee", ""):
        (tmp_path / "x.txt").write_text(text)
        with pytest.raises(MmfastError, match=r"is not a label; it should be in 0 .. 2 or one of ape, bee, 10"):
            read("label", tmp_path / "x.txt", **spec)


def test_a_name_of_two_classes_says_neither(tmp_path):
    """As a crane is a bird, and a machine."""
    spec = {"classes": 4, "names": ["crane", "ape", "crane", "bee"]}
    for text, expected in (("ape", 1), ("0", 0), ("2", 2)):
        (tmp_path / "x.txt").write_text(text)
        assert int(read("label", tmp_path / "x.txt", **spec)) == expected
    (tmp_path / "x.txt").write_text("crane")
    with pytest.raises(MmfastError, match=r"x.txt: 'crane' is the name of classes 0, 2; it should be a number$"):
        read("label", tmp_path / "x.txt", **spec)


def test_an_error_names_some_of_many_classes(tmp_path):
    (tmp_path / "x.txt").write_text("ape")
    for count, end in ((20, "c19$"), (1000, r"c19, \.\.\.$")):
        with pytest.raises(MmfastError, match=rf"it should be in 0 \.\. {count - 1} or one of c0, c1, .*{end}"):
            read("label", tmp_path / "x.txt", classes=count, names=[f"c{k}" for k in range(count)])


def test_a_label_may_begin_with_a_byte_order_mark_and_is_no_long_number(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf2\r\n")
    assert int(read("label", tmp_path / "x.txt", classes=3, names=[])) == 2
    (tmp_path / "x.txt").write_text("7" * 5000)
    with pytest.raises(MmfastError, match=r"x\.txt: '7{40}\.\.\.' is not a label"):
        read("label", tmp_path / "x.txt", classes=3, names=[])


def huge():
    """The file of a vector that claims 10^12 numbers."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def test_a_vector_is_read_or_an_error_of_one_line(tmp_path):
    file = tmp_path / "x.npy"
    for array in (np.arange(3.0), np.arange(3), np.array([[1, 0, 1]], bool), np.arange(6.0)[::2]):
        np.save(file, array)
        assert read("embedding", file, dim=3).tolist() == array.reshape(-1).tolist()
    np.savez(tmp_path / "x.npz", np.arange(3.0))
    archive = (tmp_path / "x.npz").read_bytes()
    np.save(file, np.array([1j, 2, 3]))
    of_complex = file.read_bytes()
    np.save(file, np.array(["a", "b", "c"]))
    of_text = file.read_bytes()
    np.save(file, np.array([None, 1, 2], object), allow_pickle=True)
    for content, match in (
        (archive, "an archive"), (of_complex, "complex128"), (of_text, "U1"), (file.read_bytes(), "cannot be read"),
        (b"", "cannot be read"), (huge(), "cannot be read"), (huge()[:40], "cannot be read"),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(MmfastError, match=match) as error:
            read("embedding", file, dim=3)
        assert "x.npy" in str(error.value) and "\n" not in str(error.value)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(MmfastError, match=r"x\.npy is not a file"):
        read("embedding", file, dim=3)


@pytest.mark.parametrize(("length", "shown"), [(40, "y" * 40), (41, "y" * 40 + "...")])
def test_of_a_long_text_that_is_no_label_the_beginning_is_said(length, shown):
    spec = modalities.kind("label").Spec(classes=2, names=["no", "yes"])
    part = modalities.kind("label")("of", spec, SpaceShape(4, 4))
    with pytest.raises(
        MmfastError, match=rf"of=y+: '{shown}' is not a label; it should be in 0 \.\. 1 or one of no, yes"
    ):
        part.parse("y" * length)
    assert [part.parse(x).item() for x in ("no", "yes", "1", "0")] == [0, 1, 1, 0]
    assert part.values("all") == ["0", "1"] and part.values("no,1") == ["no", "1"] and part.values("no") == ["no"]
    assert part.values("no, 1 ") == ["no", "1"]
    assert part.plain(torch.tensor(1)) == "yes" and part.class_name(0) == "no"
    spaced = modalities.kind("label").Spec(classes=2, names=["no", " yes"])
    assert modalities.kind("label")("of", spaced, SpaceShape(4, 4)).values("no, yes") == ["no", " yes"]


def test_names_are_one_a_class():
    for names in (["a"], ["a", "b", "c"]):
        with pytest.raises(MmfastError, match=rf"modalities\.x\.names has {len(names)} names; it should have 2"):
            modalities.kind("label")("x", modalities.kind("label").Spec(classes=2, names=names), SpaceShape(4, 4))


@pytest.mark.parametrize(("classes", "ignore", "mode"), [(256, None, "P"), (257, None, "I;16"), (2, 255, "P"),
                                                         (2, 256, "I;16"), (2, 300, "I;16")])  # fmt: skip
def test_masks_of_many_classes_are_written_with_16_bits_and_read_back(tmp_path, classes, ignore, mode):
    """A byte has room for 255."""
    part = modalities.kind("mask")
    spec = part.Spec(classes=classes, size=4, ignore=ignore)
    x = torch.tensor([0, 1, classes - 1, 0 if ignore is None else -1]).repeat(4, 1)
    picture = part("x", spec, SpaceShape(4, 4)).plain(x)
    assert picture.mode == mode
    picture.save(tmp_path / "x.png")
    assert torch.equal(part.read(tmp_path / "x.png", spec), x)
