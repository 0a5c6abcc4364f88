"""Pictures of every modality by value, pixel for pixel; and how encodings lie over the grid."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from mmfast import MmfastError, modalities
from mmfast.modalities import SpaceShape


def make(kind, height=8, width=8, shared=None, **options):
    part = modalities.kind(kind)
    return part("x", part.Spec(**options), SpaceShape(height, width, shared))


def shown(part, x, size):
    picture = part.show(torch.as_tensor(x), size)
    assert picture.mode == "RGB"
    return np.asarray(picture).tolist()


def test_an_image_is_shown_pixel_by_pixel():
    """-1 is black and 1 is white, what lies beyond too."""
    x = torch.tensor([[[-3.0, -0.5], [0.0, 3.0]]])
    grey = [[[0] * 3, [64] * 3], [[128] * 3, [255] * 3]]
    part = make("image", channels=1, size=2)
    assert shown(part, x, 2) == grey and np.asarray(part.plain(x)).tolist() == [[0, 64], [128, 255]]
    assert shown(part, x, 4) == [[p for p in row for _ in "ab"] for row in grey for _ in "ab"]
    colour = torch.stack((x[0], -x[0], 0 * x[0]))
    assert shown(make("image", channels=3, size=2), colour, 2)[0] == [[0, 255, 128], [64, 191, 128]]


def test_a_vector_is_shown_as_cells_of_red_and_blue():
    """White is 0, red above and blue below, at half the value at unit RMS; what is left of the square is white."""
    part = make("embedding", dim=3)
    a = int((1 - np.sqrt(1.5) / 2) * 255)  # 1, -1 and 0 have an RMS of sqrt(2/3)
    assert shown(part, [5.0, -5.0, 0.0], 2) == [[[255, a, a], [a, a, 255]], [[255] * 3, [255] * 3]]
    assert shown(make("embedding", dim=5), [9.0, 0, 0, 0, -9.0], 3)[0][0] == [255, 53, 53]  # sqrt(2.5) / 2 = 0.79
    assert shown(make("embedding", dim=9), [9.0, *[0] * 8], 3)[0][0] == [255, 0, 0]  # 3 / 2 is beyond 1


def test_a_map_is_shown_by_its_first_three_numbers():
    ones = torch.ones(4, 2, 2) * torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None, None]
    ones[0, 0, 1], ones[1, 1, 0] = -1.0, 1.0
    of = {1.0: 191, -1.0: 64, 0.0: 128}
    for dim in (4, 3, 2, 1):
        x = ones[:dim]
        channels = [x[c] if c < dim else torch.zeros(2, 2) for c in range(3)]
        wanted = [[[of[float(c[i, j])] for c in channels] for j in range(2)] for i in range(2)]
        assert shown(make("feature_map", dim=dim, cells=2), 7 * x, 2) == wanted


def test_the_seen_parts_of_an_image_are_shown_over_a_board():
    x = torch.ones(2, 8, 8)
    x[1, :4] = 0
    found = np.asarray(make("masked", channels=1, size=8, block=8).show(x, 8))[..., 0]
    light, dark = (round((v + 1) * 127.5) for v in (-0.25, -0.4))
    board = [[light if (i // 2 + j // 2) % 2 else dark for j in range(8)] for i in range(4)]
    assert found.tolist() == [*board, *[[255] * 8] * 4]
    small = np.asarray(make("masked", channels=1, size=8, block=2).show(x, 8))[..., 0]
    assert small[:2, :2].tolist() == [[dark, light], [light, dark]]  # of one pixel at the least
    plain = make("masked", channels=1, size=8).plain(x)
    alpha = np.asarray(plain)[..., -1]
    assert (alpha[:4] == 0).all() and (alpha[4:] == 255).all() and (np.asarray(plain)[4:, :, 0] == 255).all()


def test_a_mask_has_a_colour_for_each_class():
    x = torch.arange(4).reshape(2, 2)
    found = shown(make("mask", classes=4, size=2), x, 2)
    hues = [found[0][1], found[1][0], found[1][1]]
    assert found[0][0] == [20, 20, 30] and len({*map(tuple, hues)}) == 3
    # Saturation 0.65 and value 0.95; the hues 0.618 of a circle apart.
    assert all(max(c) == 242 and min(c) == 84 for c in hues)
    turns = [colorsys.rgb_to_hsv(*(v / 255 for v in c))[0] for c in hues]
    assert turns == pytest.approx([(0.47 + 0.618 * k) % 1 for k in range(3)], abs=0.01)


def test_a_picture_in_hand_is_taken_as_a_file_is(tmp_path):
    rng = np.random.default_rng(0)
    picture = Picture.fromarray(rng.integers(0, 256, (6, 6, 4), dtype=np.uint8))
    picture.save(tmp_path / "x.png")
    for kind, options in (("image", {"channels": 3, "size": 4, "background": "#102030"}),
                          ("masked", {"channels": 3, "size": 4})):  # fmt: skip
        part, spec = modalities.kind(kind), modalities.kind(kind).Spec(**options)
        assert torch.equal(part.from_picture(picture, spec, "x"), part.read(tmp_path / "x.png", spec))
    numbers = Picture.fromarray(rng.integers(0, 3, (6, 6), dtype=np.uint8))
    numbers.save(tmp_path / "m.png")
    mask, spec = modalities.kind("mask"), modalities.kind("mask").Spec(classes=3, size=4)
    assert torch.equal(mask.from_picture(numbers, spec, "x"), mask.read(tmp_path / "m.png", spec))
    with pytest.raises(MmfastError, match="a picture is a picture, which cannot be converted to kind label"):
        modalities.kind("label").from_picture(numbers, None, "a picture")


def test_blanks_are_zeros_of_the_right_shape():
    blanks = {"image": ((3, 4, 4), {"size": 4}), "mask": ((4, 4), {"size": 4}), "label": ((), {}),
              "embedding": ((5,), {"dim": 5}), "masked": ((4, 5, 5), {"size": 5})}  # fmt: skip
    for kind, (shape, options) in blanks.items():
        part = modalities.kind(kind)
        x = part.blank(part.Spec(**options))
        assert tuple(x.shape) == shape and not x.any()
        assert x.is_floating_point() != (kind in ("mask", "label"))


# --- encodings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "channels", "copies"), [(64, 1, 1), (65, 2, 1), (30, 1, 2), (20, 1, 3)])
def test_a_vector_lies_over_the_grid_in_whole_copies(dim, channels, copies):
    part = make("embedding", dim=dim)
    x = torch.randn(2, dim, generator=torch.Generator().manual_seed(0))
    laid = part.encode(x)
    assert part.channels == channels and laid.shape == (2, channels, 8, 8) and not part.uniform
    flat, unit = laid.flatten(1), x / x.square().mean(1, keepdim=True).sqrt()
    scale = (channels * 64 / (copies * dim)) ** 0.5
    torch.testing.assert_close(flat[:, : copies * dim], scale * unit.repeat(1, copies))
    assert not flat[:, copies * dim :].any()
    torch.testing.assert_close(laid.square().flatten(1).mean(1), torch.ones(2))


def test_a_vector_lies_over_a_grid_that_is_no_square():
    part = make("embedding", 8, 4, dim=30)
    x = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    E = part.encode(x)
    assert E.shape == (2, 1, 8, 4) and not E.flatten(1)[:, 30:].any()
    torch.testing.assert_close(E.square().flatten(1).mean(1), torch.ones(2))


def test_a_vector_in_channels_is_the_same_at_every_pixel():
    part = make("embedding", dim=5, layout="channels")
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert part.channels == 5 and part.uniform and part.shown_channels == 5
    torch.testing.assert_close(part.encode(x), (x / x.square().mean(1, keepdim=True).sqrt())[..., None, None])
    assert not make("embedding", dim=5, layout="channels", shared=5).uniform  # of shared channels
    with pytest.raises(MmfastError, match=r"layout is channels, which has 5 of them; there are 3 shared ones"):
        make("embedding", dim=5, layout="channels", shared=3)
    with pytest.raises(MmfastError, match=r"dim is 65; 1 channels of 8 x 8 hold 64"):
        make("embedding", dim=65, shared=1)


@pytest.mark.parametrize(("dim", "shared", "channels", "grid"), [(5, None, 5, 1), (40, None, 32, 1), (40, 3, 3, 8)])
def test_a_learned_vector_is_projected(dim, shared, channels, grid):
    part = make("embedding", dim=dim, encoder="learned", shared=shared)
    x = torch.randn(2, dim, generator=torch.Generator().manual_seed(0))
    E = part.encode(x)
    assert part.channels == channels and E.shape == (2, channels, grid, grid) and part.uniform is (shared is None)
    assert [name for name, _ in part.proj.named_parameters()] == ["weight"]
    y = x.double() @ part.proj.weight.detach().double().T
    torch.testing.assert_close(
        E.detach().flatten(1).double(), y / y.square().mean(1, keepdim=True).sqrt(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_parts_have_a_plane_beside_their_image(channels):
    part = make("masked", channels=channels, size=8)
    x = torch.rand(2, channels + 1, 8, 8)
    assert part.encode(x).shape == x.shape == (2, part.channels, 8, 8) and part.shown_channels == 1
    part.check(x, "x")


@pytest.mark.parametrize("shared", [None, 3])
def test_a_learned_image_is_convolved(shared):
    part = make("image", shared=shared, channels=1, size=8, encoder="learned")
    assert tuple(part.conv.weight.shape) == (shared or 1, 1, 3, 3)
    assert part.encode(torch.ones(2, 1, 8, 8)).shape == (2, shared or 1, 8, 8)


def test_a_learned_map_is_projected_cell_by_cell():
    part = make("feature_map", dim=3, cells=2, encoder="learned", shared=2)
    assert {name: tuple(p.shape) for name, p in part.proj.named_parameters()} == {"weight": (2, 3, 1, 1)}
    for height, width in ((8, 6), (6, 8)):
        with pytest.raises(MmfastError, match=rf"cells is 4; it should divide the image's {height} x {width}"):
            make("feature_map", height, width, cells=4)


def test_the_header_of_an_array_has_a_longest_length(tmp_path):
    part, file = modalities.kind("embedding"), tmp_path / "x.npy"
    np.save(file, np.zeros(2))
    whole = file.read_bytes()
    text = whole[10 : 10 + int.from_bytes(whole[8:10], "little")].rstrip()
    for version, length, fits in ((2, 10_000, True), (2, 10_001, False), (3, 2**31, False), (1, 10_001, None)):
        size = 2 if version == 1 else 4
        header = b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(size, "little")
        file.write_bytes(header + text.ljust(min(length, 20_000) - 1) + b"\n" + bytes(16))
        if fits:
            assert part.read(file, part.Spec(dim=2)).tolist() == [0, 0]
            continue
        with pytest.raises(MmfastError, match=r"x\.npy cannot be read as a vector") as error:
            part.read(file, part.Spec(dim=2))
        assert ("its header should be at most 10000 bytes long" in str(error.value)) is (fits is False)
