"""Rectangles of every kind that has pixels: read by value, shown, hidden in blocks, as cells and as latents."""

import numpy as np
import pytest
import torch
from PIL import Image
from rectangles import H, W, as_floats, config, parts, spec

from mmfast import modalities
from mmfast.build import build_model
from mmfast.data.items import x_of
from mmfast.errors import MmfastError
from mmfast.generate import generate
from mmfast.modalities import SpaceShape
from mmfast.pictures import sample_grid


def test_a_picture_of_that_shape_is_resized_whole(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "x.png")
    resized = as_floats(picture.resize((32, 16), Image.Resampling.LANCZOS))
    found = modalities.kind("image").read(tmp_path / "x.png", spec("image", size=[16, 32]))
    assert tuple(found.shape) == (3, 16, 32)
    torch.testing.assert_close(found, resized, atol=1e-6, rtol=0)
    torch.testing.assert_close(x_of(spec("image", size=[16, 32]), picture, "x"), resized, atol=1e-6, rtol=0)
    torch.testing.assert_close(x_of(spec("image", size=[16, 32]), pixels, "x"), resized, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "size", "part"), [
    ((20, 50), [20, 40], np.s_[:, 5:45]),
    ((50, 20), [40, 20], np.s_[5:45, :]),
    ((20, 50), [20, 50], np.s_[:, :]),
])  # fmt: skip
def test_the_middle_is_taken_of_image_mask_alpha_and_what_is_known(tmp_path, shape, size, part):
    """Not resized, so that every pixel is the file's."""
    rng = np.random.default_rng(2)
    pixels, mask = rng.integers(0, 256, (*shape, 4), dtype=np.uint8), rng.integers(0, 5, shape, dtype=np.uint8)
    pixels[..., 3] = rng.choice(np.array([0, 255], np.uint8), shape)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "x.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = modalities.kind("image").read(tmp_path / "x.png", spec("image", size=size))
    torch.testing.assert_close(found, as_floats(pixels[part][..., :3]), atol=1e-6, rtol=0)
    numbers = modalities.kind("mask").read(tmp_path / "m.png", spec("mask", size=size, classes=5))
    assert numbers.tolist() == mask[part].tolist()
    hidden = modalities.kind("masked").read(tmp_path / "a.png", spec("masked", size=size))
    assert hidden[-1].tolist() == (pixels[part][..., 3] / 255).tolist()
    image = modalities.kind("image")("image", spec("image", size=size), SpaceShape(*size))
    Image.fromarray(pixels[..., 3]).save(tmp_path / "k.png")
    known = image.parse_known(str(tmp_path / "k.png"))
    assert known.shape == (3, *size) and known[1].tolist() == (pixels[part][..., 3] > 127).tolist()


def test_what_is_cropped_and_resized_is_the_middle(tmp_path):
    """50 x 20 as 64 x 32 pixels: columns 5 to 44, enlarged. Lanczos reaches over the edge: compared within."""
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / "x.png")
    found = modalities.kind("image").read(tmp_path / "x.png", spec("image", size=[32, 64]))
    expected = as_floats(picture.crop((5, 0, 45, 20)).resize((64, 32), Image.Resampling.LANCZOS))
    torch.testing.assert_close(found[:, :, 6:-6], expected[:, :, 6:-6], atol=1e-6, rtol=0)


def test_a_picture_of_a_picture_keeps_its_shape():
    x = torch.linspace(-1, 1, 3 * 2 * 4).reshape(3, 2, 4)
    image = modalities.kind("image")("image", spec("image", size=[2, 4]), SpaceShape(2, 4))
    plain = image.plain(x)
    assert plain.size == (4, 2) and np.abs(as_floats(plain).numpy() - x.numpy()).max() < 1 / 127
    shown = image.show(x, 64)
    assert shown.size == (64, 32) and shown.getpixel((63, 31)) == plain.getpixel((3, 1))
    mask = modalities.kind("mask")("mask", spec("mask", size=[4, 2]), SpaceShape(4, 2))
    assert mask.show(torch.zeros(4, 2, dtype=torch.int64), 64).size == (32, 64)
    masked = modalities.kind("masked")("m", spec("masked", size=[2, 4], of="image"), SpaceShape(2, 4))
    assert masked.show(torch.zeros(4, 2, 4), 64).size == (64, 32)
    page = np.asarray(sample_grid({"image": image}, {"image": x[None]}, "x"))
    top = next(y for y in range(page.shape[0]) if (page[y, 20] == np.asarray(shown)[0, 12]).all())
    assert (page[top : top + 32, 8 : 8 + 64] == np.asarray(shown)).all()
    assert top == 46 + (64 - 32) // 2  # in the middle of its place


def test_hidden_blocks_and_feature_maps():
    """Blocks of 4 of 8 x 16 pixels: 2 rows of 4; cells of 4 x 4 pixels."""
    made = parts() | {
        "masked": {"kind": "masked", "size": [H, W], "block": 4, "ratios": [0.5, 0.5]},
        "map": {"kind": "feature_map", "dim": 2, "cells": [2, 4]},
    }
    model = build_model(config(made, "unet"))
    image = torch.rand(3, 3, H, W) * 2 - 1
    seen = model.part("masked").derive(image, 0, torch.arange(3))[:, -1]
    blocks = seen.reshape(3, 2, 4, 4, 4).amin((2, 4))
    assert torch.equal(blocks.repeat_interleave(4, 1).repeat_interleave(4, 2), seen)
    assert blocks.sum((1, 2)).tolist() == [4.0] * 3
    cells = torch.randn(1, 2, 2, 4)
    laid = model.part("map").encode(cells)
    assert laid.shape == (1, 2, H, W)
    unit = cells / cells.square().mean().sqrt()
    torch.testing.assert_close(laid, unit.repeat_interleave(4, 2).repeat_interleave(4, 3), atol=1e-5, rtol=1e-4)
    drawn = generate(model, config(made, "unet"), 1)
    assert drawn["map"].shape == (1, 2, 2, 4) and drawn["masked"].shape == (1, 4, H, W)
    with pytest.raises(MmfastError, match=r"map.cells is \[3, 4\]; it should divide the image's 8 x 16"):
        build_model(config(made | {"map": {"kind": "feature_map", "dim": 2, "cells": [3, 4]}}))


def test_latents_have_the_images_shape(tmp_path, monkeypatch):
    (tmp_path / "halves.py").write_text(
        "import torch.nn.functional as F\n"
        "class Net:\n"
        "    def encode(self, x): return F.pixel_unshuffle(x, 2)\n"
        "    def decode(self, z): return F.pixel_shuffle(z, 2)\n"
        "class Tall(Net):\n"
        "    def encode(self, x): return F.pixel_unshuffle(x, 2).transpose(2, 3)\n"
        "    def decode(self, z): return F.pixel_shuffle(z.transpose(2, 3), 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("mmfast.trust.check_code", lambda *_: None)
    image = {"kind": "image", "channels": 3, "size": [H, W], "autoencoder": {"network": "halves:Net"}}
    made = config({"image": image}, "unet")
    model = build_model(made)
    assert model.shape == (12, H // 2, W // 2) and generate(model, made, 1)["image"].shape == (1, 3, H, W)
    image["autoencoder"] = {"network": "halves:Tall"}
    with pytest.raises(MmfastError, match=r"\[1, 12, 8, 4\] .* should be \[1, channels, rows, columns\]"):
        build_model(config({"image": image}, "unet"))
