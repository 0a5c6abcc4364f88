"""Training and sampling compared with diffusers and denoising-diffusion-pytorch: `python -m benchmarks.peers`.

Each of their networks is trained by its own library and by mmfast, with equal shapes and parameters. A step is noise,
loss, backward pass, clipping, optimiser and weight averaging, in the order of the library's own training script, on a
batch in memory. Sampling is 64 images in 50 steps of DDIM. mmfast's own U-Net of similar size is timed twice, and the
difference shows the machine's noise. All alternate in one run. A row has medians, and the median of the ratios of
neighbouring turns, in wall time and in CPU time, which other programs on the machine hardly change.
Writes benchmarks/results/peers.csv.

It needs extra packages: pip install 'mmfast[peers]'
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.timing import with_warm_allocator

RESULTS = Path(__file__).parent / "results"
SAMPLES, STEPS, T = 64, 50, 1000
Job = Callable[[], object]


@dataclass
class Pair:
    """One network in mmfast and in its own library: a step of training and a run of sampling."""

    network: str
    parameters: int
    train: dict[str, Job]
    draw: dict[str, Job]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--size", type=int, default=32, help="pixels of an image's side [32]")
    parser.add_argument("--batch", type=int, default=16, help="images a step of training [16]")
    parser.add_argument("--channels", type=int, default=32, help="channels of the finest level [32]")
    parser.add_argument("--rounds", type=int, default=15, help="turns of training each [15]")
    parser.add_argument("--sampling-rounds", type=int, default=3, help="turns of sampling each [3]")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch [2]")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.csv", help="the CSV file")
    args = parser.parse_args()
    # If a core is taken away, threads that spin cost all sides many times what they compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with_warm_allocator("benchmarks.peers")

    import torch

    for name in ("accelerate", "denoising_diffusion_pytorch", "diffusers"):
        if importlib.util.find_spec(name) is None:
            parser.error(f"{name} is not installed: pip install 'mmfast[peers]'")
    if args.channels < 16 or args.channels % 16:
        parser.error(f"--channels is {args.channels}; it should be a multiple of 16 (heads of 32 channels)")
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.size} pixels, batches of {args.batch}")
    images = torch.rand(args.batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pairs = [make(images, args.channels) for make in (of_diffusers, of_ddp)]
    ours = own(images, args.channels)
    rows = []
    for what, rounds in (("train", args.rounds), ("draw", args.sampling_rounds)):
        jobs: dict[tuple[str, str], Job] = {
            (pair.network, who): job for pair in [*pairs, ours] for who, job in getattr(pair, what).items()
        }
        turns = alternate(jobs, rounds, warm=2 if what == "train" else 0)
        for pair in [*pairs, ours]:
            rows += list(compared(what, pair, turns, args))
        tables.write(rows, args.out)
    print(args.out)


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn: wall time, and CPU time of this program over all threads."""

    wall: float
    cpu: float


Turns = dict[tuple[str, str], list[Turn]]


def alternate(jobs: dict[tuple[str, str], Job], rounds: int, warm: int) -> Turns:
    """The turns of each job, round after round. Each round starts with another job, so that no job is always first."""
    turns: Turns = {key: [] for key in jobs}
    order = list(jobs)
    for turn in range(warm + rounds):
        order = order[1:] + order[:1]
        for key in order:
            job = jobs[key]
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            if turn >= warm:
                turns[key].append(Turn(time.perf_counter() - wall, time.process_time() - cpu))
    return turns


def compared(what: str, pair: Pair, turns: Turns, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """The rows of a network: each library's medians and their ratios to mmfast's times."""
    names = {"train": "a step of training", "draw": f"{SAMPLES} images in {STEPS} steps"}
    for who in getattr(pair, what):
        own, mmfast = turns[pair.network, who], turns[pair.network, "mmfast"]
        row: dict[str, object] = {
            "what": names[what],
            "network": pair.network,
            "parameters": pair.parameters,
            "by": who,
        }
        for clock in ("wall", "cpu"):
            each, ours = ([getattr(turn, clock) for turn in found] for found in (own, mmfast))
            row[f"{clock}_ms"] = round(statistics.median(each) * 1e3, 1)
            row[f"{clock}_times_mmfast"] = round(statistics.median(a / b for a, b in zip(each, ours, strict=True)), 3)
        row |= {"turns": len(own), "size": args.size, "batch": args.batch if what == "train" else SAMPLES}
        print(*row.values(), flush=True)
        yield {**row, "threads": args.threads}


def by_mmfast(model: Any, config: Any, images: Any) -> tuple[Job, Job]:
    """A step of mmfast's trainer, and its sampler."""
    import torch

    from mmfast.data import Batch
    from mmfast.sample import sample
    from mmfast.training.ema import EMA
    from mmfast.training.objective import losses

    ema, done = EMA(model, 0.9999), [0]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0, fused=True)

    def train() -> None:
        model.train()
        numbers = torch.arange(len(images)) + done[0] * len(images)
        total = torch.stack(list(losses(model, Batch({"image": images}), numbers, config).values())).sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done[0] += 1
        ema.update(model, done[0])
        total.item()  # as in their scripts, which show the loss at every step

    return train, lambda: sample(model, SAMPLES, steps=STEPS, sampler="ddim", batch_size=SAMPLES, seed=done[0])


def config_of(images: Any, backbone: dict[str, Any]) -> Any:
    from mmfast import config as configs

    image = {"kind": "image", "channels": images.shape[1], "size": images.shape[2]}
    train = {"batch_size": len(images), "given_probability": 0.0}
    return configs.from_plain({"modalities": {"image": image}, "backbone": backbone, "train": train}, "benchmark")


