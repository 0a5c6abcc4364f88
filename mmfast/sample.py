"""Sampling: joint, conditional and marginal generation, with any of the step rules in samplers.py."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmfast import path
from mmfast.errors import MmfastError
from mmfast.errors import unknown as unknown_name
from mmfast.inside import check_known
from mmfast.keywords import filled, shows
from mmfast.memory import check_room
from mmfast.model import Model
from mmfast.modes import evaluating
from mmfast.progress import Bar
from mmfast.sample_loop import Loop, Settings
from mmfast.sample_options import SAMPLE, SampleOptions, check_options, is_number, plain_numbers
from mmfast.samplers import SAMPLERS, timesteps
from mmfast.samples import whole as whole_number

if TYPE_CHECKING:
    from typing_extensions import Unpack


@torch.no_grad()
@shows(SampleOptions, SAMPLE)
def sample(
    model: Model,
    count: int | None = None,
    given: Mapping[str, Tensor] | None = None,
    *,
    known: Mapping[str, Tensor] | None = None,
    **options: Unpack[SampleOptions],
) -> dict[str, Tensor]:
    """Sample all modalities, starting from z_T ~ N(m_T of the given modalities, I).

    For joint generation give nothing, for conditional generation any subset of the modalities, and for marginal
    generation ignore the parts of the result that you do not want. If the anchor is given, z_t is rebuilt around it at
    each step and only the others evolve. Given modalities are returned unchanged.

    Args:
        count: the number of samples; None for as many as `given` holds.
        given: a dict by name, each [count, ...], or [1, ...] for all samples.
        known: a dict by name, for modalities that are given in part: which values are known, bool of the modality's
            shape (or that of one example). The rest is sampled. The known values replace those in each prediction, so
            that they are at the right noise level at each step, and come back exactly. The network sees them only
            through that noise and is not told. This is the replacement method (Song et al., 2021). Its bias is that the
            sampled part agrees less with the known part than it should (docs/reading-and-telling.md). The values of an
            embedding are those of a vector of unit RMS.
        resample: how often to take each step except the last (5 by default) if something is given in part, returning
            from z_s to z_t in between (Lugmayr et al., 2022). This reduces the bias, for about `resample` times as many
            evaluations of the network.
        steps, sampler: the number of steps (50 by default) of "ddpm" (the default), "ddim", "heun", "dpmpp_2m",
            "dpmpp_3m" or another of SAMPLERS. Each step evaluates the network once, but in heun twice except for the
            last.
        spacing: 1 for steps that are evenly spaced in time (the default), more for finer ones near t = 0, where details
            are decided: the times are T u^spacing for evenly spaced u, in 1 .. 10.
        eta: the noise that a step of "ddim", "dpmpp_2m" or "dpmpp_3m" adds: 0 for none, 1 for as much as the ancestral
            step. With 1, dpmpp_2m is SDE-DPM-Solver++(2M).
        guidance_scale: 1 for no guidance; one number for all given modalities, or a dict by name. Each guided modality
            adds (scale - 1) (prediction - prediction without it).
        clamp: clamp the predicted z_0 of an image to -clamp .. clamp (1 by default); None for no clamp. Other anchors
            and latents are never clamped.
        seed, sample_ids: the noise's identity. A sample is the same in any batch, up to rounding.
        batch_size: the number of samples that the network processes at a time.
        precision: the network's arithmetic, "fp32" or "bf16"; the steps themselves are always float32.
        heads: how a modality that is not given enters a step: "soft" (the default) for its head's expected encoding,
            or "sampled" for the encoding of a sample.
        unknown: modalities that stay at time T, unknown to the others; their heads predict them at the end.
        offset: a dict by name: how far a modality's time is ahead of the anchor's, as a share of T between -1 and 1
            (exclusive). {"mask": 0.2} decides the mask before the image, and -0.2 after it. An offset is a difference
            of times because that is what the network is told and has seen in training (`own_time_probability`).
            Whatever the offsets, all blocks move at the same pace from T down to 0, and `steps` are spread over the
            longer path. A modality that has reached 0 is decided, and the network is told it as given from then on; one
            that has not started waits at T. With an offset near 1, one modality is sampled and then the other given
            it, as in `mmfast.generate.generate(first=...)`. Offsets of given or unknown modalities have no effect. An
            offset needs a model with space=own and told, and a modality with a trace in z_t.
        progress: True shows a progress bar; a text shows one with this text.

    Returns every modality by name, [count, ...], on the model's device. Raises MmfastError naming the argument at
    fault.
    """
    chosen = filled("sample", SAMPLE, options)
    given, inside = as_given(model, given, known)
    return sample_checked(model, how_many(model, count, given), given, inside, chosen)


@torch.no_grad()
def sample_checked(
    model: Model, count: int, given: Mapping[str, Tensor], inside: Mapping[str, Tensor], options: SampleOptions
) -> dict[str, Tensor]:
    """Run `sample` with all its options, without checking `given`, which may be samples outside the range of data.

    given, inside: as returned by `as_given`. Raises MmfastError for an invalid option.
    """
    chosen: SampleOptions = {**options}
    for name, value in chosen.items():  # NumPy's numbers are accepted too
        chosen[name] = plain_numbers(value)  # type: ignore[literal-required]
    whole = {name: x for name, x in given.items() if name not in inside}
    ids = check_options(chosen, count)
    unknown = _unknown(model, chosen["unknown"], given)
    settings = _settings(model, chosen, whole, bool(inside), unknown)
    device, progress = model.schedule.alpha_bar.device, chosen["progress"]
    text = progress if isinstance(progress, str) else "sampling"
    batches = torch.arange(count).split(chosen["batch_size"])
    bar = Bar(len(batches) * settings.evaluations, text, "evaluation", quiet=not progress)
    results = []
    with evaluating(model), bar:
        for rows in batches:
            part = {name: x.expand(count, *x.shape[1:])[rows].to(device) for name, x in given.items()}
            there = {name: x.expand(count, *x.shape[1:])[rows].to(device) for name, x in inside.items()}
            results.append(Loop(model, part, settings, ids[rows].to(device), there).run(bar))
    return {name: torch.cat([r[name] for r in results]) for name in results[0]}


def _unknown(model: Model, unknown: Collection[str], given: Mapping[str, Tensor]) -> Collection[str]:
    """The modalities that stay unknown.

    Raises MmfastError for an invalid name, and for a model whose network sees all of z_t.
    """
    unknown = [unknown] if isinstance(unknown, str) else unknown
    if not isinstance(unknown, Collection):
        raise MmfastError(f"unknown is a {type(unknown).__name__}; it should be a modality's name, or a list of them")
    if unknown and (model.space == "shared" or not model.told):
        raise MmfastError("unknown is given, but the network sees all of z_t; it needs a model with space=own and told")
    for name in unknown:
        if name not in model.names or name in given:
            raise unknown_name("unknown's modality", name, [n for n in model.names if n not in given])
    return unknown


def _settings(
    model: Model, chosen: SampleOptions, whole: Mapping[str, Tensor], in_part: bool, unknown: Collection[str]
) -> Settings:
    """The settings of the loop. whole: what is given completely; in_part: whether anything is given in part."""
    offset = chosen["offset"] or {}
    path.check_offset(model, offset)
    ahead = path.leads(model, offset, {*whole, *unknown})
    if in_part and chosen["resample"] > 1 and any(ahead.values()):
        raise MmfastError(
            "something is given in part, with an offset, by which z_t has several times; leave the offset out, or give "
            "resample=1"
        )
    grid = timesteps(model.schedule.T + max(ahead.values()), chosen["steps"], chosen["spacing"])
    scales = _scales(chosen["guidance_scale"], whole)
    if scales and not model.told:
        raise MmfastError(
            f"guidance_scale is {chosen['guidance_scale']!r}, but the model was trained with told: false: its network "
            "is not told what is given, so nothing can guide it; leave guidance_scale out"
        )
    return Settings(
        grid=grid,
        plan=path.plan(model, grid, ahead, SAMPLERS[chosen["sampler"]], chosen["eta"], list(scales.values())),
        scales=scales,
        clamp=chosen["clamp"] if model.anchor.bounded else None,
        seed=chosen["seed"],
        bf16=chosen["precision"] == "bf16",
        sampled=chosen["heads"] == "sampled",
        unknown=tuple(unknown),
        resample=chosen["resample"] if in_part else 1,
    )


def _by_name(what: str, value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The dict by modality, empty for None. Raises MmfastError for anything else."""
    if not isinstance(value, (Mapping, type(None))):
        raise MmfastError(f"{what} is a {type(value).__name__}; it should be a dict from modality to tensor")
    return value or {}


