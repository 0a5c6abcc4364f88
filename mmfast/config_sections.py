"""The options of a config, except those of data, modalities and backbone, which depend on their kinds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from mmfast.options import PRECISIONS, option
from mmfast.process import TARGETS
from mmfast.samplers import HEADS, MOST_SPACING, SAMPLERS
from mmfast.schedule import MOST_STEPS

# How often a sampling step may be repeated; the noise of each repeat has its number (mmfast/sample_loop.py).
MOST_TIMES = 256
# The rules of mmfast.training.balance.
BALANCES = ("none", "uncertainty", "gradient_norm")
# The optimisers of mmfast.training.optimizer.
OPTIMIZERS = ("adamw", "muon")


@dataclass
class ScheduleSpec:
    kind: str = option("cosine", "the shape of alpha_bar(t)", choices=("cosine", "linear"))
    T: int = option(1000, "steps of the diffusion process", min=2, max=MOST_STEPS)


@dataclass
class LossSpec:
    target: str = option("x0", "what the network predicts for the anchor", choices=tuple(TARGETS))
    min_snr_gamma: float | None = option(None, "gamma of the min-SNR-gamma weighting of timesteps; null: none", above=0)
    balance: str = option(
        "none",
        "rule that sets the weights of the modalities' losses: none, learnt variances or gradient norms",
        choices=BALANCES,
    )


@dataclass
class LowNoiseSpec:
    """Training examples at low noise, where the other modalities are read off the anchor."""

    share: float = option(0.0, "share, among examples that show only the anchor, trained at low noise", min=0, max=1)
    until: float = option(0.1, "their times are uniform up to this share of T", above=0, max=1)
    weight: float = option(1.0, "weight of the anchor's loss in these examples", min=0)


@dataclass
class TrainSpec:
    steps: int = option(100_000, "optimiser steps", min=1)
    batch_size: int = option(128, "examples per step", min=1)
    accumulation: int = option(1, "parts in which each batch is computed", min=1)
    optimizer: str = option(
        "adamw", "muon takes fewer steps, each of which takes longer in small batches", choices=OPTIMIZERS
    )
    learning_rate: float = option(2e-3, "learning rate after the warm-up", above=0)
    warmup: int = option(100, "steps over which the learning rate rises from zero", min=0)
    decay: str = option("cosine", "learning rate schedule after the warm-up", choices=("constant", "cosine"))
    weight_decay: float = option(0.0, "decoupled weight decay", min=0)
    grad_clip: float = option(1.0, "norm to which larger gradients are clipped", above=0, max=math.inf)
    ema_decay: float = option(0.998, "decay of the averaged weights", min=0, max=1)
    given_probability: float = option(
        0.25,
        "how often a modality without its own given_probability is given (told to the network) in training; never all "
        "at once",
        min=0,
        max=1,
    )
    low_noise: LowNoiseSpec = field(default_factory=LowNoiseSpec)
    clean_pass: float = option(
        0.0,
        "weight of a further pass of every example, through the encoder alone, in which its heads read the anchor "
        "without noise, and those of hidden parts the visible pixels alone; 0: no such pass",
        min=0,
    )
    precision: str = option("fp32", "arithmetic of the network", choices=PRECISIONS)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    compile: bool = option(False, "compile the network with torch.compile")
    cuda_graphs: bool = option(False, "on a GPU, replay the network's kernels as CUDA graphs (for small networks)")
    shard: bool = option(False, "with several ranks, shard the network's weights across them (for large networks)")
    workers: int = option(0, "processes that load data", min=0)
    log_every: int = option(50, "steps between writes to stats.jsonl and TensorBoard", min=1)
    sample_every: int = option(5000, "steps between sample grids; 0 for none before the last step", min=0)
    checkpoint_every: int = option(1000, "steps between checkpoints", min=1)
    keep_every: int = option(0, "steps between checkpoints that are kept for good; 0 for none", min=0)
    validate_every: int = option(
        1000, "steps between measurements of the averaged weights' loss on held-out examples; 0 for none", min=0
    )
    validate_examples: int = option(512, "held-out examples for that loss, always the same ones", min=1, max=10**8)
    skip_above: float | None = option(
        None,
        "skip steps whose gradient has this norm or more; null: only if it is not finite",
        above=0,
        max=math.inf,
    )
    max_skipped: int = option(20, "how many of the last 100 steps may be skipped before training stops", min=0, max=100)
    tensorboard: bool = option(True, "write TensorBoard's files, if it is installed")
    log_to: list[str] = option([], "further logs: wandb, or module:callable that returns an object like SummaryWriter")


@dataclass
class SampleSpec:
    sampler: str = option("dpmpp_2m", "the sampler", choices=SAMPLERS)
    steps: int = option(25, "sampler steps; heun and guidance evaluate the network more than once per step", min=1)
    spacing: float = option(
        1.0, "1 for evenly spaced steps; more for finer ones near t = 0: 2 is quadratic", min=1, max=MOST_SPACING
    )
    eta: float = option(0.0, "noise of ddim, dpmpp_2m and dpmpp_3m: 0 for none, 1 for as much as ddpm's", min=0, max=1)
    guidance_scale: Any = option(1.0, "guidance scale: 1 for none; one per modality: {label: 2}", min=0)
    clamp: float | None = option(
        1.0, "limit the predicted image to -clamp .. clamp; null: no limit", above=0, max=math.inf
    )
    batch_size: int = option(250, "samples drawn at a time", min=1)
    precision: str = option("fp32", "arithmetic of the network", choices=PRECISIONS)
    heads: str = option(
        "soft", "what stands for a modality that is not given: its expected encoding, or that of a draw", choices=HEADS
    )
    resample: int = option(
        5,
        "how often each step is taken if a modality is given in part: more makes the drawn part fit better",
        min=1,
        max=MOST_TIMES,
    )
    first: list[str] = option([], "modalities to draw first, one after another; the rest is drawn given them")
    offset: dict[str, float] = option({}, "how far a modality's time leads the anchor's, as a share of T: {mask: 0.2}")
    count: int = option(16, "samples in a grid", min=1)


@dataclass
class EvaluateSpec:
    samples: int = option(1000, "samples per direction; 0 for no evaluation after training", min=0)
    bound_steps: int = option(8, "timesteps per held-out example in the bound's Monte Carlo sums; 0 for all", min=0)
    features: str = option(
        "pixels",
        "image features for distances: pixels, efficientnet-lite0, vgg16 (vgg16@64: at 64 x 64) or module:function",
    )
    features_weights: str = option("", "file with that network's weights; empty: the installed package's", path=True)
    lpips: str = option("", "also measure LPIPS of restored images, with this network", choices=("", "alex", "vgg"))
    lpips_weights: str = option("", "file with that network's weights; empty: the installed package's", path=True)


@dataclass
class Config:
    """Everything that a run depends on. `data`, `backbone` and each modality have the options of their kind."""

    anchor: str = option("image", "the modality that the diffusion process runs on")
    space: str = option("own", "channels of the modalities in the diffusion space", choices=("own", "shared"))
    told: bool = option(True, "tell the network what is given; false: it sees z_t alone")
    seed: int = option(0, "seed of weights, order, timesteps and noise", min=0, max=2**63 - 1)
    data: Any = None
    modalities: dict[str, Any] = field(default_factory=dict)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    backbone: Any = None
    loss: LossSpec = field(default_factory=LossSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    sample: SampleSpec = field(default_factory=SampleSpec)
    evaluate: EvaluateSpec = field(default_factory=EvaluateSpec)


PLAIN = ("anchor", "space", "told", "seed")
SECTIONS = {
    f.name: f.default_factory
    for f in dataclasses.fields(Config)
    if f.name in ("schedule", "loss", "train", "sample", "evaluate")
}
