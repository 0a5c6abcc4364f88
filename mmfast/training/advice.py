"""Options that change nothing in a run, or are slow on this machine: a line for each, before the first step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmfast.config import Config
from mmfast.model import Model
from mmfast.processor import slow_in_bf16
from mmfast.sample import takes_eta


def without_effect(model: Model, config: Config) -> Iterator[str]:
    """Those of this config, each with the reason."""
    specs, train, how = config.modalities, config.train, config.sample
    usual = train.given_probability
    given = {n: usual if x.given_probability is None else x.given_probability for n, x in specs.items()}
    told = [f"{key} {x:g}" for key, x in _where_given(config) if x] if not model.told else []
    if told:
        yield f"told is false, so nothing is given in training; without effect: {', '.join(told)}"
    never = [n for n, x in specs.items() if model.told and x.given_at_T and not given[n]]
    for name in never:
        yield f"modalities.{name}.given_at_T is {specs[name].given_at_T:g}, but {name} is given in no training example"
    for name in model.names:
        if specs[name].own_time_probability > 0 and name not in model.traced:
            yield (
                f"modalities.{name}.own_time_probability is {specs[name].own_time_probability:g}, but {name} leaves no "
                "trace in z_t (weight none) that could have a time of its own"
            )
    seen = [n for n in model.names if n in model.traced or not model.part(n).uniform]
    known = [n for n in seen if not specs[n].unknown_probability]
    if train.low_noise.share and known:
        yield (
            f"train.low_noise is of the examples in which {model.anchor_name} alone is seen, and those that have "
            f"{' and '.join(known)} are none of these: give them an unknown_probability, or leave it out"
        )
    if how.eta and not takes_eta(how.sampler):
        yield f"sample.eta is {how.eta:g}, and the sampler {how.sampler} takes none"
    if config.evaluate.lpips_weights and not config.evaluate.lpips:
        yield "evaluate.lpips_weights is given, but no evaluate.lpips, which says whose weights they are"


def slow_here(config: Config, device: torch.device) -> Iterator[str]:
    """Those that cost much on this machine and are of little use there."""
    if config.train.precision == "bf16" and slow_in_bf16(device):
        found = torch.backends.cpu.get_cpu_capability()
        yield (
            f"train.precision is bf16, which this processor ({found}) has no instructions for: a U-Net may take ten "
            "times as long as with fp32; give --train.precision fp32 --sample.precision fp32"
        )


def _where_given(config: Config) -> Iterator[tuple[str, float | None]]:
    """The options of how often a modality is given, and where; not the usual one, which has a default."""
    for name, spec in config.modalities.items():
        yield f"modalities.{name}.given_probability", spec.given_probability
        yield f"modalities.{name}.given_at_T", spec.given_at_T