def own(images: Any, channels: int) -> Pair:
    """mmfast's U-Net with about the levels, blocks and channels of the other two; twice, to show the noise."""
    from mmfast.build import build_model

    backbone = {"kind": "unet", "channels": channels, "multipliers": [1, 2, 2], "blocks": 2, "head_channels": 32,
                "attention": [images.shape[2] // 4], "patch": 1, "norm": "group"}  # fmt: skip
    config = config_of(images, backbone)
    model = build_model(config)
    train, draw = by_mmfast(model, config, images)
    again = "mmfast, again"
    return Pair("mmfast's U-Net", _parameters(model), {"mmfast": train, again: train}, {"mmfast": draw, again: draw})


def of_diffusers(images: Any, channels: int) -> Pair:
    """UNet2DModel in the step of diffusers' train_unconditional.py, and in DDIMPipeline."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    from mmfast.backbones import diffusers as adapter
    from mmfast.build import build_model

    levels = [channels, 2 * channels, 2 * channels]
    options: dict[str, Any] = {
        "block_out_channels": levels,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        "attention_head_dim": 32,
        "norm_num_groups": min(32, channels),
    }
    config = config_of(images, {"kind": "diffusers", **options})
    ours = build_model(config)
    net = adapter.unet(adapter.Spec(**options), images.shape[1], images.shape[1], images.shape[2])
    assert _parameters(net) == _parameters(ours)

    accelerator, noise_scheduler = Accelerator(cpu=True), DDPMScheduler(T, beta_schedule="squaredcos_cap_v2")
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    made = torch.optim.AdamW(net.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = get_scheduler("cosine", made, num_warmup_steps=500, num_training_steps=100_000)
    model, optimizer, lr_scheduler = accelerator.prepare(net, made, rate)

    def train() -> None:
        model.train()
        noise = torch.randn(images.shape)
        timesteps = torch.randint(0, T, (len(images),))
        noisy = noise_scheduler.add_noise(images, noise, timesteps)
        with accelerator.accumulate(model):
            loss = F.mse_loss(model(noisy, timesteps).sample.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        average.step(model.parameters())
        loss.detach().item()

    pipe = DDIMPipeline(copy.deepcopy(net).eval(), DDIMScheduler(T, beta_schedule="squaredcos_cap_v2"))
    pipe.set_progress_bar_config(disable=True)
    by_us, drawn_by_us = by_mmfast(ours, config, images)
    return Pair(
        "UNet2DModel",
        _parameters(ours),
        {"mmfast": by_us, "diffusers": train},
        {
            "mmfast": drawn_by_us,
            "diffusers": lambda: pipe(batch_size=SAMPLES, num_inference_steps=STEPS, output_type="np"),
        },
    )


def of_ddp(images: Any, channels: int) -> Pair:
    """The U-Net of denoising-diffusion-pytorch in the step of its Trainer, and in its GaussianDiffusion."""
    import torch
    from accelerate import Accelerator
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA
    from torch import nn

    from mmfast.backbones import Features
    from mmfast.modalities import SpaceShape
    from mmfast.modalities.image import Image
    from mmfast.model import Model
    from mmfast.schedule import Schedule

    def network() -> Any:
        torch.manual_seed(0)
        return Unet(dim=channels, dim_mults=(1, 2, 2), channels=images.shape[1])

    class Backbone(nn.Module):
        """The network without its last layer, which becomes the model's."""

        def __init__(self, in_channels: int, size: int) -> None:
            super().__init__()
            self.net, self.features, self.reads, self.embedding_width = network(), channels, 0, 4 * channels
            self.net.final_conv = nn.Identity()

        def out_norm(self) -> nn.Module:
            return nn.Identity()

        def forward(self, x: Any, t: Any) -> Features:
            return Features(self.net(x, t - 1), x)

    config = config_of(images, {"kind": "mlp"})
    spec = config.modalities["image"]
    parts = {"image": Image("image", spec, SpaceShape(spec.size, spec.size))}
    ours = Model("image", parts, Schedule.cosine(T), Backbone)
    net = network()
    ours.out = copy.deepcopy(net.final_conv)
    assert _parameters(net) == _parameters(ours)

    def diffusion(steps: int) -> Any:
        how = {"objective": "pred_noise", "beta_schedule": "cosine", "timesteps": T, "sampling_timesteps": steps}
        return GaussianDiffusion(net, image_size=images.shape[2], auto_normalize=False, **how)

    accelerator = Accelerator(cpu=True)
    whole = diffusion(T)
    average = EMA(whole, beta=0.995, update_every=10)
    made = torch.optim.Adam(whole.parameters(), 1e-4, betas=(0.9, 0.99))
    model, optimizer = accelerator.prepare(whole, made)

    def train() -> None:
        model.train()
        with accelerator.autocast():
            loss = model(images)
        loss.item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    sampler = copy.deepcopy(diffusion(STEPS)).eval()

    def draw() -> None:
        from denoising_diffusion_pytorch import denoising_diffusion_pytorch as module

        module.tqdm = lambda steps, **_: steps
        sampler.sample(batch_size=SAMPLES)

    by_us, drawn_by_us = by_mmfast(ours, config, images)
    name = "denoising-diffusion-pytorch"
    return Pair("Unet", _parameters(ours), {"mmfast": by_us, name: train}, {"mmfast": drawn_by_us, name: draw})


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    main()
