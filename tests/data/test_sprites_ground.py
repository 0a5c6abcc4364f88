"""Sprites on their ground by value: the level of every pixel, of mirrored ones too."""

import numpy as np
import pytest
import torch

from mmfast.data import sprites

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
