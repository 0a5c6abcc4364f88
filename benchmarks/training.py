"""The effect of the fused ops on a whole training step: `python -m benchmarks.training`.

Runs the `digits` preset and a U-Net at 32x32, each with the fused ops and with the same formulas in eager torch (with
torch's noise, kept for the loss). Steps of both alternate; a step is loss, backward and optimiser. Writes
benchmarks/results/training.csv.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import tables
from benchmarks.timing import with_warm_allocator

RESULTS = Path(__file__).parent / "results"
SETTINGS: dict[str, list[tuple[str, str]]] = {
    "digits preset (MLP, 8x8)": [],
    "U-Net, 32x32": [
        ("modalities", "{image: {kind: image, channels: 3, size: 32}, "
                       "label: {kind: label, classes: 10, weight: {kind: carried}}, "
                       "mask: {kind: mask, classes: 2, size: 32, weight: {kind: carried}}}"),
        ("backbone", "{kind: unet, channels: 32, multipliers: [1, 2, 2], blocks: 3, attention: [32, 16, 8], "
                     "head_channels: 64, patch: 1, norm: group}"),
        ("train.batch_size", "32"),
    ],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each setting [40]")
    parser.add_argument("--device", default="auto", help="cpu or cuda [cuda if there is one]")
    parser.add_argument("--out", type=Path, default=RESULTS / "training.csv", help="the CSV file")
    args = parser.parse_args()
    with_warm_allocator("benchmarks.training")
    from mmfast.build import pick_device

    device = pick_device(args.device)
    rows = [row for name, options in SETTINGS.items() for row in measure(name, options, args.seconds, device)]
    tables.write(rows, args.out)
    print(args.out)


class Timed:
    """The ops that training calls, with the seconds that their forward passes took."""

    def __init__(self, ops: Any, wait: Callable[[], object]) -> None:
        self.ops, self.wait, self.seconds = ops, wait, 0.0

    def __getattr__(self, name: str) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.wait()  # for pending work of the network
            start = time.perf_counter()
            result = getattr(self.ops, name)(*args, **kwargs)
            self.wait()
            self.seconds += time.perf_counter() - start
            return result

        return timed


def eager_ops() -> SimpleNamespace:
    """q_sample and diffusion_loss as a user would write them in eager torch, for own channels and target eps."""
    import torch

    kept: list[torch.Tensor] = []

    def q_sample(z0: Any, encodings: Any, t: Any, sched: Any, *, present: Any, **_: Any) -> Any:
        row = sched.alpha_bar.float()[t][:, None, None, None]
        W = sched.W.float()[t] if present is None else sched.W.float()[t] * present
        W = W[:, :, None, None, None]
        shape = z0.tensor.shape[2:]
        blocks = [row.sqrt() * z0.tensor]
        blocks += [(W[:, k] * E.tensor).expand(-1, -1, *shape) for k, E in enumerate(encodings.values())]
        mean = torch.cat(blocks, 1)
        eps = torch.randn_like(mean)
        kept[:] = [eps]
        return mean + (1 - row).sqrt() * eps

    def diffusion_loss(prediction: Any, z0: Any, t: Any, sched: Any, *, sample_weight: Any, **_: Any) -> Any:
        eps = kept[0][:, : z0.shape[1]]
        return (sample_weight * (prediction.float() - eps).square().flatten(1).mean(1)).mean()

    return SimpleNamespace(q_sample=q_sample, diffusion_loss=diffusion_loss)


def measure(name: str, options: list[tuple[str, str]], seconds: float, device: Any) -> list[dict[str, object]]:
    """Time both kinds in turn. A GPU is synchronised after every op and step, so that the times are the GPU's."""
    import torch

    from mmfast import config as configs
    from mmfast import ops
    from mmfast.build import build_model
    from mmfast.data import Batch
    from mmfast.training import objective

    config = configs.load("digits", options)
    generator = torch.Generator().manual_seed(0)
    B, image = config.train.batch_size, config.modalities["image"]
    data = {
        "image": torch.rand(B, image.channels, image.size, image.size, generator=generator) * 2 - 1,  # type: ignore[attr-defined]
        "label": torch.randint(0, 10, (B,), generator=generator),
        "mask": torch.randint(0, 2, (B, image.size, image.size), generator=generator),  # type: ignore[attr-defined]
    }
    batch, numbers = Batch(data).to(device), torch.arange(B, device=device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    kinds: dict[str, Any] = {"mmfast": Timed(ops, wait), "eager torch": Timed(eager_ops(), wait)}
    models = {kind: build_model(config).to(device) for kind in kinds}
    optimizers = {kind: torch.optim.AdamW(m.parameters(), fused=True) for kind, m in models.items()}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    shares: dict[str, list[float]] = {kind: [] for kind in kinds}

    def step(kind: str) -> None:
        objective.ops = kinds[kind]  # type: ignore[attr-defined]
        kinds[kind].seconds = 0.0
        start = time.perf_counter()
        total = torch.stack(list(objective.losses(models[kind], batch, numbers, config).values())).sum()
        total.backward()
        optimizers[kind].step()
        optimizers[kind].zero_grad(set_to_none=True)
        wait()
        times[kind].append(time.perf_counter() - start)
        shares[kind].append(kinds[kind].seconds)

    try:
        for kind in kinds:
            for _ in range(3):
                step(kind)
            times[kind].clear(), shares[kind].clear()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for kind in kinds:
                step(kind)
    finally:
        objective.ops = ops  # type: ignore[attr-defined]
    print(f"{name}, batch {B}, {sum(p.numel() for p in models['mmfast'].parameters()):,} parameters")
    rows = []
    for kind in kinds:
        whole, inside = statistics.median(times[kind]), statistics.median(shares[kind])
        print(f"  {kind:<12} {whole * 1e3:8.2f} ms a step, in the ops {inside * 1e3:7.3f} ms = {inside / whole:6.2%}")
        rows.append({
            "setting": name, "ops": kind, "steps": len(times[kind]), "step_ms": round(whole * 1e3, 3),
            "ops_ms": round(inside * 1e3, 4), "share": round(inside / whole, 4),
        })  # fmt: skip
    ratio = statistics.median(a / b for a, b in zip(times["eager torch"], times["mmfast"], strict=True))
    print(
        f"  a step with the fused ops takes {1 / ratio:.3f} of the time\n"
        "  (in the ops: forward; what eager torch's ops do in the backward pass is not in it)\n"
    )
    return rows


if __name__ == "__main__":
    main()
