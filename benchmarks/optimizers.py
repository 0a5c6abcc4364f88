"""The time of a training step with each optimiser: `python -m benchmarks.optimizers`, or with a preset or config file.

A step is all that `mmfast train` does for one: the batch, the loss, the backward pass, the optimiser and the average of
the weights. The optimisers alternate, each with a model of its own, and medians count. Beside the time stands the
number of torch's operations in the optimiser, each of which is a launch on a GPU, or a few. Writes
benchmarks/results/optimizers.csv.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import tables
from benchmarks.arms import device_name
from benchmarks.launches import of_steps
from benchmarks.timing import with_warm_allocator

RESULTS = Path(__file__).parent / "results"
ALWAYS = [("train.workers", "0"), ("train.steps", "1000000000")]  # the time ends it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="image-mask", help="a preset or a config file [image-mask]")
    parser.add_argument("--seconds", type=float, default=40.0, help="time in all, after the first steps [40]")
    parser.add_argument("--threads", type=int, default=1, help="of torch [1]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change an option of the config; repeatable"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "optimizers.csv", help="the CSV file")
    args = parser.parse_args()
    with_warm_allocator("benchmarks.optimizers")
    import torch

    torch.set_num_threads(args.threads)
    changes = {key: value for key, _, value in (text.partition("=") for text in args.set)}
    rows = measure(args.config, changes, args.seconds)
    tables.write(rows, args.out)
    print(args.out)


def measure(base: str, changes: Mapping[str, str], seconds: float) -> list[dict[str, object]]:
    """A row for each optimiser: the median time of a step, and its ratio to that of AdamW in the same round."""
    import torch

    from mmfast import config as configs
    from mmfast.build import build_data, with_found
    from mmfast.config_sections import OPTIMIZERS
    from mmfast.run import Run
    from mmfast.training.examples import loader
    from mmfast.training.trainer import Trainer

    data, steps, times, launches = None, {}, {}, {}
    for name in OPTIMIZERS:
        config = with_found(configs.load(base, [*changes.items(), ("train.optimizer", name), *ALWAYS]))
        data = build_data(config) if data is None else data
        trainer = Trainer(config, Run(Path()), data)
        if config.train.compile:
            trainer.model.backbone.compile()
        if config.train.cuda_graphs and trainer.device.type == "cuda":
            trainer.capture()
        steps[name] = (trainer, loader(config, data.train, 0))
        times[name] = list[float]()
    begun, device = time.perf_counter(), trainer.device
    for round_ in itertools.count():
        if round_ == 3:
            begun = time.perf_counter()
        elif round_ > 5 and time.perf_counter() > begun + seconds:
            break
        for name, (trainer, batches) in steps.items():
            if round_ == 1:  # the first step creates the optimiser's state
                with of_steps(trainer.optimizer) as counted:
                    trainer.step(batches, trainer.model)
                launches[name] = counted.count
                continue
            start = time.perf_counter()
            trainer.step(batches, trainer.model)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_ >= 3:
                times[name].append(time.perf_counter() - start)
    rows: list[dict[str, object]] = []
    print(f"{base}, batches of {config.train.batch_size}, {config.train.precision}, {device_name(device.type)}")
    for name, each in times.items():
        ratio = statistics.median(a / b for a, b in zip(each, times["adamw"], strict=True))
        median = statistics.median(each) * 1e3
        print(f"  {name:<8} {median:9.2f} ms a step, {ratio:.3f} of AdamW's, {launches[name]} operations")
        rows.append({
            "config": base, "optimizer": name, "steps": len(each), "batch_size": config.train.batch_size,
            "precision": config.train.precision, "step_ms": round(median, 2),
            "of_adamw": round(ratio, 3), "operations": launches[name], "device": device_name(device.type),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
