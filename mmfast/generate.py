"""Sampling as a config specifies: its sampler and steps, and its modalities together or one after another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmfast import ops
from mmfast.config import Config
from mmfast.errors import MmfastError, unknown
from mmfast.keywords import BY_CONFIG, filled, shows
from mmfast.modalities.base import Modality
from mmfast.model import Model
from mmfast.path import check_offset
from mmfast.ranks import ALONE, Ranks
from mmfast.sample import as_given, check_count, how_many, sample_checked
from mmfast.sample_options import SAMPLE, SampleOptions, checked_ids, takes_eta
from mmfast.samplers import SAMPLERS
from mmfast.schedule import as_int
from mmfast.streams import HEAD_NOISE

if TYPE_CHECKING:
    from typing_extensions import Unpack


def settings(config: Config, given: Iterable[str] = ()) -> dict[str, Any]:
    """config.sample as arguments of mmfast.sample.sample, if these modalities are given."""
    spec = config.sample
    # The network of a model that is not told cannot be guided; `mmfast.training.advice` says so of the config.
    guidance = spec.guidance_scale if config.told else 1.0
    steps = [own for name in given if (own := config.modalities[name].given_steps) is not None]
    return {
        "steps": min(*(steps or [spec.steps]), config.schedule.T),
        "spacing": spec.spacing,
        "sampler": spec.sampler,
        "eta": spec.eta,
        "guidance_scale": guidance,
        "clamp": spec.clamp,
        "batch_size": spec.batch_size,
        "precision": spec.precision,
        "heads": spec.heads,
        "offset": spec.offset,
        "resample": spec.resample,
        "seed": config.seed,
    }


def check_sample(model: Model, config: Config) -> None:
    """Raise MmfastError if this model cannot be sampled with the config's `first`, `offset` or `count`."""
    check_first(model, config.sample.first)
    check_offset(model, config.sample.offset, "sample.offset")
    check_count(model, config.sample.count, "sample.count")


def check_first(model: Model, first: Iterable[str]) -> None:
    """Raise MmfastError for a name that is not a modality of the model, or is made from another."""
    if not isinstance(first, Iterable):
        raise MmfastError(f"first is a {type(first).__name__}; it should be a modality's name, or a list of them")
    for name in first:
        if name not in model.parts:
            raise unknown("sample.first's modality", name, model.parts)
        if model.part(name).derived:
            raise MmfastError(f"sample.first has {name}, which is made from another modality; leave it out")


def title(given: Iterable[str], first: Iterable[str]) -> str:
    """The title of a picture of samples: how they were drawn. given: names, or NAME=VALUE."""
    given = list(given)
    names = {pair.partition("=")[0] for pair in given}
    turns = [name for name in dict.fromkeys(first) if name not in names]
    how = f"{', then '.join(turns)} first, the rest given it" if turns else "the rest generated"
    if given:
        return f"given {', '.join(given)}: {how}"
    return how if turns else "generated together, nothing given"


def how_drawn(
    model: Model, config: Config, given: Iterable[str], options: Mapping[str, Any], in_part: Iterable[str] = ()
) -> dict[str, Any]:
    """The steps (of each turn, if they differ), spacing, sampler, eta and guidance of `generate` with these options.

    given: what is given as a whole; in_part: what is given in part.
    """
    steps, known = [], list(given)
    order = turns(model, known, options.get("first", config.sample.first))
    alone = drawn_by_prior(model, [*known, *in_part], order)
    for turn in order:
        if turn is not None and turn == alone:
            known = [turn]
            continue
        steps.append(options.get("steps", settings(config, known)["steps"]))
        known = [*known, turn] if turn else known
    names, usual = ("spacing", "sampler", "eta", "guidance_scale"), settings(config)
    how = {name: options.get(name, usual[name]) for name in names}
    how["eta"] = _eta(how, options)
    return {"steps": steps[0] if len({*steps}) == 1 else steps, **how}


def _eta(how: Mapping[str, Any], asked: Mapping[str, Any]) -> float:
    """The eta of a draw. The config's applies only to samplers that take one."""
    if "eta" in asked or not how["eta"] or how["sampler"] not in SAMPLERS:  # an unknown sampler is refused later
        return how["eta"]
    return how["eta"] if takes_eta(how["sampler"]) else 0.0