def as_given(
    model: Model, given: Mapping[str, Tensor] | None, known: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is given, with floats as float32, and which values are known of what is given in part (`check_known`).

    A modality whose values are all known is given as a whole. Unknown values are replaced by zeros, so they may be
    anything. Raises MmfastError unless `given` is a dict of tensors.
    """
    found = {}
    for name, x in _by_name("given", given).items():
        if not isinstance(x, Tensor):
            raise MmfastError(
                f"given[{name!r}] is a {type(x).__name__}; it should be a tensor [count, ...] (mmfast.load(RUN).sample "
                "takes numbers, names and files)"
            )
        if x.dim() == 0:
            raise MmfastError(f"given[{name!r}] is a tensor of no dimension; it should be [count, ...]")
        found[name] = x.float() if x.is_floating_point() else x
    inside = check_known(model, found, _by_name("known", known))
    for name, there in inside.items():
        found[name] = torch.where(there.to(found[name].device), found[name], 0)
    return found, {name: there for name, there in inside.items() if not bool(there.all())}


def how_many(model: Model, count: int | None, given: Mapping[str, Tensor]) -> int:
    """`count`, or the number given. Raises MmfastError if the two do not match, or a given value is invalid."""
    for name, x in given.items():
        if name not in model.parts:
            raise unknown_name("given modality", name, model.parts)
        model.part(name).check(x.cpu(), f"given[{name!r}]")
        if len(x) != 1 and count is not None and len(x) != count:
            raise MmfastError(f"given[{name!r}] holds {len(x)} examples; it should hold 1 or {count}")
    sizes = {len(x) for x in given.values() if len(x) != 1}
    if len(sizes) > 1:
        raise MmfastError(f"given modalities hold {sorted(sizes)} examples; they should hold one number of them")
    return check_count(model, count if count is not None else max(sizes, default=1))


def check_count(model: Model, count: int, what: str = "count") -> int:
    """Check the number of samples. Raises MmfastError, naming it `what`, if it is below 1 or memory is too small."""
    count = whole_number(what, count, 1)
    size = sum(part.blank(part.spec).nbytes for part in map(model.part, model.parts))
    check_room(what, count, size)
    return count


def _scales(guidance_scale: float | Mapping[str, float], given: Mapping[str, Tensor]) -> dict[str, float]:
    by_name = guidance_scale if isinstance(guidance_scale, Mapping) else dict.fromkeys(given, guidance_scale)
    for scale in by_name.values() if isinstance(guidance_scale, Mapping) else [guidance_scale]:
        if not (is_number(scale) and math.isfinite(scale)):
            raise MmfastError(f"guidance_scale is {scale!r}; it should be a finite number")
    for name in by_name:
        if name not in given:
            raise unknown_name("guidance_scale's modality", name, given)
    return {name: scale for name, scale in by_name.items() if scale != 1}
