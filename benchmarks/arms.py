"""Several arms of a config, each trained with several seeds and measured as by `mmfast eval`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmfast import config as configs
from mmfast.config import Config
from mmfast.data import Data
from mmfast.errors import MmfastError
from mmfast.evaluate import evaluate
from mmfast.run import Run
from mmfast.training import fit

RESULTS = Path(__file__).resolve().parent / "results"
# By name in metrics.json: the title, and whether higher is better.
FIGURES = {
    "label.joint_agreement": ("drawn together: the label is the image's", True),
    "mask.joint_iou": ("drawn together: IoU of mask and ink", True),
    "label.conditional_accuracy": ("given a label: the image shows it", True),
    "mask.conditional_iou": ("given a mask: IoU of the image's ink", True),
    "label.recovered_accuracy": ("predicted from an image: accuracy of the label", True),
    "mask.recovered_iou": ("predicted from an image: IoU of the mask", True),
    "frechet.samples": ("Frechet distance of the images, pixels", False),
}
Figures = dict[str, Any]
Found = dict[str, list[Figures]]  # by arm, the figures of each seed


@dataclass(frozen=True)
class Study:
    """Models to compare.

    arms: by name, the overrides of `base`, a preset or a file. data: makes the data to train and measure on.
    without: by arm, a modality that it lacks. after: by arm, the arm whose weights it starts from and its share of the
    steps.
    """

    name: str
    base: str
    arms: Mapping[str, Mapping[str, str]]
    data: Callable[[Config], Data]
    without: Mapping[str, str] = field(default_factory=dict)
    after: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def config(self, arm: str, steps: int, samples: int, seed: int, device: str = "cpu") -> Config:
        """An arm's config: the base, and what the benchmark sets."""
        steps = round(steps * self.after[arm][1]) if arm in self.after else steps
        decided = {
            "seed": seed,
            "train.steps": steps,
            "train.warmup": min(100, steps // 4),
            "train.sample_every": 0,
            "train.validate_every": 0,
            "train.tensorboard": "false",
            "train.device": device,
            "evaluate.samples": samples,
        }
        changes = [(key, str(value)) for key, value in decided.items()]
        config = configs.load(self.base, [*changes, *self.arms[arm].items()])
        kept = {name: spec for name, spec in config.modalities.items() if name != self.without.get(arm)}
        return dataclasses.replace(config, modalities=kept)

    def cell(self, arm: str, seed: int, args: argparse.Namespace) -> Figures:
        """An arm's figures with one seed; existing results are reused.

        Raises MmfastError if the existing results were made with other options or other data.
        """
        config = self.config(arm, args.steps, args.samples, seed, args.device)
        start = None
        if arm in self.after:
            first = self.after[arm][0]
            self.cell(first, seed, args)
            start = str(self.folder(first, seed, args))
        folder = self.folder(arm, seed, args)
        file = folder / "figures.json"
        made_of = {"config": json.loads(json.dumps(dataclasses.asdict(config))), "data": self.data.__name__}
        made_of["config"]["data"].pop("cache", None)
        if file.exists():
            kept: Figures = json.loads(file.read_text())
            if kept.pop("made_of", None) != made_of:
                raise MmfastError(
                    f"{file} is of other options or other data; choose another --work, or remove {folder}"
                )
            return kept
        data, timing = self.data(config), folder / "timing.json"
        before = Run(folder).load_state() if folder.exists() else None
        steps, begun = before[1]["step"] if before else 0, time.process_time()
        trainer = fit(config, str(folder), data, quiet=True, start=start)
        # Over all starts that were not killed; the steps of killed ones do not count either.
        taken = json.loads(timing.read_text()) if timing.exists() else {"seconds": 0.0, "steps": 0}
        taken["seconds"] += time.process_time() - begun if trainer.done > steps else 0.0
        taken["steps"] += trainer.done - steps
        timing.write_text(json.dumps(taken))
        measured = evaluate(trainer.ema.model, config, data, quiet=True)
        found: Figures = {key: measured[key] for key in FIGURES if key in measured}
        found["milliseconds"] = 1000 * taken["seconds"] / max(1, taken["steps"])
        found["weights"] = {key: value for key, value in trainer.stats.last().items() if key.startswith("balance.")}
        file.write_text(json.dumps({**found, "made_of": made_of}, indent=1))
        return found

    def folder(self, arm: str, seed: int, args: argparse.Namespace) -> Path:
        """Where a cell's run is kept."""
        return Path(args.work) / f"{args.steps}-steps" / f"{arm.replace(' ', '-')}-{seed}"

    def run(self, args: argparse.Namespace) -> Found:
        """Run every arm with every seed and write the figures to `args.out`/NAME.json."""
        found: Found = {arm: [] for arm in self.arms}
        for seed in range(args.seeds):
            for arm, each in found.items():
                each.append(self.cell(arm, seed, args))
                print(f"{arm}, seed {seed}: {json.dumps(each[-1])}", flush=True)
        where = {"device": device_name(args.device), "torch": torch.__version__}
        args.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**where, "steps": args.steps, "samples": args.samples, "arms": found}, indent=1)
        (args.out / f"{self.name}.json").write_text(text + "\n")
        return found


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device != "cpu" else platform.processor() or platform.machine()


def parser(name: str, description: str | None, steps: int, samples: int, seeds: int) -> argparse.ArgumentParser:
    """A parser with the options of every study."""
    found = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=description)
    found.add_argument("--steps", type=int, default=steps, help=f"optimiser steps of each model [{steps}]")
    found.add_argument("--samples", type=int, default=samples, help=f"samples a direction [{samples}]")
    found.add_argument("--seeds", type=int, default=seeds, help=f"seeds an arm [{seeds}]")
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where models are trained [cpu]")
    work = Path("runs") / name
    found.add_argument("--work", type=Path, default=work, help=f"where models are kept [{work}]")
    found.add_argument("--out", type=Path, default=RESULTS, help=f"where {name}.json goes [benchmarks/results]")
    return found


def measured(found: Found) -> list[str]:
    """The figures that every cell has, in the order of FIGURES."""
    return [key for key in FIGURES if all(key in one for each in found.values() for one in each)]


def table(found: Found) -> str:
    """A Markdown table of means over the seeds, each with its range."""
    lines = ["| | " + " | ".join(found) + " |", "|---" * (1 + len(found)) + "|"]
    for key in measured(found):
        columns = [[one[key] for one in each] for each in found.values()]
        cells = [f"{statistics.mean(x):.3g} ({min(x):.3g} .. {max(x):.3g})" for x in columns]
        lines.append(f"| {FIGURES[key][0]} | " + " | ".join(cells) + " |")
    times = [statistics.mean(one["milliseconds"] for one in each) for each in found.values()]
    return "\n".join([*lines, "| CPU milliseconds a step | " + " | ".join(f"{x:.3g}" for x in times) + " |"])
