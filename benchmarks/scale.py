"""The cost of training at the scale of ADM, computed without running it: `python -m benchmarks.scale`.

For the presets imagenet64 and imagenet128: the operations of one training image and of the whole published training,
the GPU hours at an assumed utilisation, and the memory. Nothing is allocated and no GPU is used, because the networks
are on torch's meta device. The counts are checked against the throughput that ADM's authors call theoretical (Dhariwal
and Nichol, 2021, table 7: 100% of a V100's 120 TFLOP/s), which they counted with other software.
Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmfast import config as configs
from mmfast.backbones.adm import Spec
from mmfast.build import build_model
from mmfast.warm_start import Network

RESULTS = Path(__file__).parent / "results"
PEAK = {"A100": 312e12, "H100": 989e12}  # dense FLOP/s in bf16 with float32 accumulation, from NVIDIA's data sheets
UTILISATION = (0.3, 0.4)  # an assumption: ADM's authors reached 0.38 and 0.41 at these sizes (table 7)
V100 = 120e12  # FLOP/s that the authors assume
PASSES = 3  # a forward pass, and a backward pass with twice its operations
# Images per V100-second at 100% (table 7); steps of 256 images and the V100-days that they took (table 10).
THROUGHPUT = {"imagenet64": 182.3, "imagenet128": 65.2, "imagenet256": 17.9}
TRAINED = {"imagenet128": (4_360_000, 521), "imagenet256": (1_980_000, 916)}
ADM_256 = Spec(channels=256, multipliers=[1, 1, 2, 2, 4, 4], blocks=2, classes=1000)
# Bytes per parameter: weight, gradient, the two moments of AdamW and the average in float32; a bf16 copy for a pass.
STATE = {"weights": 4, "gradients": 4, "AdamW": 8, "average": 4, "bf16 copy": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json", help="the JSON file")
    args = parser.parse_args()
    checks = {name: check(name) for name in THROUGHPUT}
    rows = {name: estimate(name) for name in ("imagenet64", "imagenet128")}

    print("the count against ADM's authors' (GFLOP of a forward pass, 2 for a multiplication and an addition):")
    for name, c in checks.items():
        then = f"; its {c['published_v100_days']} V100-days mean {c['utilisation_then']:.0%}" if name in TRAINED else ""
        print(
            f"  {name:<12} {c['parameters']:>11,} parameters {c['forward_gflop']:8.1f} here"
            f" {c['published_forward_gflop']:8.1f} theirs, ratio {c['ratio']:.4f}{then}"
        )
    print("\nthe presets, whole models (no GPU has run them):")
    for name, r in rows.items():
        print(
            f"  {name}: {r['parameters']:,} parameters; {r['training_gflop_an_image']:,.0f} GFLOP a training image, "
            f"{r['images']:.3g} images, {r['total_flop']:.3g} FLOP"
        )
        for gpu, hours in r["gpu_hours"].items():
            shown = ", ".join(f"{h:,.0f} hours at {u}" for u, h in hours.items())
            print(f"    {gpu}: {shown} of {PEAK[gpu] / 1e12:.0f} TFLOP/s")
        print(
            f"    memory: {r['state_gib']:.1f} GiB of weights, gradients, AdamW, average and bf16 copy; at most "
            f"{r['activations_gib']:.0f} GiB of activations for {r['images_at_once']} images at once"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    assumptions = {
        "measured_on_a_gpu": False,
        "utilisation": UTILISATION,
        "peak_flop_per_s": PEAK,
        "passes": PASSES,
        "bytes_a_parameter": STATE,
    }
    args.out.write_text(json.dumps({"assumptions": assumptions, "checks": checks, "presets": rows}, indent=1) + "\n")
    print(f"\n{args.out}")


def check(name: str) -> dict[str, Any]:
    """Compare the count for ADM's own network, with class table and six outputs, with the published figures."""
    size = int(name.removeprefix("imagenet"))
    spec = ADM_256 if name == "imagenet256" else replace(configs.load(name).backbone, classes=1000)
    with torch.device("meta"):
        network = Network(spec, size)
        x, t, y = torch.empty(1, 3, size, size), torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    flop = forward_flop(lambda: network(x, t, y))
    published = V100 / THROUGHPUT[name] / PASSES
    found: dict[str, Any] = {
        "parameters": parameters(network),
        "forward_gflop": round(flop / 1e9, 2),
        "published_forward_gflop": round(published / 1e9, 2),
        "ratio": round(flop / published, 4),
    }
    if name in TRAINED:
        steps, days = TRAINED[name]
        found["published_v100_days"] = days
        found["utilisation_then"] = round(PASSES * flop * steps * 256 / (V100 * 86400 * days), 3)
    return found


def estimate(name: str) -> dict[str, Any]:
    """Operations, hours and memory of training the preset's whole model."""
    config = configs.load(name)
    with torch.device("meta"):
        model = build_model(config).to("meta")
        C, H, W = model.channels, *model.shape[1:]
        z = torch.empty(1, C, H, W)
        t = torch.ones(1, dtype=torch.int64)
    forward = forward_flop(lambda: model(z, t, {}))
    images = config.train.steps * config.train.batch_size
    total = PASSES * forward * images
    at_once = config.train.batch_size // config.train.accumulation
    return {
        "parameters": parameters(model),
        "forward_gflop": round(forward / 1e9, 2),
        "training_gflop_an_image": round(PASSES * forward / 1e9, 2),
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "images": images,
        "total_flop": total,
        "gpu_hours": {
            gpu: {f"{u:.0%}": round(total / peak / u / 3600) for u in UTILISATION} for gpu, peak in PEAK.items()
        },
        "state_gib": round(parameters(model) * sum(STATE.values()) / 2**30, 2),
        "images_at_once": at_once,
        "activations_gib": round(at_once * held(model, lambda: model(z, t, {})) / 2**30, 1),
    }


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def forward_flop(call: Callable[[], object]) -> int:
    """Operations of convolutions and matrix products; norms and the rest are memory-bound."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def held(module: nn.Module, call: Callable[[], object]) -> int:
    """Bytes that a forward pass keeps for the backward pass, all in float32 and with unfused attention.

    This is more than a GPU keeps, where convolutions are in bf16 and attention is fused.
    """
    kept: dict[int, Any] = {}
    own = {p.untyped_storage()._cdata for p in module.parameters()}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # kept alive, so that no other storage gets its address
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        call()
    return sum(storage.nbytes() for storage in kept.values())


if __name__ == "__main__":
    main()
