"""A training step on cached latents, against one that encodes its images: python -m benchmarks.latents

The autoencoder is diffusers' AutoencoderKL, a quarter as wide as Stable Diffusion's, with random weights; the network
is a small DiT. Steps of both kinds alternate.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.reading import make
from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.config import Config
from mmfast.data import Batch, Examples
from mmfast.memory import keep_freed_memory
from mmfast.training.examples import loader
from mmfast.training.latents import with_latents
from mmfast.training.objective import losses


def config(folder: Path, size: int, batch: int) -> Config:
    return configs.from_plain(
        {
            "data": {"kind": "folder", "root": str(folder / "data"), "cache": str(folder / "cache")},
            "modalities": {
                "image": {"kind": "image", "size": size, "autoencoder": {"network": str(folder / "vae"), "factor": 1.0}}
            },
            "backbone": {"kind": "dit", "width": 192, "blocks": 6, "heads": 3, "patch": 2},
            "loss": {"target": "v"},
            "train": {"batch_size": batch, "device": "cpu"},
        },
        "benchmark",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=128, help="pictures")
    parser.add_argument("--size", type=int, default=128, help="of an image, in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=9, help="steps of each kind")
    parser.add_argument("--out", default="benchmarks/results/latents.json", metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()
    from diffusers import AutoencoderKL

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "data", args.count, 2 * args.size)
        torch.manual_seed(0)
        kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        widths = {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 2, "latent_channels": 4}
        AutoencoderKL(**widths, **kinds, sample_size=args.size).save_pretrained(folder / "vae")
        made = config(folder, args.size, args.batch)
        model, data = build_model(made), build_data(made)
        start = time.perf_counter()
        kept = with_latents(data, model, made, torch.device("cpu"))
        once = time.perf_counter() - start
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

        def endless(of: Examples) -> Iterator[Batch]:
            return itertools.chain.from_iterable(loader(made, of, 0) for _ in itertools.count())

        sides = {"kept": endless(kept.train), "encoded": endless(data.train)}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn, (side, batches) in itertools.product(range(args.turns + 1), sides.items()):
            start = time.perf_counter()
            batch = next(batches)
            torch.stack(list(losses(model, batch, torch.arange(len(batch)), made).values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if turn:  # the first turn is a warm-up
                times[side].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["encoded"], times["kept"], strict=True)]
    found = {f"{side}_s": round(statistics.median(x), 4) for side, x in times.items()}
    found |= {"ratio": round(statistics.median(ratios), 2), "least": round(min(ratios), 2)}
    found |= {"greatest": round(max(ratios), 2), "once_s": round(once, 2), "pictures": args.count, "size": args.size}
    found |= {"batch": args.batch, "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(found))
    Path(args.out).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