def how_text(how: Mapping[str, Any]) -> str:
    """seed 0, 25 steps, guidance 1.5. how: the result of `how_drawn`, and the seed."""
    guidance, steps = guidance_text(how["guidance_scale"]), how["steps"]
    counts = " then ".join(map(str, steps)) if isinstance(steps, list) else steps
    return f"seed {how['seed']}, {counts} step{'s' * (counts != 1)}, guidance {guidance}"


def guidance_text(scale: float | Mapping[str, float]) -> str:
    """A guidance scale as text: 1.5, or label=2 mask=1."""
    if isinstance(scale, Mapping):
        return " ".join(f"{name}={x:g}" for name, x in scale.items())
    return f"{scale:g}"


def turns(model: Model, given: Iterable[str], first: str | Iterable[str]) -> list[str | None]:
    """What `generate` draws in turn: each of `first` that is not given, and None for all the rest together."""
    first, known = [first] if isinstance(first, str) else first, {*given}
    found: list[str | None] = [name for name in dict.fromkeys(first) if name not in known]
    return [*found, None] if not found or known | set(found) < model.parts.keys() else found


def drawn_by_prior(model: Model, given: Collection[str], order: Sequence[str | None]) -> str | None:
    """The first of `turns` if nothing is given and it has a prior, from which it is drawn without the network."""
    first = order[0] if len(order) > 1 and not given else None
    return first if first is not None and model.part(first).prior() is not None else None


