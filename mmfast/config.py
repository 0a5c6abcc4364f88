"""Typed configs: defaults, then a YAML file (a preset or one's own), then the command line."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mmfast import backbones, data, modalities
from mmfast.config_source import overridden, read
from mmfast.errors import MmfastError, unknown
from mmfast.options import PRECISIONS, check, option, typed
from mmfast.plain_yaml import load_yaml
from mmfast.process import TARGETS
from mmfast.samplers import HEADS, SAMPLERS, check_share
from mmfast.schedule import MOST_STEPS

# The rules of mmfast.training.balance.
BALANCES = ("none", "uncertainty", "gradient_norm")


@dataclass
class ScheduleSpec:
    kind: str = option("cosine", "alpha_bar(t)", choices=("cosine", "linear"))
    T: int = option(1000, "number of steps of the process", min=2, max=MOST_STEPS)


@dataclass
class LossSpec:
    target: str = option("eps", "what the network predicts of the anchor", choices=tuple(TARGETS))
    min_snr_gamma: float | None = option(None, "weight the steps as min-SNR-gamma does; null: not", above=0)
    balance: str = option(
        "none",
        "weights of the modalities' losses that training finds: none, uncertainty (learnt variances) or gradient_norm",
        choices=BALANCES,
    )


@dataclass
class LowNoiseSpec:
    """Training examples at little noise, where the other modalities are read off the anchor."""

    share: float = option(0.0, "share of the examples in which nothing but the anchor is seen", min=0, max=1)
    until: float = option(0.1, "their times are uniform up to this share of T", above=0, max=1)
    weight: float = option(1.0, "weight of the anchor's loss in them", min=0)


@dataclass
class TrainSpec:
    steps: int = option(100_000, "optimiser steps", min=1)
    batch_size: int = option(128, "examples a step", min=1)
    accumulation: int = option(1, "parts that a step's batch is computed in", min=1)
    learning_rate: float = option(1e-4, "learning rate after the warm-up", above=0)
    warmup: int = option(100, "steps over which the learning rate rises from zero", min=0)
    decay: str = option("constant", "the learning rate after the warm-up", choices=("constant", "cosine"))
    weight_decay: float = option(0.0, "AdamW's weight decay", min=0)
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0)
    ema_decay: float = option(0.9999, "decay of the averaged weights", min=0, max=1)
    given_probability: float = option(
        0.25, "how often each modality is given (told to the network) in training; never all at once", min=0, max=1
    )
    low_noise: LowNoiseSpec = field(default_factory=LowNoiseSpec)
    precision: str = option("fp32", "arithmetic of the network", choices=PRECISIONS)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    compile: bool = option(False, "compile the network with torch.compile")
    cuda_graphs: bool = option(False, "on a GPU, replay the network's kernels as CUDA graphs: for small networks")
    shard: bool = option(False, "with several ranks, a shard of the network's weights on each: for large networks")
    workers: int = option(0, "processes that load data", min=0)
    log_every: int = option(50, "steps between two writes of stats.jsonl and TensorBoard", min=1)
    sample_every: int = option(5000, "steps between two sample grids; 0 for none", min=0)
    checkpoint_every: int = option(1000, "steps between two checkpoints", min=1)
    keep_every: int = option(0, "steps between two states that are kept for good; 0 for none", min=0)
    validate_every: int = option(
        1000, "steps between two losses of the average on held-out examples; 0 for none", min=0
    )
    validate_examples: int = option(512, "held-out examples that this loss is of, always the same", min=1)
    skip_above: float | None = option(
        None, "leave out a step whose gradient has this norm or more; null: one that is not finite alone", above=0
    )
    max_skipped: int = option(20, "steps of the last 100 that may be left out before training stops", min=0, max=100)
    tensorboard: bool = option(True, "write TensorBoard's files, where it is installed")
    log_to: list[str] = option([], "further logs: wandb, or module:callable that gives a SummaryWriter's like")


@dataclass
class SampleSpec:
    sampler: str = option("ddpm", "the sampler", choices=SAMPLERS)
    steps: int = option(50, "network evaluations a sample", min=1)
    eta: float = option(0.0, "noise of the DDIM sampler", min=0, max=1)
    guidance_scale: Any = option(1.0, "guidance by what is given: 1 for none, or by name, as {label: 2}", min=0)
    clamp: float | None = option(1.0, "hold the predicted image within -clamp .. clamp; null: not", above=0)
    batch_size: int = option(250, "samples at a time", min=1)
    precision: str = option("fp32", "arithmetic of the network", choices=PRECISIONS)
    heads: str = option(
        "soft", "what is not given enters a step as its expected encoding, or as a draw's", choices=HEADS
    )
    resample: int = option(
        5,
        "how often each step is taken where something is given in part: more, and what is drawn fits it better",
        min=1,
    )
    first: list[str] = option([], "modalities drawn first, one after another; the rest is drawn given them")
    offset: dict[str, float] = option({}, "by how much of T a modality's time is ahead of the anchor's, as {mask: 0.2}")
    count: int = option(16, "samples in a grid", min=1)


@dataclass
class EvaluateSpec:
    samples: int = option(1000, "samples a direction; 0 for no evaluation after training", min=0)
    bound_steps: int = option(8, "timesteps a held-out example for the bound's Monte Carlo sums; 0: all of them", min=0)
    features: str = option(
        "pixels",
        "of images, for distances: pixels, efficientnet-lite0, vgg16 (vgg16@64: at 64 x 64) or module:function",
    )
    features_weights: str = option("", "file of that network's weights; empty: the installed package's")
    lpips: str = option("", "also LPIPS of restored images, with this network", choices=("", "alex", "vgg"))
    lpips_weights: str = option("", "file of that network's weights; empty: the installed package's")


@dataclass
class Config:
    """Everything that a run depends on. `data`, `backbone` and each modality have the options of their kind."""

    anchor: str = option("image", "the modality that is diffused itself")
    space: str = option("own", "channels of the modalities in the diffusion space", choices=("own", "shared"))
    told: bool = option(True, "tell the network what is given; false: it has z_t alone")
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


def load(source: str, overrides: Iterable[tuple[str, str]] = ()) -> Config:
    """A preset's name or a YAML file, with overrides ("train.steps", "100") put over it.

    Raises MmfastError, naming the key, for anything unknown, of the wrong type or out of bounds.
    """
    return from_plain(load_yaml(read(source), source), source, overrides)


def from_plain(found: Any, source: str, overrides: Iterable[tuple[str, str]] = ()) -> Config:
    """What YAML holds, as `load` takes it; source: what errors call it."""
    return resolve(overridden(found, source, overrides), source)


def check_name(name: str) -> None:
    """Raise MmfastError for a modality's name that cannot name a file and a part of the network."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or hasattr(nn.ModuleDict, name) or name == "training":
        raise MmfastError(
            f"modalities.{name}: {name!r} cannot be a modality's name; it should begin with a letter, have letters, "
            "digits, _ and - alone, and be no name that torch's modules have, such as type, values or half"
        )


