"""The time of an epoch over pictures in a folder, read from the cache of decoded examples, against tensors in memory.

    python -m benchmarks.reading

makes pictures and their masks in a folder. It opens them as mmfast does and as tensors with the same numbers, and reads
both in turn, in the order of training. The first epoch decodes the files and does not count. A turn is an epoch of
reading alone, as the trainer reads; with --train, another one has a step of a small network for each batch.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmfast import config as configs
from mmfast.build import build_model
from mmfast.config import Config
from mmfast.data import Data, Examples, folder
from mmfast.data.base import InMemory
from mmfast.memory import keep_freed_memory
from mmfast.training.examples import loader
from mmfast.training.objective import losses
from mmfast.training.trainer import check_batch


def make(root: Path, count: int, side: int) -> None:
    """Write structured pictures as JPEGs, and masks of their bright parts."""
    rng = np.random.default_rng(0)
    for kind in ("image", "mask"):
        (root / kind).mkdir(parents=True)
    for k in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        picture = coarse.resize((side, side), Image.Resampling.BICUBIC)
        picture.save(root / "image" / f"{k:05}.jpg", quality=90)
        mask = (np.asarray(picture.convert("L")) > 127).astype(np.uint8)
        Image.fromarray(mask).save(root / "mask" / f"{k:05}.png")


def config(root: Path, cache: Path, size: int, batch: int) -> Config:
    modalities = {
        "image": {"kind": "image", "channels": 3, "size": size},
        "mask": {"kind": "mask", "classes": 2, "size": size},
    }
    return configs.from_plain(
        {
            "data": {
                "kind": "folder",
                "root": str(root),
                "cache": str(cache),
                "cache_gb": 100.0,
                "test_fraction": 1e-6,
            },
            "modalities": modalities,
            "backbone": {
                "kind": "unet",
                "channels": 8,
                "multipliers": [1, 1],
                "blocks": 3,
                "patch": 8,
                "norm": "group",
            },
            "train": {"batch_size": batch, "steps": 10**9, "device": "cpu"},
        },
        "benchmarks.reading",
    )


def epoch(chosen: Config, examples: Examples, work: Callable[[Any], None]) -> float:
    """Seconds of one epoch, with the order and the number of batches of training."""
    batches = loader(chosen, examples, 0)
    start = time.perf_counter()
    for _ in range(len(examples) // chosen.train.batch_size):
        work(next(batches))
    return time.perf_counter() - start


def training(chosen: Config) -> Callable[[Any], None]:
    """A step of a small network, up to its gradient."""
    model = build_model(chosen)
    numbers = torch.arange(chosen.train.batch_size)

    def work(batch: Any) -> None:
        check_batch(model, batch)
        model.zero_grad()
        torch.stack(list(losses(model, batch, numbers, chosen).values())).sum().backward()

    return work


def sides(data: Data) -> dict[str, Examples]:
    """The two sides: the folder, which this reads for the first time, and tensors of the same numbers."""
    batches = [data.train.__getitems__(range(i, min(i + 64, len(data.train)))) for i in range(0, len(data.train), 64)]
    whole = {name: torch.cat([batch.data[name] for batch in batches]) for name in batches[0].data}
    return {"folder": data.train, "tensor in memory": InMemory(whole)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="pictures")
    parser.add_argument("--side", type=int, default=500, help="of a picture, in pixels")
    parser.add_argument("--size", type=int, default=64, help="of an image as the model sees it")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=9, help="epochs of each side")
    parser.add_argument("--train", action="store_true", help="also with a step of training a batch")
    parser.add_argument("--out", default="benchmarks/results/reading.csv", metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        make(root, args.count, args.side)
        chosen = config(root, Path(name) / "cache", args.size, args.batch)
        parts = dict(chosen.modalities)
        start = time.perf_counter()
        compared = sides(folder.open(chosen.data, parts, "image"))
        first = time.perf_counter() - start
        again = dataclasses.replace(chosen.data)  # a second run finds the examples that the first decoded
        compared["folder"] = folder.open(again, parts, "image").train
        rows = []
        works: dict[str, Callable[[Any], None]] = {"reading": lambda batch: None}
        if args.train:
            works["training"] = training(chosen)
        for what, work in works.items():
            times: dict[str, list[float]] = {side: [] for side in compared}
            for _ in range(args.turns):
                for side, examples in compared.items():
                    times[side].append(epoch(chosen, examples, work))
            ratios = [a / b for a, b in zip(*times.values(), strict=True)]
            medians = {side: statistics.median(x) for side, x in times.items()}
            rows.append([what, *medians.values(), statistics.median(ratios), min(ratios), max(ratios)])
            print(f"{what}: {', '.join(f'{n} {s:.3f} s' for n, s in medians.items())}; ratio {rows[-1][3]:.3f}")
        print(f"the first epoch, which decodes: {first:.1f} s")
    with open(args.out, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["epoch of", "folder s", "tensor s", "median ratio", "least", "greatest"])
        out.writerows([[x if isinstance(x, str) else f"{x:.4f}" for x in row] for row in rows])
        about = f"{args.count} pictures of {args.side} x {args.side}, as {args.size} x {args.size}, batch {args.batch}"
        out.writerow(
            [f"# {about}; first epoch {first:.1f} s; torch {torch.__version__}, {torch.get_num_threads()} threads"]
        )


if __name__ == "__main__":
    main()
