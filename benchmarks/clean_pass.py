"""The time of a training step with the pass without noise (train.clean_pass): `python -m benchmarks.clean_pass`.

Steps of the presets with and without that pass alternate; a step is loss, backward and optimiser, on made-up examples.
Writes benchmarks/results/clean_pass.csv.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from benchmarks import tables
from benchmarks.timing import with_warm_allocator

RESULTS = Path(__file__).parent / "results"
PRESETS = ("image-label", "image-mask", "masked-image", "image-embedding", "any-to-any")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each preset [40]")
    parser.add_argument("--out", type=Path, default=RESULTS / "clean_pass.csv", help="the CSV file")
    args = parser.parse_args()
    with_warm_allocator("benchmarks.clean_pass")
    tables.write([measure(preset, args.seconds) for preset in PRESETS], args.out)
    print(args.out)


def measure(preset: str, seconds: float) -> dict[str, object]:
    """Time steps with and without the pass in turn, in fp32 on the CPU."""
    import torch

    from mmfast import config as configs
    from mmfast.build import build_model
    from mmfast.data import Batch
    from mmfast.training import optimizer as optimizers
    from mmfast.training.objective import losses

    chosen = {
        weight: configs.load(preset, [("train.clean_pass", weight), ("train.precision", "fp32")]) for weight in "01"
    }
    B = chosen["0"].train.batch_size
    models = {weight: build_model(config) for weight, config in chosen.items()}
    parts = {name: models["0"].part(name) for name in models["0"].parts if not models["0"].part(name).derived}
    batch = Batch({name: torch.stack([part.blank(part.spec)] * B) for name, part in parts.items()})
    train = chosen["0"].train
    updates = {
        weight: optimizers.build(train.optimizer, model, [], train.learning_rate, train.weight_decay)
        for weight, model in models.items()
    }
    times: dict[str, list[float]] = {weight: [] for weight in chosen}

    def step(weight: str) -> None:
        start = time.perf_counter()
        torch.stack(list(losses(models[weight], batch, torch.arange(B), chosen[weight]).values())).sum().backward()
        updates[weight].step()
        updates[weight].zero_grad(set_to_none=True)
        times[weight].append(time.perf_counter() - start)

    for weight in (*chosen, *chosen):
        step(weight)
    for found in times.values():
        found.clear()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for weight in chosen:
            step(weight)
    ratio = statistics.median(a / b for a, b in zip(times["1"], times["0"], strict=True))
    without, with_it = (statistics.median(times[weight]) * 1e3 for weight in "01")
    print(
        f"{preset}, batch {B}: {without:.1f} ms a step, {with_it:.1f} ms with the pass without noise, ratio {ratio:.3f}"
    )
    return {
        "preset": preset, "batch": B, "steps": len(times["0"]), "step_ms": round(without, 1),
        "with_clean_pass_ms": round(with_it, 1), "ratio": round(ratio, 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