def resolve(raw: DictConfig, source: str = "config") -> Config:
    """Give every part of a plain config the types and defaults of its kind, and check the bounds."""
    known = [f.name for f in dataclasses.fields(Config)]
    for key in raw:
        if key not in known:
            raise unknown(f"{source}: key", key, known)
    config: Config = typed(Config, OmegaConf.create({name: raw[name] for name in PLAIN if name in raw}), "")
    for name, section in SECTIONS.items():
        setattr(config, name, typed(section, _section(raw, name), f"{name}."))  # type: ignore[arg-type]
    config.data = _of_kind(raw, "data", lambda kind: data.kind(kind).Spec, "digits", data.KINDS)
    config.backbone = _of_kind(raw, "backbone", lambda kind: backbones.kind(kind).Spec, "unet", backbones.KINDS)
    for part in map(str, _section(raw, "modalities")):
        key = f"modalities.{part}"
        check_name(part)
        if _section(raw, key).get("kind") not in [*modalities.KINDS]:  # to look takes milliseconds
            modalities.add_installed()
        config.modalities[part] = _of_kind(
            raw, key, lambda kind: modalities.kind(kind).Spec, None, [*modalities.KINDS, *modalities.FAILED]
        )
    if not config.modalities:
        raise MmfastError(f"{source} has no modalities; it should name at least the anchor, {config.anchor!r}")
    if config.anchor not in config.modalities:
        raise unknown("anchor", config.anchor, config.modalities)
    for name in config.sample.first:
        if name not in config.modalities:
            raise unknown("sample.first", name, config.modalities)
    _check_offset(config)
    _check_guidance(config)
    check(config, "")
    for name, spec in config.modalities.items():
        check(spec, f"modalities.{name}.")
        _check_times(config, name, spec)
    if config.train.low_noise.share > 0 and config.space == "shared":
        raise MmfastError("train.low_noise.share needs space=own: in shared channels nothing is seen alone")
    if config.evaluate.samples == 1:
        raise MmfastError("evaluate.samples is 1; it should be 0 for no evaluation, or at least 2")
    if config.train.batch_size % config.train.accumulation:
        raise MmfastError(
            f"train.accumulation is {config.train.accumulation}; it should divide train.batch_size, "
            f"{config.train.batch_size}"
        )
    if config.train.cuda_graphs and (config.train.accumulation > 1 or config.train.compile):
        # A graph's gradients are where the last replay put them, so there is nothing to add them to.
        raise MmfastError("train.cuda_graphs is true; it goes with train.accumulation=1 and train.compile=false only")
    if config.train.shard and (config.train.cuda_graphs or config.train.compile):
        raise MmfastError("train.shard is true; it goes with train.cuda_graphs=false and train.compile=false only")
    if config.train.shard and config.loss.balance == "gradient_norm":
        raise MmfastError("loss.balance is gradient_norm; it goes with train.shard=false only, or take uncertainty")
    return config


