"""A run of one step on a folder of three classes, and a file of each kind with the arrays that it holds."""

import numpy as np
import torch
from PIL import Image

from mmfast.cli import main

SIZE, NAMES = 4, ["cats", "dogs", "owls"]
CONFIG = f"""
anchor: photo
data: {{kind: folder, root: ROOT}}
modalities:
  photo: {{kind: image, channels: 3, size: {SIZE}}}
  mask: {{kind: mask, classes: 3, size: {SIZE}, ignore: 255}}
  label: {{kind: label, classes: 3, loss_weight: 0.1}}
  embedding: {{kind: embedding, dim: 5, layout: channels}}
  hidden: {{kind: masked, of: photo, size: {SIZE}, block: 2}}
backbone: {{kind: mlp, width: 8, blocks: 1, features: 4}}
train: {{steps: 1, batch_size: 4, sample_every: 0, tensorboard: false}}
sample: {{steps: 2}}
evaluate: {{samples: 0}}
"""
RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
MASK = np.array([[0, 1, 2, 0], [1, 1, 2, 255], [0, 0, 0, 1], [2, 2, 2, 2]], np.uint8)
VECTOR = np.array([1.0, -2.0, 0.5, 0.0, 3.0], np.float32)
# x as the modalities' docstrings have it, from the arrays above.
X = {
    "photo": torch.tensor(PHOTO.astype(np.float64).transpose(2, 0, 1) / 127.5 - 1).float(),
    "mask": torch.tensor(np.where(MASK == 255, -1, MASK.astype(np.int64))),
    "label": torch.tensor(1),
    "embedding": torch.tensor(VECTOR),
}


def make(place):
    """Make data of three classes, a run of one step on it, and a file of each kind. Returns the folder."""
    for i, name in enumerate(NAMES * 4):
        for kind in ("photo", "mask", "embedding"):
            (place / "data" / kind / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(PHOTO, i, 0)).save(place / "data/photo" / name / f"{i}.png")
        Image.fromarray(np.roll(MASK, i, 0)).save(place / "data/mask" / name / f"{i}.png")
        np.save(place / "data/embedding" / name / f"{i}.npy", np.roll(VECTOR, i))
    (place / "x.yaml").write_text(CONFIG.replace("ROOT", str(place / "data")))
    assert main(["train", str(place / "x.yaml"), "--out", str(place / "run"), "--quiet"]) == 0
    Image.fromarray(PHOTO).save(place / "photo.png")
    Image.fromarray(MASK).save(place / "mask.png")
    np.save(place / "embedding.npy", VECTOR)
    (place / "label.txt").write_text("dogs\n")
    return place
