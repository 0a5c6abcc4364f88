"""Warnings, one line each before the first step, about options that have no effect or are slow on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from mmfast.backbones import unet
from mmfast.config import Config
from mmfast.model import Model
from mmfast.processor import slow_in_bf16
from mmfast.sample_options import takes_eta


def without_effect(model: Model, config: Config, ranks: int = 1) -> Iterator[str]:
    """Yield a line for each option of this config that has no effect, with the reason. ranks: how many train it."""
    specs, train, how = config.modalities, config.train, config.sample
    usual = train.given_probability
    given = {n: usual if x.given_probability is None else x.given_probability for n, x in specs.items()}
    untold = [f"{key} {x:g}" for key, x in _when_told(config) if x] if not model.told else []
    if untold:
        yield f"told is false, so nothing is given in training; without effect: {', '.join(untold)}"
    never = [n for n, x in specs.items() if model.told and x.given_at_T and not given[n]]
    for name in never:
        yield f"modalities.{name}.given_at_T is {specs[name].given_at_T:g}, but {name} is given in no training example"
    for name in model.names if model.told else ():
        if specs[name].own_time_probability > 0 and name not in model.traced:
            yield (
                f"modalities.{name}.own_time_probability is {specs[name].own_time_probability:g}, but {name} leaves no "
                "trace in z_t (weight none) that could have a time of its own"
            )
    yield from _of_modalities(config)
    yield from _of_backbone(model, config)
    seen = [n for n in model.names if n in model.traced or not model.part(n).uniform]
    known = [n for n in seen if not (model.told and specs[n].unknown_probability)]
    if train.low_noise.share and known:
        yield (
            f"train.low_noise applies only to examples in which nothing but {model.anchor_name} is seen, and examples "
            f"with {' and '.join(known)} never are: give them an unknown_probability, or leave it out"
        )
    if train.clean_pass and not any(model.part(name).reads == "encoder" for name in model.names):
        yield f"train.clean_pass is {train.clean_pass:g}, but no head reads the encoder"
    if train.shard and ranks == 1:
        yield "train.shard is true, but there is one process: start several with torchrun to divide the model"
    if how.eta and not takes_eta(how.sampler):
        yield f"sample.eta is {how.eta:g}, but the sampler {how.sampler} takes none"
    if config.evaluate.lpips_weights and not config.evaluate.lpips:
        yield "evaluate.lpips_weights is given without evaluate.lpips, which specifies the network that they are for"


def _of_modalities(config: Config) -> Iterator[str]:
    for name, spec in config.modalities.items():
        weight = spec.weight
        if name == config.anchor and spec.encoder != "fixed":
            yield f"modalities.{name}.encoder is {spec.encoder}, but {name} is the anchor, which is not encoded"
        elif name != config.anchor and weight.kind == "none" and weight.scale != type(weight)().scale:
            yield f"modalities.{name}.weight.scale is {weight.scale:g}, but its kind is none; give it another kind"


def _of_backbone(model: Model, config: Config) -> Iterator[str]:
    spec, network = config.backbone, model.backbone
    if not isinstance(spec, unet.Spec) or not isinstance(network, unet.Backbone):
        return
    grids = [[side // spec.patch >> depth for side in model.shape[1:]] for depth in range(len(spec.multipliers))]
    for resolution in spec.attention:
        if not any(resolution in grid for grid in grids):
            sides = ", ".join(dict.fromkeys(str(max(grid)) for grid in grids))
            yield f"backbone.attention has {resolution}, but no level has a grid of that size; they have {sides}"
    norms = [layer for layer in network.middle.modules() if isinstance(layer, unet.GroupNorm)]
    if math.prod(grids[-1]) == 1 and any(layer.alone for layer in norms):
        yield (
            f"backbone.norm is group, and the last level has {norms[0].num_channels} channels of one pixel, each a "
            "group of its own, of which nothing is left: give --backbone.norm layer, or fewer backbone.multipliers"
        )


def slow_here(config: Config, device: torch.device) -> Iterator[str]:
    """Yield a line for each option that gains nothing on this machine, or little for the time it takes."""
    if config.train.cuda_graphs and device.type != "cuda":
        yield f"train.cuda_graphs is true, but the device is {device.type}, which has none"
    if config.train.precision == "bf16" and slow_in_bf16(device):
        found = torch.backends.cpu.get_cpu_capability()
        yield (
            f"train.precision is bf16, which this processor ({found}) has no instructions for: a U-Net may take ten "
            "times as long as with fp32; give --train.precision fp32 --sample.precision fp32"
        )


def _when_told(config: Config) -> Iterator[tuple[str, float | None]]:
    """Yield the options that matter only with told=true, except train.given_probability, which has a default."""
    for name, spec in config.modalities.items():
        for key in ("given_probability", "given_at_T", "unknown_probability", "own_time_probability"):
            yield f"modalities.{name}.{key}", getattr(spec, key)
    scales = config.sample.guidance_scale
    for name, scale in scales.items() if isinstance(scales, dict) else [("", scales)]:
        yield f"sample.guidance_scale.{name}".rstrip("."), scale if scale != 1 else None