def _check_times(config: Config, name: str, spec: Any) -> None:
    """Raise MmfastError where a modality's shares of the examples do not fit together, or with the space."""
    given = config.train.given_probability if spec.given_probability is None else spec.given_probability
    total = given + spec.unknown_probability + spec.own_time_probability
    if total > 1 + 1e-9:
        raise MmfastError(
            f"modalities.{name}: given, unknown and own_time probability add up to {total:g}; at most 1 is possible"
        )
    if name == config.anchor and spec.unknown_probability + spec.own_time_probability > 0:
        raise MmfastError(
            f"modalities.{name} is the anchor, whose time the others' are counted from; leave out unknown_probability "
            "and own_time_probability"
        )
    if name == config.anchor and spec.diffused:
        raise MmfastError(f"modalities.{name} is the anchor, which is diffused itself; leave out diffused")
    for key in ("unknown_probability", "own_time_probability"):
        if getattr(spec, key) > 0 and config.space == "shared":
            raise MmfastError(f"modalities.{name}.{key} needs space=own: shared channels have one time")


def _check_offset(config: Config) -> None:
    """Raise MmfastError for offsets that no model of this config can have; whether a modality has a trace it knows."""
    for name, share in config.sample.offset.items():
        if name not in config.modalities:
            raise unknown("sample.offset", name, config.modalities)
        if name == config.anchor:
            raise MmfastError(f"sample.offset has {name}, the anchor, from whose time the others' are counted")
        check_share(f"sample.offset.{name}", share)
    if config.sample.offset and (config.space == "shared" or not config.told):
        raise MmfastError("sample.offset needs space=own and told=true: else z_t has one time")


def _check_guidance(config: Config) -> None:
    """Raise MmfastError unless the guidance is a number, or a number for each of some modalities."""
    scales = config.sample.guidance_scale
    for name, scale in scales.items() if isinstance(scales, dict) else [("", scales)]:
        if name and name not in config.modalities:
            raise unknown("sample.guidance_scale", name, config.modalities)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale < math.inf:
            key = f"sample.guidance_scale.{name}".rstrip(".")
            raise MmfastError(f"{key} is {scale!r}; it should be a number, at least 0")


def _section(raw: DictConfig, key: str) -> DictConfig:
    part = OmegaConf.select(raw, key)
    if part is None:
        return OmegaConf.create({})
    if not isinstance(part, DictConfig):
        raise MmfastError(f"{key} is {part!r}; it should hold keys of its own")
    return part


def _of_kind(raw: DictConfig, key: str, spec: Any, default: str | None, kinds: Sequence[str]) -> Any:
    part = _section(raw, key)
    kind = part.get("kind", default)
    if kind is None:
        raise MmfastError(f"{key}.kind is missing; it should be one of {', '.join(kinds)}")
    if kind not in kinds:
        raise unknown(f"{key}.kind", kind, kinds)
    return typed(spec(kind), part, f"{key}.")


def to_yaml(config: Config) -> str:
    """The resolved config, every option written out."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


# What may change in a run that goes on: how long, where and how it computes, what it shows. It changes nothing of what
# is learnt at a step but the learning rate's decay, which is that of the longer run from there on.
FREE = re.compile(
    r"train\.(steps|accumulation|device|shard|compile|cuda_graphs|workers|max_skipped|tensorboard|log_to"
    r"|(log|sample|checkpoint|keep|validate)_every)"
    r"|(sample|evaluate)\..*|modalities\.[^.]*\.given_steps|data\.(cache|cache_gb|on_error)"
)


def fixed(changed: Mapping[str, Any]) -> list[str]:
    """Those of the keys (of `changes`) that no run may change."""
    return [key for key in changed if not FREE.fullmatch(key)]


def changes(old: Config, new: Config) -> dict[str, str]:
    """The keys in which two configs differ, each with both values as "old -> new"."""

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, part in value.items() for k, v in flat(part, f"{prefix}{key}.").items()}
        return {prefix[:-1]: value}

    a, b = flat(dataclasses.asdict(old)), flat(dataclasses.asdict(new))
    return {key: f"{a.get(key)!r} -> {b.get(key)!r}" for key in {**a, **b} if a.get(key) != b.get(key)}
