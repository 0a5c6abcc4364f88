"""Pictures that are no squares, `size: [height, width]`: configs of them, small networks for backbones, and files."""

import numpy as np
import torch
from PIL import Image

from mmfast import config as configs
from mmfast import modalities

H, W = 8, 16
FEW = {
    "train": {"steps": 1, "batch_size": 4, "sample_every": 0, "tensorboard": False, "device": "cpu"},
    "sample": {"steps": 2, "count": 2},
    "evaluate": {"samples": 0},
    "schedule": {"T": 8},
}
SMALL = {
    "mlp": {"width": 32, "blocks": 2, "features": 8},
    "unet": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8], "head_channels": 8},
    "adm": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8], "heads": 2},
    "dit": {"width": 32, "blocks": 2, "heads": 2, "features": 16},
    "diffusers": {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
}


def config(parts, backbone="mlp", **more):
    raw = {"anchor": "image", "backbone": {"kind": backbone, **SMALL[backbone]}, "modalities": parts, **FEW, **more}
    return configs.from_plain(raw, "x")


def parts(size=(H, W), **image):
    return {
        "image": {"kind": "image", "channels": 3, "size": list(size), **image},
        "mask": {"kind": "mask", "classes": 3, "size": list(size)},
        "label": {"kind": "label", "classes": 2},
    }


def spec(kind, **options):
    return modalities.kind(kind).Spec(**options)


def as_floats(pixels):
    return torch.from_numpy(np.asarray(pixels, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def fill(root, count=12, width=50, height=20):
    """Pictures of (width, height) with masks and labels; returns the pixels and the numbers."""
    rng, truth = np.random.default_rng(0), {}
    for k in range(count):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = rng.integers(0, 3, (height, width), dtype=np.uint8)
        for name, array in (("image", pixels), ("mask", mask)):
            (root / name / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / name / "ab"[k % 2] / f"{k:02}.png")
        truth[f"{'ab'[k % 2]}/{k:02}"] = pixels, mask
    return truth


def wide_run(tmp_path, backbone="mlp", **more):
    fill(tmp_path / "data")
    options = {"data": {"kind": "folder", "root": str(tmp_path / "data"), "cache_gb": 0, **more}}
    return config(parts(), backbone, **options)
