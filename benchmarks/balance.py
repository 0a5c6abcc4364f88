"""The balance of the losses, on digits with label and mask: the config's weights, none, and those that training finds.

    python -m benchmarks.balance

trains every arm with every seed on nine tenths of the training digits, and measures it on the tenth: what is chosen
here has not seen the test set. It goes on where it stopped, and writes benchmarks/results/balance.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mmfast import config as configs
from mmfast.build import build_data
from mmfast.config import Config
from mmfast.data import Data
from mmfast.data.base import InMemory
from mmfast.evaluate import evaluate
from mmfast.training import fit

RESULTS = Path(__file__).resolve().parent / "results"
# By arm, what is put over the preset.
EVEN = {"modalities.label.loss_weight": "1", "modalities.mask.loss_weight": "1"}
ARMS: dict[str, dict[str, str]] = {
    "the preset's weights": {},
    "all weights 1": EVEN,
    "uncertainty": {**EVEN, "loss.balance": "uncertainty"},
    "gradient norms": {**EVEN, "loss.balance": "gradient_norm"},
}
# By name in metrics.json: how it is called, and whether more is better.
FIGURES = {
    "label.joint_agreement": ("drawn together: the label is the image's", True),
    "mask.joint_iou": ("drawn together: IoU of mask and ink", True),
    "label.conditional_accuracy": ("given a label: the image shows it", True),
    "mask.conditional_iou": ("given a mask: IoU of the image's ink", True),
    "label.recovered_accuracy": ("read off an image: accuracy of the label", True),
    "mask.recovered_iou": ("read off an image: IoU of the mask", True),
    "frechet.samples": ("Frechet distance of the images, pixels", False),
}
SHARE = 10  # one in so many training examples is for validation


def arm(name: str, steps: int, samples: int, seed: int) -> Config:
    """An arm's config: the preset, and what a benchmark decides."""
    decided = {
        "seed": seed,
        "train.steps": steps,
        "train.warmup": min(100, steps // 4),
        "train.sample_every": 0,
        "train.validate_every": 0,
        "train.tensorboard": "false",
        "train.device": "cpu",
        "evaluate.samples": samples,
    }
    return configs.load("digits", [*((key, str(value)) for key, value in decided.items()), *ARMS[name].items()])


def validation(config: Config) -> Data:
    """The training set in two: nine tenths to train on, and a tenth held out."""
    found = build_data(config)
    rows = range(len(found.train))
    held, seen = [k for k in rows if k % SHARE == 0], [k for k in rows if k % SHARE]
    parts = [InMemory(found.train.__getitems__(some).data) for some in (seen, held)]
    return Data(*parts, found.judges)


def cell(name: str, steps: int, samples: int, seed: int, work: Path) -> dict[str, Any]:
    """An arm's figures with one seed; what is there is not done again."""
    config = arm(name, steps, samples, seed)
    folder = work / f"{steps}-steps" / f"{name.replace(' ', '-')}-{seed}"
    file = folder / "figures.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    data, begun = validation(config), time.process_time()
    trainer = fit(config, str(folder), data, quiet=True)
    seconds = time.process_time() - begun
    last = json.loads(trainer.stats.recent.splitlines()[-1])
    measured = evaluate(trainer.ema.model, config, data, quiet=True)
    found = {key: measured[key] for key in FIGURES}
    found["milliseconds"] = 1000 * seconds / steps
    found["weights"] = {key: value for key, value in last.items() if key.startswith("balance.")}
    file.write_text(json.dumps(found, indent=1))
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the seeds in Markdown, each with the range."""
    lines = ["| | " + " | ".join(found) + " |", "|---" * (1 + len(found)) + "|"]
    for key, (title, _) in FIGURES.items():
        columns = [[one[key] for one in each] for each in found.values()]
        cells = [f"{statistics.mean(x):.3g} ({min(x):.3g} .. {max(x):.3g})" for x in columns]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    times = [statistics.mean(one["milliseconds"] for one in each) for each in found.values()]
    return "\n".join([*lines, "| CPU milliseconds a step | " + " | ".join(f"{x:.3g}" for x in times) + " |"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.balance", description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each model [1000]")
    parser.add_argument("--samples", type=int, default=432, help="samples a direction [432]")
    parser.add_argument("--seeds", type=int, default=2, help="seeds an arm [2]")
    parser.add_argument("--work", type=Path, default=Path("runs/balance"), help="where models are kept [runs/balance]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where balance.json goes [benchmarks/results]")
    args = parser.parse_args(argv)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in range(args.seeds):
        for name, each in found.items():
            each.append(cell(name, args.steps, args.samples, seed, args.work))
            print(f"{name}, seed {seed}: {json.dumps(each[-1])}", flush=True)
    print(table(found))
    where = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**where, "steps": args.steps, "samples": args.samples, "arms": found}, indent=1)
    (args.out / "balance.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