def kept_as_given(model: Model, drawn: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is drawn around given hidden parts, with the visible pixels as given; {} without such parts.

    The network restores the visible pixels too, but not exactly.
    """
    found: dict[str, Tensor] = {}
    for name, x in given.items():
        source = model.part(name).source
        if source is not None and source not in given and source in drawn:
            image = found.get(source, drawn[source])
            found[source] = model.part(name).kept(image, x.to(image.device))
    return found


def reads_anchor_alone(model: Model, config: Config, given: Collection[str]) -> bool:
    """Whether the network should be told the anchor alone even if more is given, because it never saw it with others.

    This is so if training gives the anchor only in the pass without noise (`train.clean_pass`), which is for the heads
    that read the encoder, and nothing else is left to predict.
    """
    anchor = config.modalities[model.anchor_name]
    usual = config.train.given_probability if anchor.given_probability is None else anchor.given_probability
    left = [part for part in map(model.part, model.names) if part.name not in given and not part.derived]
    only_there = config.train.clean_pass > 0 and usual == 0
    return model.anchor_name in given and only_there and all(part.reads == "encoder" for part in left)


# Options whose defaults are those of `sample`; the config decides all others.
_OWN: SampleOptions = {"sample_ids": None, "progress": False}


@shows(SampleOptions, {**dict.fromkeys(SAMPLE, BY_CONFIG), **_OWN})
def generate(
    model: Model,
    config: Config,
    count: int | None = None,
    given: Mapping[str, Tensor] | None = None,
    *,
    first: Sequence[str] | None = None,
    known: Mapping[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
    **options: Unpack[SampleOptions],
) -> dict[str, Tensor]:
    """Sample as the config specifies (`mmfast.sample.sample`): every modality by name, on the model's device.

    first: modalities to draw one after another before the rest, each given those before it, since
    p(x, y) = p(x) p(y | x); None for config.sample.first, empty for all together. Each turn is a full run of the
    sampler with its own noise, guided by what was drawn before it as well as by what was given. Only a label that is
    drawn before everything else comes from its prior instead, the share of each class in the training data
    (`class_counts`), if that is known. During a turn, modalities of later turns are unknown if training covered that
    (`unknown_probability`); otherwise they are drawn along with it. Within a turn, the times keep to the offsets
    (`config.sample.offset`) of what is drawn in it; while something is given in part, the config's offsets do not
    apply unless its `resample` is 1. If the anchor is given and training never showed it together with other given
    modalities (`reads_anchor_alone`), the rest is predicted from the anchor alone. known: the known part of what is
    given in part, as in `sample`; if it is in `first` too, its rest is drawn in its turn. ranks: each draws an even
    share, and all return all samples; a sample does not depend on which rank draws it, except for rounding. options:
    arguments of `sample` that replace the config's.

    Raises MmfastError for a name in `first` that is not a modality of the model, or is made from another.
    """
    every = filled("generate", SAMPLE, options)
    given, inside = as_given(model, given, known)
    if ranks.count > 1:
        return _by_all(ranks, model, config, count, given, inside, {**options, "first": first})
    how: dict[str, Any]
    first = config.sample.first if first is None else [first] if isinstance(first, str) else first
    check_first(model, first)
    in_part = {name: x for name, x in given.items() if name in inside}
    whole = {name: x for name, x in given.items() if name not in inside}
    usual = settings(config)["guidance_scale"]
    guidance, seed = options.get("guidance_scale", usual), options.get("seed", config.seed)
    seed = as_int(seed)
    if not isinstance(seed, int):
        raise MmfastError(f"seed is a {type(seed).__name__}; it should be an int")
    asked = guidance is not usual  # the config's applies to whatever is given
    for name in guidance if isinstance(guidance, Mapping) and asked else ():
        if name not in {*whole, *first}:
            raise unknown("guidance_scale's modality", name, [*whole, *first])
    order, count = turns(model, whole, first), how_many(model, count, given)
    if alone := drawn_by_prior(model, given, order):
        whole[alone] = _of_prior(model.part(alone), checked_ids(options.get("sample_ids"), count), seed)
    for turn, target in enumerate(order):
        if target in whole:
            continue
        how = {**settings(config, whole), **options, "seed": seed ^ turn << 40, "guidance_scale": guidance}
        how["eta"] = _eta(how, options)
        told = {**in_part, **whole}
        if not in_part and reads_anchor_alone(model, config, whole):
            told = {model.anchor_name: whole[model.anchor_name]}
        left = {name: there for name, there in inside.items() if name not in whole}
        if isinstance(guidance, Mapping):  # what is given in part guides nothing
            how["guidance_scale"] = {n: scale for n, scale in guidance.items() if n in told and n not in left}
        if target is not None and model.told:
            later = [name for name in model.names if name not in {*whole, *in_part} and name != target]
            how.setdefault("unknown", [name for name in later if config.modalities[name].unknown_probability > 0])
        if left and "offset" not in options and how["resample"] > 1:
            how["offset"] = None  # the config's; a step that is repeated needs one time for all of z_t
        chosen: SampleOptions = {**every, **how}  # type: ignore[typeddict-item]
        drawn = sample_checked(model, count, told, left, chosen)
        for name in whole.keys() - told.keys():
            drawn[name] = whole[name].expand(count, *whole[name].shape[1:]).to(drawn[name].device)
        if target is not None:
            whole[target] = drawn[target]
    return drawn


def _of_prior(part: Modality, ids: Tensor, seed: int) -> Tensor:
    """x [len(ids), ...] drawn from a modality's prior, each with its own noise."""
    prior = part.prior()
    assert prior is not None
    noise = ops.randn([len(ids), *prior.shape[1:]], seed=seed, sample_ids=ids, stream=HEAD_NOISE)
    return part.draw(prior.expand(len(ids), *prior.shape[1:]), noise)


def _by_all(
    ranks: Ranks,
    model: Model,
    config: Config,
    count: int | None,
    given: dict[str, Tensor],
    known: dict[str, Tensor],
    options: dict[str, Any],
) -> dict[str, Tensor]:
    """`generate` with the samples divided among the ranks. given and known: the results of `as_given`."""
    count = how_many(model, count, given)
    ids = options.pop("sample_ids", None)
    ids = checked_ids(ids, count)
    options["progress"] = options.get("progress", False) if ranks.first else False

    def draw(rows: Tensor) -> dict[str, Tensor]:
        own = {name: x if len(x) == 1 else x[rows.to(x.device)] for name, x in given.items()}
        inside = {name: x if len(x) == 1 else x[rows] for name, x in known.items()}
        drawn = generate(model, config, len(rows), own, sample_ids=ids[rows], known=inside, **options)
        return {name: x.cpu() for name, x in drawn.items()}

    found = ranks.map(draw, ranks.shares(count))
    device = model.schedule.alpha_bar.device
    return {name: torch.cat([part[name] for part in found]).to(device) for name in found[0]}
