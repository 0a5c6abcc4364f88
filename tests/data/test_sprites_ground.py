"""Sprites on their ground by value: the level of every pixel, of mirrored ones too."""

import numpy as np
import pytest
import torch

from mmfast.data import sprites
from mmfast.data.sprite_pixels import averaged, middle

COUNT, SIZE = 5, 4


@pytest.fixture
def made():
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (COUNT, 4, SIZE, SIZE), dtype=np.uint8)
    pixels[:, :3] = np.minimum(pixels[:, :3], pixels[:, 3:])  # premultiplied
    masks = random.integers(0, 4, (COUNT, SIZE, SIZE), dtype=np.uint8)
    return pixels, masks, random.integers(0, 256, (3, 3, SIZE, SIZE), dtype=np.uint8)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_sprite_over_its_ground(made, mirrored):
    """colour + (255 - alpha) ground / 255, to the nearest level; from number N on, the mirrored ones."""
    pixels, masks, grounds = made
    labels = torch.tensor([4, 3, 2, 1, 0])
    examples = sprites.Sprites(
        *(torch.from_numpy(x) for x in (pixels, masks)), labels, torch.from_numpy(grounds), mirrored
    )
    assert len(examples) == COUNT * (1 + mirrored)
    batch = examples.__getitems__(range(len(examples))).data
    found, stood = (batch["image"].double().numpy() + 1) * 127.5, set()
    for k in range(len(examples)):
        sprite, flip = pixels[k % COUNT].astype(float), slice(None, None, -1 if k >= COUNT else 1)
        possible = [
            np.floor(sprite[:3, :, flip] + (255 - sprite[3:, :, flip]) * ground / 255 + 0.5) for ground in grounds
        ]
        matches = [g for g, image in enumerate(possible) if np.abs(found[k] - image).max() < 1e-3]
        assert len(matches) == 1
        stood |= {*matches}
        assert np.array_equal(batch["mask"][k], masks[k % COUNT][:, flip]) and int(batch["label"][k]) == 4 - k % COUNT
    assert len(stood) > 1  # not all on the same ground


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (3, 2), (7, 9)])
def test_the_middle_of_a_picture_has_zeros_around_a_small_one(shape):
    """What lies d to the right of the one's middle lies there in the other too; of an odd rest the left is the less."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (*shape, 4), dtype=np.uint8)
    found = middle(pixels, 6)
    expected = np.zeros((6, 6, 4), np.uint8)
    for y in range(6):
        for x in range(6):
            row, column = (k + (n - 6) // 2 if n > 6 else k - (6 - n) // 2 for k, n in zip((y, x), shape, strict=True))
            if 0 <= row < shape[0] and 0 <= column < shape[1]:
                expected[y, x] = pixels[row, column]
    assert np.array_equal(found, expected)


def test_means_are_weighted_by_alpha():
    """To the nearest level, of colours that are premultiplied."""
    pixels = np.random.default_rng(1).integers(0, 256, (50, 4, 4, 4), dtype=np.uint8)
    pixels[:5, 3] = 255
    exact = pixels.astype(float)
    exact[:, :3] *= exact[:, 3:] / 255
    truth = exact.reshape(50, 4, 2, 2, 2, 2).mean((3, 5))
    found = averaged(torch.from_numpy(pixels), 2).numpy()
    assert np.abs(found - truth).max() <= 0.5 + 1e-3
